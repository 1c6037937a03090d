"""Text that grows: pieces without broken characters, and where it is to stop."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

BROKEN = "\ufffd"  # bytes that are no character, or not yet
AGREEING = 4  # texts, one token apart, that must agree where a new token can change what was there


Decode = Callable[[Sequence[int]], str]


class Pieces:
    """Hands decoded text on as it grows; what it hands on is never changed by a later token.

    Args:
        decode: makes a text of tokens.
        callback: is given each piece.
        by_bytes: whether a token's bytes are the same whatever surrounds it, as in GPT-2, and not
            put together by rules, as in BERT ("don ' t" becomes "don't").
    """

    def __init__(
        self,
        decode: Decode,
        callback: Callable[[str], object],
        by_bytes: bool,
    ):
        self._decode, self._callback = decode, callback
        self._tokens: list[int] = []
        self._recent = [""] * (1 if by_bytes else AGREEING)
        self._sent = 0

    def add(self, token: int) -> None:
        """Takes the next token, and hands on what is settled."""
        self._tokens.append(token)
        self._recent = [*self._recent[1:], self._decode(self._tokens)]
        self._send(_common_start(self._recent).rstrip(BROKEN))

    def finish(self, text: str) -> None:
        """Hands on the rest of the whole text."""
        self._send(text)

    def _send(self, text: str) -> None:
        if len(text) > self._sent:
            piece, self._sent = text[self._sent :], len(text)
            self._callback(piece)


def _common_start(texts: Sequence[str]) -> str:
    """Returns what all of the texts begin with."""
    shortest = min(texts, key=len)
    for index, character in enumerate(shortest):
        if any(text[index] != character for text in texts):
            return shortest[:index]
    return shortest


def stopped(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of `stops` to be complete in the text ends; None if none is in it."""
    return min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)


def collected(
    steps: Iterable[np.ndarray],
    rows: int,
    ends: Sequence[int],
    stops: Sequence[str],
    decode: Decode,
    pieces: Pieces | None = None,
) -> list[list[int]]:
    """Takes tokens until every row has ended, and no longer.

    Args:
        steps: for each step a token for each row.
        rows: how many there are.
        ends: the tokens that end a text; they belong to it.
        stops: the texts that do.
        decode: makes a text of tokens.
        pieces: is handed the tokens of the one row there is.

    Returns:
        Each row's tokens.
    """
    window = 4 * max(map(len, stops), default=0) + 4  # a character is four tokens at most
    texts: list[list[int]] = [[] for _ in range(rows)]
    going = set(range(rows))
    for tokens in steps:
        for row in sorted(going):
            texts[row].append(int(tokens[row]))
            recent = decode(texts[row][-window:]) if stops else ""
            if texts[row][-1] in ends or stopped(recent, stops) is not None:
                going.remove(row)
            elif pieces is not None:
                pieces.add(texts[row][-1])
        if not going:
            break
    if pieces is not None:
        whole = decode(texts[0])
        pieces.finish(whole[: stopped(whole, stops)])
    return texts
