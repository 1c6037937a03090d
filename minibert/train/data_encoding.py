"""Texts to tokens for training: with a copy of a fast tokenizer, never cut unless asked."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from minibert.checks import flag, whole
from minibert.errors import InputError, shown
from minibert.progress import ticking
from minibert.train.data_batches import Collate
from minibert.train.fingerprint import digest
from minibert.train.labels import IGNORED

AT_ONCE = 1000  # texts that are read between two ticks of the progress bar


class Encoder:
    """Reads texts, or pairs of them; the tokenizer itself is left as it is.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_length: how many tokens an example may have, special tokens included.
        truncation: whether a longer one is cut (of a pair, the longer text first); else it is an
            error.

    Raises:
        InputError: it is no such tokenizer, or an argument is wrong.
    """

    def __init__(self, tokenizer: Any, max_length: Any, truncation: Any = False):
        self.tokenizer, self.backend = tokenizer, backend_of(tokenizer)
        self.max_length = whole("max_length", max_length, 1)
        self._truncation = flag("truncation", truncation)

    @property
    def about(self) -> dict[str, Any]:
        """What identifies it, for `batches`."""
        return {
            "tokenizer": digest(self.backend.to_str()),
            "max_length": self.max_length,
            "truncation": self._truncation,
        }

    @property
    def has_types(self) -> bool:
        """Whether the tokenizer tells the first text of a pair from the second."""
        return "token_type_ids" in self.tokenizer.model_input_names

    @property
    def pad(self) -> int:
        """The id that fills up a sequence.

        Raises:
            InputError: the tokenizer has none.
        """
        if self.tokenizer.pad_token_id is None:
            raise InputError(
                "tokenizer: has no padding token; set one, such as "
                "tokenizer.pad_token = tokenizer.eos_token (and the model's pad_token_id)"
            )
        return self.tokenizer.pad_token_id

    def __call__(
        self,
        inputs: Sequence[Any],
        places: Sequence[str],
        *,
        words: bool = False,
        show_progress: bool | None = None,
    ) -> list[Any]:
        """The encodings of texts, of pairs, or of lists of words.

        Args:
            inputs: the texts; or tuples of two; or lists of words.
            places: what messages call them.
            words: whether they are lists of words.
            show_progress: whether there is a bar; None for one if there are many and stderr is a
                terminal.

        Raises:
            InputError: one is too long and may not be cut, or has no token.
        """
        if any(isinstance(item, tuple) for item in inputs[:1]):
            room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        else:
            room = self.max_length - self.tokenizer.num_special_tokens_to_add()
        if room < 1:
            raise InputError(
                f"max_length: {self.max_length} leaves no room beside the special tokens"
            )
        if self._truncation:
            side = self.tokenizer.truncation_side
            self.backend.enable_truncation(self.max_length, direction=side)
        found = encoded(self.backend, inputs, words=words, show_progress=show_progress)
        for place, encoding in zip(places, found, strict=True):
            if all(encoding.special_tokens_mask):
                raise InputError(f"{place}: has no token")
            check_length(place, len(encoding.ids), self.max_length)
        return found

    def arrays(self, encoding: Any, prefix: str = "") -> dict[str, np.ndarray]:
        """An encoding as the model's inputs, `(seq,)` each."""
        rows = {
            f"{prefix}input_ids": np.array(encoding.ids, np.int32),
            f"{prefix}attention_mask": np.ones(len(encoding.ids), np.int32),
        }
        if self.has_types and not prefix:
            rows["token_type_ids"] = np.array(encoding.type_ids, np.int32)
        return rows


def backend_of(tokenizer: Any) -> Any:
    """A copy of a tokenizer's fast part, which neither cuts nor pads.

    Raises:
        InputError: it has none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        found = shown(type(tokenizer).__name__)
        raise InputError(f"tokenizer: expected a fast one of transformers, found {found}")
    copy = type(backend).from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def encoded(
    backend: Any,
    inputs: Sequence[Any],
    *,
    words: bool = False,
    special: bool = True,
    show_progress: bool | None = None,
) -> list[Any]:
    """The encodings of texts, pairs or lists of words, under a progress bar if they are many."""
    found: list[Any] = []
    with ticking("Tokenizing", len(inputs), show_progress) as tick:
        for start in range(0, len(inputs), AT_ONCE):
            some = list(inputs[start : start + AT_ONCE])
            found += backend.encode_batch(some, is_pretokenized=words, add_special_tokens=special)
            tick(len(some))
    return found


def check_length(place: str, length: int, limit: int) -> None:
    """Raises an InputError if a text is too long."""
    if length > limit:
        raise InputError(
            f"{place}: {length} tokens; max_length is {limit}, and truncation=True cuts there"
        )


def padded_lengths(pad_to: Any, max_length: int) -> tuple[int, ...]:
    """The lengths that batches may have: each is one more compiled program.

    Args:
        pad_to: a length or some; None for `max_length`. Longer batches have `max_length`.
        max_length: the largest.

    Raises:
        InputError: they are no such lengths.
    """
    given = max_length if pad_to is None else pad_to
    given = list(given) if isinstance(given, list | tuple | range) else [given]
    lengths = {whole("pad_to", length, 1) for length in given} | {max_length}
    if max(lengths) > max_length:
        raise InputError(f"pad_to: {max(lengths)} is over max_length, {max_length}")
    return tuple(sorted(lengths))


def collate_for(
    encoder: Encoder, pad_to: Any, *, labels: bool = False, prefixes: Sequence[str] = ("",)
) -> Collate:
    """How examples are padded: to one of the lengths, masks with 0, labels of tokens with −100."""
    pads = {"token_type_ids": 0, **({"labels": IGNORED} if labels else {})}
    for prefix in prefixes:
        pads |= {f"{prefix}input_ids": encoder.pad, f"{prefix}attention_mask": 0}
    return Collate(lengths=padded_lengths(pad_to, encoder.max_length), pads=pads)


@dataclasses.dataclass(frozen=True)
class Frame:
    """The special tokens around one text or two.

    Attributes:
        before: what stands before the first text.
        between: what stands between them.
        after: what stands after the last.
        types: the segments of the first text and what is before it, and of the second and what is
            after it; what is between them belongs to the first.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int] = (0, 0)

    @property
    def length(self) -> int:
        """How many special tokens there are."""
        return len(self.before) + len(self.between) + len(self.after)


def frame_of(backend: Any, pair: bool) -> Frame:
    """The special tokens that a tokenizer puts around one text, or around two."""
    encoding = backend.encode("a", "a") if pair else backend.encode("a")
    special, ids = np.array(encoding.special_tokens_mask, bool), np.array(encoding.ids)
    content = np.flatnonzero(~special)
    if not content.size:
        raise InputError("tokenizer: makes no token of 'a'")
    before, after = ids[: content[0]].tolist(), ids[content[-1] + 1 :].tolist()
    inside = slice(content[0], content[-1] + 1)
    between = ids[inside][special[inside]].tolist()
    types = (encoding.type_ids[content[0]], encoding.type_ids[content[-1]])
    return Frame(tuple(before), tuple(between), tuple(after), types)
