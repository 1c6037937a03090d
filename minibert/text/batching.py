"""Many texts in few shapes: sorted by length, cut into batches by a budget of tokens.

A compiled program has one shape, so the shapes are few: lengths are rounded up to `BUCKETS`, and
for each there is one number of rows. Texts of like length share a batch, so that little is padding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from minibert.core.checks import whole
from minibert.errors import InputError

# Multiples of 8 to 64, of 16 to 256, then four to the octave: of natural texts 7 % is padding.
BUCKETS = (
    *range(8, 64, 8),
    *range(64, 256, 16),
    *(quarter << octave for octave in range(6, 14) for quarter in (4, 5, 6, 7)),
)


class Batch(NamedTuple):
    """Some texts that are computed together.

    Attributes:
        indices: which texts.
        rows: how many rows the batch has; those behind the texts are padding.
        length: how many positions.
        places: `(texts, 2)`, the row of each text and its number there, where texts share rows
            (see `packing`); None where each has its own.
    """

    indices: np.ndarray
    rows: int
    length: int
    places: np.ndarray | None = None

    @property
    def used(self) -> int:
        """How many rows hold a text."""
        return len(self.indices) if self.places is None else int(self.places[:, 0].max()) + 1


def bucket(length: int, longest: int) -> int:
    """The shortest of `BUCKETS` that holds `length` positions, at most `longest`."""
    return min(next((size for size in BUCKETS if size >= length), longest), longest)


def default_budget() -> int:
    """How many tokens a batch has by default: what fits a CPU's cache, or fills an accelerator."""
    return 1024 if jax.default_backend() == "cpu" else 1 << 15


def check_budget(token_budget: Any) -> int:
    """The budget given, or the default.

    Raises:
        InputError: it is not a positive whole number.
    """
    return default_budget() if token_budget is None else whole("token_budget", token_budget, 1)


def plan(lengths: Sequence[int], longest: int, token_budget: Any = None) -> list[Batch]:
    """Cuts texts into batches, the longest first.

    A batch takes as many texts as its budget allows at the length of its longest one, so there is
    one shape for each of `BUCKETS` at most. The last one, with fewer texts, has the rows of the
    others of its length, or the next power of two if there are none.

    Args:
        lengths: of each text, in tokens.
        longest: what the model can take.
        token_budget: rows × positions of a batch, padding included; by default what suits the
            device. A single row may exceed it.

    Raises:
        InputError: a text is empty or too long, or the budget is not positive.
    """
    budget = check_budget(token_budget)
    for index, length in enumerate(lengths):
        if not 1 <= length <= longest:
            raise InputError(f"text {index}: {length} tokens; expected 1 to {longest}")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        length = bucket(lengths[order[start]], longest)
        rows = max(1, budget // length)
        indices = order[start : start + rows]
        if not batches or batches[-1].length != length:
            rows = min(rows, 1 << (len(indices) - 1).bit_length())
        batches.append(Batch(indices, rows, length))
        start += rows
    return batches


def padded(rows: Sequence[Any], batch: Batch, pad: int = 0, left: bool = False) -> np.ndarray:
    """The batch's rows of numbers as an array `(rows, length)`, padded with `pad`."""
    array = np.full((batch.rows, batch.length), pad, np.int32)
    for place, index in enumerate(batch.indices):
        row = rows[index]
        if left:
            array[place, batch.length - len(row) :] = row
        else:
            array[place, : len(row)] = row
    return array
