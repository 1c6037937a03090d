"""Prompts as they are given, checked and padded on the left."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minibert.checks import as_array, indices, shaped, zeros_and_ones
from minibert.decoding import Prompt
from minibert.errors import InputError, shown
from minibert.generation_config import GenerationConfig

SHORTEST = 16


class Prompts(NamedTuple):
    """Prompts and what is asked of them.

    Attributes:
        ids: `(batch, seq)` words, padded on the left.
        mask: `(batch, seq)`, True at words and False at padding.
        limit: how many tokens to generate.
        encoder: an encoder's states `(batch, encoder_seq, hidden)` and padding mask, or None.
    """

    ids: np.ndarray
    mask: np.ndarray
    limit: int = 0
    encoder: tuple[Any, Any] = (None, None)

    def padded(self) -> Prompt:
        """The prompts with more padding on the left: few lengths, so few programs."""
        more = ((0, 0), (rounded_up(self.ids.shape[1]) - self.ids.shape[1], 0))
        ids, mask = np.pad(self.ids.astype(np.int32), more), np.pad(self.mask, more)
        return Prompt(ids, mask, *self.encoder)

    def continued(self, texts: np.ndarray) -> np.ndarray:
        """The prompts as they were given, with texts behind them; several for each prompt."""
        copies = len(texts) // len(self.ids)
        return np.concatenate([np.repeat(self.ids, copies, axis=0), texts], axis=1, dtype=np.int32)


def rounded_up(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, …: at most a third is wasted."""
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def prompts(
    input_ids: Any, attention_mask: Any, config: GenerationConfig, vocab_size: int
) -> Prompts:
    """Checks prompts.

    Raises:
        InputError: they are no words, empty, all padding, or padded on the right.
    """
    if _ragged(input_ids):
        if attention_mask is not None:
            raise InputError("attention_mask: prompts of different lengths are padded for you")
        input_ids, attention_mask = _padded_on_the_left(input_ids, config.padding_id or 0)
    words = as_array("input_ids", input_ids)
    if words.ndim != 2 or not words.size:
        raise InputError(f"input_ids: expected shape (batch, seq), found {words.shape}")
    ids = np.asarray(indices("input_ids", words, vocab_size, "vocab_size"))
    if attention_mask is None:
        mask = np.ones(ids.shape, bool)
        if config.pad_token_id is not None and config.pad_token_id not in config.end_ids:
            mask = ids != config.pad_token_id
    else:
        given = zeros_and_ones("attention_mask", attention_mask)
        mask = np.asarray(shaped("attention_mask", given, [ids.shape])).astype(bool)
    for row, real in enumerate(mask):
        if not real.any():
            raise InputError(f"input_ids: row {row} is all padding; expected a prompt")
        if not real[-1]:
            raise InputError(f"attention_mask: row {row} ends in padding; pad on the left")
    return Prompts(ids, mask)


def _ragged(input_ids: Any) -> bool:
    rows = isinstance(input_ids, list | tuple) and len(input_ids) > 0
    if not rows or not all(isinstance(row, Sequence | np.ndarray) for row in input_ids):
        return False
    return len({len(row) for row in input_ids}) > 1


def _padded_on_the_left(rows: Any, pad: int) -> tuple[np.ndarray, np.ndarray]:
    arrays = [as_array("input_ids", row) for row in rows]
    width = max(map(len, arrays))
    for number, row in enumerate(arrays):
        if row.ndim != 1 or not row.size:
            raise InputError(
                f"input_ids: row {number}: expected words, found {shown(rows[number])}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"input_ids: expected integers, found {row.dtype}")
    ids = np.full((len(arrays), width), pad, np.int64)
    mask = np.zeros((len(arrays), width), bool)
    for number, row in enumerate(arrays):
        ids[number, width - len(row) :], mask[number, width - len(row) :] = row, True
    return ids, mask
