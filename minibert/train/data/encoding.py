"""Tokenization of training texts, with a copy of a fast tokenizer, and windows of token ids."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minibert.core.checks import flag, whole
from minibert.core.progress import LONG, progress_bar
from minibert.core.types import Path, Texts
from minibert.data.files import kind_of, read_text
from minibert.data.records import read_texts
from minibert.errors import InputError
from minibert.text.tokenizer import backend_of, encode_all
from minibert.train.data.batching import Batching, Collate, Example, Examples, batched
from minibert.train.fingerprint import digest
from minibert.train.objectives.labels import IGNORED

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 1000  # texts that are tokenized between two updates of the progress bar


class Encoder:
    """Tokenizes texts or pairs of texts for batches; the tokenizer passed is not changed.

    Args:
        tokenizer: a fast tokenizer of transformers.
        max_length: the max number of tokens of an example, including special tokens.
        truncation: whether to truncate longer examples (of a pair, the longer text first);
            otherwise they are errors.
        show_progress: whether to show a progress bar; None shows it if there are many texts and
            stderr is a terminal.
        batch_size: rows of a batch.
        options: the other arguments of `batches`.

    Raises:
        InputError: `tokenizer` is not a fast tokenizer, or an argument is wrong.
    """

    tokenizer: "PreTrainedTokenizerBase"
    backend: Any

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        truncation: bool,
        show_progress: bool | None,
        batch_size: int,
        options: Mapping[str, Any],
    ):
        self.batching: Batching = Batching(batch_size=batch_size, **options)
        self.tokenizer, self.backend = tokenizer, backend_of(tokenizer)
        self.max_length: int = whole("max_length", max_length, 1)
        self.truncation: bool = flag("truncation", truncation)
        # unlike a call, this does not check the encodings
        self.encoded: functools.partial[list[Any]] = functools.partial(
            encoded, self.backend, show_progress=show_progress
        )

    def __call__(
        self, inputs: Sequence[Any], places: Sequence[str], *, words: bool = False
    ) -> list[Any]:
        """Returns the encodings of texts, of pairs, or of lists of words.

        Args:
            inputs: texts, tuples of two texts, or lists of words.
            places: the names of the inputs, for messages.
            words: whether they are lists of words.

        Raises:
            InputError: an input is too long and `truncation` is False, or has no tokens.
        """
        pair = any(isinstance(item, tuple) for item in inputs[:1])
        self.check_capacity(self.tokenizer.num_special_tokens_to_add(pair=pair))
        if self.truncation:
            side = self.tokenizer.truncation_side
            self.backend.enable_truncation(self.max_length, direction=side)
        found = self.encoded(inputs, words=words)
        for place, encoding in zip(places, found, strict=True):
            if all(encoding.special_tokens_mask):
                raise InputError(f"{place}: has no tokens")
            self.check_length(place, len(encoding.ids))
        return found

    def check_capacity(self, special: int) -> None:
        """Raises an InputError if `max_length` leaves no token besides the special tokens."""
        if self.max_length <= special:
            raise InputError(
                f"max_length: expected over {special}, the number of special tokens; found "
                f"{self.max_length}"
            )

    def check_length(self, place: str, length: int) -> None:
        """Raises an InputError if a text is too long."""
        if length > self.max_length:
            raise InputError(
                f"{place}: {length} tokens; expected at most {self.max_length} (max_length); "
                "truncation=True truncates"
            ).advising("truncation=True")

    def arrays(self, encoding: "Encoding", prefix: str = "") -> dict[str, np.ndarray]:
        """Returns an encoding as the model's inputs, `(seq,)` each."""
        rows = unpadded(encoding.ids, prefix)
        if "token_type_ids" in self.tokenizer.model_input_names and not prefix:
            rows["token_type_ids"] = np.array(encoding.type_ids, np.int32)
        return rows

    def batches(self, examples: Examples, collate: Collate, transforms: Sequence[Any] = ()) -> Any:
        """Returns batches of examples; see `batches`."""
        about = {
            "tokenizer": digest(self.backend.to_str()),
            "max_length": self.max_length,
            "truncation": self.truncation,
        }
        return batched(examples, self.batching, collate, transforms=transforms, about=about)


def unpadded(ids: Sequence[int] | np.ndarray, prefix: str = "") -> dict[str, np.ndarray]:
    """Returns `input_ids` and an `attention_mask` of ones, `(seq,)` each."""
    return {
        f"{prefix}input_ids": np.array(ids, np.int32),
        f"{prefix}attention_mask": np.ones(len(ids), np.int32),
    }


def encoded(
    backend: "Backend",
    inputs: Sequence[Any],
    *,
    words: bool = False,
    special: bool = True,
    show_progress: bool | None = None,
) -> list[Any]:
    """Returns the encodings of texts, pairs or lists of words; see `encode_all`."""
    found: list[Any] = []
    with progress_bar("Tokenizing", len(inputs), show_progress, least=LONG) as tick:
        for start in range(0, len(inputs), AT_ONCE):
            some = inputs[start : start + AT_ONCE]
            found += encode_all(backend, some, is_pretokenized=words, add_special_tokens=special)
            tick(len(some))
    return found


def collate_for(
    encoder: Encoder,
    pad_to: int | Sequence[int] | None,
    *,
    labels: bool = False,
    prefixes: Sequence[str] = ("",),
) -> Collate:
    """Returns a `Collate` that pads masks with 0 and labels of tokens with −100.

    Args:
        encoder: the encoder that makes the examples.
        pad_to: one or more lengths; longer batches, or all if it is None, are padded to the
            encoder's `max_length`.
        labels: whether there are labels of tokens.
        prefixes: the prefixes of the names of each text's entries.

    Raises:
        InputError: the tokenizer has no padding token, or a length is not an integer from 1 to
            `max_length`.
    """
    pad = encoder.tokenizer.pad_token_id
    if pad is None:
        raise InputError(
            "tokenizer: has no padding token; set one, such as "
            "tokenizer.pad_token = tokenizer.eos_token (and the model's pad_token_id)"
        )
    pads = {"token_type_ids": 0, **({"labels": IGNORED} if labels else {})}
    for prefix in prefixes:
        pads |= {f"{prefix}input_ids": pad, f"{prefix}attention_mask": 0}
    longest = encoder.max_length
    given = [] if pad_to is None else pad_to
    given = given if isinstance(given, list | tuple | range) else [given]
    lengths = {whole("pad_to", length, 1) for length in given} | {longest}
    if max(lengths) > longest:
        raise InputError(f"pad_to: {max(lengths)} is over max_length, {longest}")
    return Collate(lengths=tuple(sorted(lengths)), pads=pads)


@dataclasses.dataclass(frozen=True)
class Frame:
    """The special tokens around one text or two.

    Attributes:
        before: the tokens before the first text.
        between: the tokens between the texts.
        after: the tokens after the last text.
        types: `token_type_ids` of the first text with the tokens before and after it, and of the
            second text with the tokens after it.
    """

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int]

    @property
    def length(self) -> int:
        """The number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)


def frame_of(backend: "Backend", pair: bool) -> Frame:
    """Returns the special tokens that a tokenizer adds to one text, or to a pair."""
    encoding = encode_all(backend, [("a", "a") if pair else "a"])[0]
    special, ids = np.array(encoding.special_tokens_mask, bool), np.array(encoding.ids)
    content = np.flatnonzero(~special)
    if not content.size:
        raise InputError("tokenizer: expected at least one token of the text 'a', found none")
    first, last = content[[0, -1]]
    return Frame(
        before=tuple(ids[:first].tolist()),
        between=tuple(ids[first:last][special[first:last]].tolist()),
        after=tuple(ids[last + 1 :].tolist()),
        types=(encoding.type_ids[first], encoding.type_ids[last]),
    )


Sentence = tuple[np.ndarray, np.ndarray]  # ids, and whether a word begins at each


def token_ids(
    source: Path | Texts,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    column: str | None = None,
    end: bool = True,
    show_progress: bool | None = None,
) -> np.ndarray:
    """Returns the concatenated ids of texts, `(tokens,)`, for `windows`.

    Args:
        source: a path or an iterable of texts, as for `masked_lm`, but a `.txt` file is one text.
        tokenizer: a fast tokenizer of transformers.
        column: the column of a file that has columns; `text` by default.
        end: whether to append the EOS (or separator) token to each text.
        show_progress: whether to show a progress bar; None shows it if there are many texts and
            stderr is a terminal.

    Raises:
        SourceError: there is no such file.
        InputError: something is not a text, or the tokenizer has neither token.
    """
    if isinstance(source, str | os.PathLike) and kind_of(os.fspath(source)) == "txt":
        source = [read_text(os.fspath(source))]
    texts, _ = read_texts(source, column)
    backend = backend_of(tokenizer)
    ends = [end_of(tokenizer)] if flag("end", end) else []
    found = encoded(backend, texts, special=False, show_progress=show_progress)
    return np.concatenate([np.array(e.ids + ends, np.int32) for e in found])


def end_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Returns the id of a tokenizer's EOS token, or else of its separator."""
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return token
    raise InputError("tokenizer: expected an EOS or separator token, found neither")


@dataclasses.dataclass(frozen=True)
class Windows:
    """Sliding windows over ids: `input_ids`, and the token after each as `shift_labels`."""

    ids: np.ndarray
    max_length: int
    stride: int

    @property
    def _starts(self) -> range:
        return range(0, len(self.ids) - self.max_length, self.stride)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Example:
        start = self._starts[index]
        window = np.array(self.ids[start : start + self.max_length + 1], np.int32)
        return {
            "input_ids": window[:-1],
            "shift_labels": window[1:],
            "example": np.int64(index),
        }


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of tokens, each with special tokens, all but the last of the same length."""

    ids: np.ndarray
    word_starts: np.ndarray
    frame: Frame
    max_length: int

    def __len__(self) -> int:
        return -(-len(self.ids) // (self.max_length - self.frame.length))

    def __getitem__(self, index: int) -> Example:
        size = self.max_length - self.frame.length
        part = slice(index * size, (index + 1) * size)
        return framed(self.frame, (self.ids[part], self.word_starts[part])) | {
            "example": np.int64(index)
        }


def blocks_of(encoder: Encoder, texts: Sequence[str]) -> Blocks:
    """Returns all tokens of texts as blocks, with a separator token between texts."""
    frame = frame_of(encoder.backend, pair=False)
    encoder.check_capacity(frame.length)
    between = _special(frame.after[-1:] or [end_of(encoder.tokenizer)])
    parts: list[Sentence] = []
    for encoding in encoder.encoded(texts, special=False):
        parts += [sentence_of(encoding), between]
    return Blocks(*joined(parts[:-1]), frame, encoder.max_length)


def word_starts(encoding: "Encoding") -> np.ndarray:
    """Returns for each token whether a word begins at it; a special token is a separate word.

    Words are those of the tokenizer's pre-tokenizer: BERT's are a token and those with ## after it,
    GPT-2's include the space before.
    """
    words = itertools.pairwise([-1, *encoding.word_ids])
    return np.array([word is None or word != before for before, word in words], bool)


def sentence_of(encoding: "Encoding") -> Sentence:
    """Returns the ids of an encoding, and whether a word begins at each."""
    return np.array(encoding.ids, np.int32), word_starts(encoding)


def _special(ids: Sequence[int]) -> Sentence:
    """Returns special tokens, each of which is a separate word."""
    return np.array(ids, np.int32), np.ones(len(ids), bool)


def joined(sentences: Iterable[Sentence]) -> Sentence:
    """Concatenates sentences."""
    ids, starts = zip(*sentences, strict=True)
    return np.concatenate(ids), np.concatenate(starts)


def framed(frame: Frame, first: Sentence, second: Sentence | None = None) -> Example:
    """Returns one or two texts with special tokens: ids, `attention_mask` and `word_starts`."""
    rest = [] if second is None else [_special(frame.between), second]
    ids, starts = joined([_special(frame.before), first, *rest, _special(frame.after)])
    return {**unpadded(ids), "word_starts": starts}
