"""Batching of texts in few shapes: sorted by length and split by a budget of tokens.

Each shape needs a compiled program, so there are few: lengths are padded to `BUCKETS`, and each
bucket has one number of rows. Texts of similar length share a batch, so that there is little
padding.

Alternatively several texts are packed into a row. They do not attend to each other: attention is
block-diagonal, positions restart with each text, and each text is pooled separately (Krell et al.,
"Efficient Sequence Packing without Cross-contamination", arXiv:2107.02027). The tokens of a row are
assigned to texts by segments: 1 for the first text, 2 for the second, …; 0 for padding.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Integer

from minibert.core.checks import whole
from minibert.errors import InputError
from minibert.nn.attention import causal_mask

# Multiples of 8 up to 64, of 16 up to 256, then four per octave: 7 % padding for natural texts.
BUCKETS = (
    *range(8, 64, 8),
    *range(64, 256, 16),
    *(quarter << octave for octave in range(6, 14) for quarter in (4, 5, 6, 7)),
)


class Batch(NamedTuple):
    """A batch of texts.

    Attributes:
        indices: the indices of the texts.
        rows: the number of rows; those after the texts are padding.
        length: the number of positions in a row.
        places: `(texts, 2)`, the row of each text and its index in the row, if rows are packed
            (see `plan_packed`); None if each text has its own row.
    """

    indices: np.ndarray
    rows: int
    length: int
    places: np.ndarray | None = None

    @property
    def used(self) -> int:
        """The number of rows that contain a text."""
        return len(self.indices) if self.places is None else int(self.places[:, 0].max()) + 1


def bucket(length: int, longest: int) -> int:
    """Returns the smallest of `BUCKETS` that is at least `length`, or `longest` if that is less."""
    return min(next((size for size in BUCKETS if size >= length), longest), longest)


def power_of_two(least: int) -> int:
    """Returns the smallest power of two that is at least `least`.

    Sizes are rounded up with it, because each size needs a shape, and so a compiled program.
    """
    return 1 << max(least - 1, 0).bit_length()


def default_budget() -> int:
    """Returns the default tokens per batch, which fit a CPU's cache or fill an accelerator."""
    return 1024 if jax.default_backend() == "cpu" else 1 << 15


def check_budget(token_budget: object) -> int:
    """Returns the given budget, or the default.

    Raises:
        InputError: `token_budget` is not a positive integer.
    """
    return default_budget() if token_budget is None else whole("token_budget", token_budget, 1)


def plan(lengths: Sequence[int], longest: int, budget: int, most: int | None = None) -> list[Batch]:
    """Splits texts into batches, the longest texts first.

    A batch contains as many texts as the budget allows at the length of its longest one, so there
    is at most one shape for each of `BUCKETS`. The last batch, with fewer texts, has as many rows
    as the others of its length, or the next power of two if there are none.

    Args:
        lengths: the length of each text in tokens.
        longest: the maximum length of the model.
        budget: rows × positions of a batch, padding included. A single row may exceed it.
        most: the maximum number of rows of a batch; None if only the budget limits it.

    Raises:
        InputError: a text is empty or too long.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= longest:
            raise InputError(f"text {index}: {length} tokens; expected 1 to {longest}")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches: list[Batch] = []
    while len(order):
        length = bucket(lengths[order[0]], longest)
        rows = max(1, budget // length)
        rows = rows if most is None else min(rows, most)
        indices, order = order[:rows], order[rows:]
        if not batches or batches[-1].length != length:
            rows = min(rows, power_of_two(len(indices)))
        batches.append(Batch(indices, rows, length))
    return batches


def padded(rows: Sequence[Any], batch: Batch, pad: int = 0, left: bool = False) -> np.ndarray:
    """Returns the rows of a batch as an array `(rows, length)`, padded with `pad`."""
    array = np.full((batch.rows, batch.length), pad, np.int32)
    for number, index in enumerate(batch.indices):
        row = rows[index]
        start = batch.length - len(row) if left else 0
        array[number, start : start + len(row)] = row
    return array


SHORTEST = 8  # tokens of a packed row for each text that it may contain


def check_width(packing: Any, longest: int, with_tokens: bool) -> int:
    """Returns the width of packed rows, one of a few; 0 if rows are not packed.

    Raises:
        InputError: `packing` is not an integer from 1 to `longest`; or token vectors are requested,
            which are not available from packed rows.
    """
    if packing is None:
        return 0
    if with_tokens:
        raise InputError("packing: expected None, as token vectors are requested")
    if whole("packing", packing, 1) > longest:
        raise InputError(f"packing: {packing} positions; expected at most {longest}")
    return bucket(packing, longest)


def plan_packed(
    lengths: Sequence[int], width: int, budget: int, most: int | None = None
) -> list[Batch]:
    """Packs texts into rows of `width` positions by best fit, the longest texts first.

    Args:
        lengths: the length of each text in tokens, at most `width`.
        width: the number of positions in a row.
        budget: rows × positions of a batch, padding included. A single row may exceed it.
        most: the maximum number of rows of a batch; None if only the budget limits it.
    """
    packed = _rows(lengths, width)
    rows = max(1, budget // max(1, width))
    rows = rows if most is None else min(rows, most)
    batches = []
    for start in range(0, len(packed), rows):
        some = packed[start : start + rows]
        indices = np.concatenate(some)
        places = [(row, slot) for row, texts in enumerate(some) for slot in range(len(texts))]
        size = rows if start else min(rows, power_of_two(len(some)))
        batches.append(Batch(indices, size, width, np.asarray(places)))
    return batches


def slots_of(width: int) -> int:
    """Returns the maximum number of texts in a packed row."""
    return max(1, width // SHORTEST)


def _rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Returns the texts of each row: each text goes into the fullest row in which it fits."""
    rows: list[list[int]] = []
    by_free: list[list[list[int]]] = [[] for _ in range(width + 1)]  # rows by free positions
    for text in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = lengths[text]
        free = next((free for free in range(length, width) if by_free[free]), width)
        if by_free[free]:
            row = by_free[free].pop()
        else:
            rows.append(row := [])
        row.append(text)
        if len(row) < slots_of(width):
            by_free[free - length].append(row)
    return rows


def packed_rows(
    texts: Sequence[np.ndarray], batch: Batch, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the token ids and the segments of a batch of packed rows, each `(rows, length)`.

    Args:
        texts: the ids of each text of the batch.
        batch: the batch, whose `places` are set.
        pad: the id of padding.
    """
    ids = np.full((batch.rows, batch.length), pad, np.int32)
    segments, ends = np.zeros_like(ids), np.zeros(batch.rows, np.int64)
    for text, (row, slot) in zip(texts, np.asarray(batch.places).tolist(), strict=True):
        span = slice(ends[row], ends[row] + len(text))
        ids[row, span], segments[row, span] = text, slot + 1
        ends[row] += len(text)
    return ids, segments


def own_text(
    segments: Integer[Array, "batch seq"], causal: bool = False
) -> Bool[Array, "batch seq seq"]:
    """Returns True where a token attends to another: in its own text, and if `causal` not later."""
    same = segments[:, :, None] == segments[:, None, :]
    return same & causal_mask(*same.shape[1:])[0] if causal else same


def numbered(
    counted: Bool[Array, "batch seq"], segments: Integer[Array, "batch seq"] | None = None
) -> Integer[Array, "batch seq"]:
    """Returns the number of counted tokens up to each one, in its row or, with segments, text."""
    numbers = jnp.cumsum(counted, axis=1, dtype=jnp.int32)
    counted = counted.astype(numbers.dtype)
    if segments is None:
        return numbers
    before = jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    starts = jnp.where(segments != before, numbers - counted, 0)
    return numbers - jax.lax.cummax(starts, axis=1)
