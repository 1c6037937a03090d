"""Streaming of generated text: pieces without broken characters, and stop strings."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

BROKEN = "\ufffd"  # stands for bytes that are not (yet) a valid character
AGREEING = 4  # successive texts that must agree, where a new token can change earlier text


Decode = Callable[[Sequence[int]], str]


class Pieces:
    """Passes decoded text to a callback in pieces that later tokens do not change.

    Args:
        decode: converts tokens to text.
        callback: called with each piece.
        by_bytes: whether a token's bytes do not depend on its context, as in GPT-2; in BERT they do
            ("don ' t" becomes "don't").
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
        """Adds the next token and passes on text that is final."""
        self._tokens.append(token)
        self._recent = [*self._recent[1:], self._decode(self._tokens)]
        self._send(_common_start(self._recent).rstrip(BROKEN))

    def finish(self, text: str) -> None:
        """Passes on the rest of the complete text."""
        self._send(text)

    def _send(self, text: str) -> None:
        if len(text) > self._sent:
            piece, self._sent = text[self._sent :], len(text)
            self._callback(piece)


def _common_start(texts: Sequence[str]) -> str:
    """Returns the longest common prefix of texts."""
    shortest = min(texts, key=len)
    for index, character in enumerate(shortest):
        if any(text[index] != character for text in texts):
            return shortest[:index]
    return shortest


def stopped(text: str, stops: Sequence[str]) -> int | None:
    """Returns the end of the stop string that is complete first in the text; None if none is."""
    return min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)


def collected(
    steps: Iterable[np.ndarray],
    rows: int,
    ends: Sequence[int],
    stops: Sequence[str],
    decode: Decode,
    pieces: Pieces | None = None,
) -> list[list[int]]:
    """Collects tokens until every row has ended.

    Args:
        steps: yields a token for each row at each step.
        rows: the number of rows.
        ends: the EOS tokens, which are included in the result.
        stops: the stop strings.
        decode: converts tokens to text.
        pieces: receives the tokens of the row, if there is only one.

    Returns:
        Each row's tokens.
    """
    window = 4 * max(map(len, stops), default=0) + 4  # a character has at most four tokens
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
