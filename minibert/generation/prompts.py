"""Prompts as they are given, checked and padded on the left."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minibert.core.checks import as_array, checked_indices, checked_zeros_and_ones, shaped
from minibert.errors import InputError, shown
from minibert.generation.config import GenerationConfig
from minibert.generation.decoding import Prompt

SHORTEST = 16


class Prompts(NamedTuple):
    """Prompts and what is asked of them.

    Attributes:
        ids: `(batch, seq)` words, padded on the left.
        mask: `(batch, seq)`, True at words and False at padding.
        limit: how many tokens to generate.
        encoder: an encoder's states `(batch, encoder_seq, hidden)` and their padding mask
            `(batch, 1, 1, encoder_seq)`; None for what is not given.
    """

    ids: np.ndarray
    mask: np.ndarray
    limit: int = 0
    encoder: tuple[Any, Any] = (None, None)

    def padded(self, positions: int) -> Prompt:
        """The prompts, and an encoder's states, in one of few lengths, so that programs are few.

        Args:
            positions: how many the model has.
        """
        words = self.mask.any(axis=0)
        ids, mask = self.ids[:, words].astype(np.int32), self.mask[:, words]
        seq = ids.shape[1]
        more = ((0, 0), (max(min(rounded_up(seq), positions), seq) - seq, 0))
        return Prompt(np.pad(ids, more), np.pad(mask, more), *self._padded_encoder())

    def _padded_encoder(self) -> tuple[Any, Any]:
        if self.encoder[0] is None:
            return None, None
        states, mask = np.asarray(self.encoder[0]), self.encoder[1]
        batch, seq, _ = states.shape
        mask = np.ones((batch, seq), bool) if mask is None else np.asarray(mask)[:, 0, 0]
        more = rounded_up(seq) - seq
        return np.pad(states, ((0, 0), (0, more), (0, 0))), np.pad(mask, ((0, 0), (0, more)))

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
    ragged = _ragged(input_ids)
    if ragged and attention_mask is not None:
        raise InputError(
            "attention_mask: expected none, as input_ids has rows of different lengths, which are "
            "padded for you"
        )
    if ragged:
        input_ids, room = _padded_on_the_left(input_ids)
    words = as_array("input_ids", input_ids)
    if words.ndim != 2 or not words.size:
        raise InputError(f"input_ids: expected shape (batch, seq), found {words.shape}")
    ids = np.asarray(checked_indices("input_ids", words, vocab_size, "vocab_size"))
    if ragged:
        ids = np.where(room, ids, config.padding_id or 0)
    if attention_mask is None:
        mask = room if ragged else np.ones(ids.shape, bool)
        if config.pad_token_id is not None and config.pad_token_id not in config.end_ids:
            mask = mask & (ids != config.pad_token_id)
    else:
        given = checked_zeros_and_ones("attention_mask", attention_mask)
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


def _padded_on_the_left(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = [as_array("input_ids", row) for row in rows]
    width = max(map(len, arrays))
    for number, row in enumerate(arrays):
        if row.ndim != 1 or not row.size:
            raise InputError(
                f"input_ids: row {number}: expected words, found {shown(rows[number])}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"input_ids: expected integers, found {row.dtype}")
    ids = np.zeros((len(arrays), width), np.int64)
    mask = np.zeros((len(arrays), width), bool)
    for number, row in enumerate(arrays):
        ids[number, width - len(row) :], mask[number, width - len(row) :] = row, True
    return ids, mask
