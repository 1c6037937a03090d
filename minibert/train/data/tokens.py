"""Examples from running text: windows over ids, blocks of texts."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from minibert.core.checks import flag
from minibert.data.files import read_text
from minibert.data.records import read_texts
from minibert.errors import InputError
from minibert.train.data.encoding import Frame, backend_of, encoded, frame_of

Example = dict[str, Any]
Sentence = tuple[np.ndarray, np.ndarray]  # ids, and whether a word begins at each


def token_ids(
    source: Any,
    tokenizer: Any,
    *,
    column: Any = None,
    end: Any = True,
    show_progress: bool | None = None,
) -> np.ndarray:
    """Returns the concatenated ids of texts, `(tokens,)`, for `windows`.

    Args:
        source: a path or an iterable of texts, as for `masked_lm`; but a `.txt` file is one text.
        tokenizer: a fast tokenizer of transformers.
        column: the column of a file that has columns; `text` by default.
        end: whether to append the EOS (or separator) token to each text.
        show_progress: whether to show a progress bar; None for one if there are many texts and
            stderr is a terminal.

    Raises:
        SourceError: there is no such file.
        InputError: something is not a text, or the tokenizer has neither token.
    """
    if isinstance(source, str | os.PathLike) and os.fspath(source).lower().endswith(".txt"):
        source = [read_text(os.fspath(source))]
    texts, _ = read_texts(source, column)
    backend = backend_of(tokenizer)
    ends = [_end(tokenizer)] if flag("end", end) else []
    found = encoded(backend, texts, special=False, show_progress=show_progress)
    return np.concatenate([np.array(e.ids + ends, np.int32) for e in found])


def _end(tokenizer: Any) -> int:
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if token is not None:
            return token
    raise InputError("tokenizer: expected an EOS or separator token, found neither")


@dataclasses.dataclass(frozen=True)
class Windows:
    """Sliding windows over ids: `input_ids`, and as `shift_labels` the token after each."""

    ids: np.ndarray
    max_length: int
    stride: int

    def __len__(self) -> int:
        return len(range(0, len(self.ids) - self.max_length, self.stride))

    def __getitem__(self, index: int) -> Example:
        start = range(0, len(self.ids) - self.max_length, self.stride)[index]
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


def blocks_of(tokenizer: Any, texts: Sequence[str], max_length: int, show: bool | None) -> Blocks:
    """Returns all tokens of texts as blocks, with a separator token between texts."""
    backend = backend_of(tokenizer)
    frame = frame_of(backend, pair=False)
    if max_length <= frame.length:
        raise InputError(
            f"max_length: expected over {frame.length}, the number of special tokens; found "
            f"{max_length}"
        )
    between = np.array([frame.after[-1] if frame.after else _end(tokenizer)], np.int32)
    ids: list[np.ndarray] = []
    starts: list[np.ndarray] = []
    for encoding in encoded(backend, texts, special=False, show_progress=show):
        ids += [np.array(encoding.ids, np.int32), between]
        starts += [word_starts(encoding), np.ones(1, bool)]
    return Blocks(np.concatenate(ids[:-1]), np.concatenate(starts[:-1]), frame, max_length)


def word_starts(encoding: Any) -> np.ndarray:
    """Returns for each token whether a word begins at it; a special token is a word of its own.

    Words are those of the tokenizer's pre-tokenizer: BERT's are a token and those with ## after it,
    GPT-2's include the space before.
    """
    words = encoding.word_ids
    return np.array(
        [i == 0 or words[i] is None or words[i] != words[i - 1] for i in range(len(words))], bool
    )


def framed(frame: Frame, first: Sentence, second: Sentence | None = None) -> Example:
    """Returns one or two texts with special tokens: ids, `attention_mask` and `word_starts`."""
    before, between, after = (
        np.array(part, np.int32) for part in (frame.before, frame.between, frame.after)
    )
    pieces = [before, first[0], *([] if second is None else [between, second[0]]), after]
    own = [np.ones(len(before), bool), first[1]]
    own += [] if second is None else [np.ones(len(between), bool), second[1]]
    ids = np.concatenate(pieces)
    return {
        "input_ids": ids,
        "attention_mask": np.ones(len(ids), np.int32),
        "word_starts": np.concatenate([*own, np.ones(len(after), bool)]),
    }
