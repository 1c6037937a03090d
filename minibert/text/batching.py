"""Many texts in few shapes: sorted by length, cut into batches by a budget of tokens.

A compiled program has one shape, so the shapes are few: lengths are rounded up to `BUCKETS`, and
for each there is one number of rows. Texts of like length share a batch, so that little is padding.

Or several texts share a row. They do not see each other: attention is block-diagonal, positions
begin anew with each, and each is pooled by itself (Krell et al., "Efficient Sequence Packing
without Cross-contamination", arXiv:2107.02027). A row says whose its tokens are by segments: 1 for
the first text's, 2 for the second's, …; 0 for padding.
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
            (see `plan_packed`); None where each has its own.
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


def power_of_two(least: int) -> int:
    """Returns the smallest power of two that is at least `least`.

    A size that is rounded so grows seldom; each makes a shape, and so a program, of its own.
    """
    return 1 << max(least - 1, 0).bit_length()


def default_budget() -> int:
    """How many tokens a batch has by default: what fits a CPU's cache, or fills an accelerator."""
    return 1024 if jax.default_backend() == "cpu" else 1 << 15


def check_budget(token_budget: object) -> int:
    """The budget given, or the default.

    Raises:
        InputError: it is not a positive whole number.
    """
    return default_budget() if token_budget is None else whole("token_budget", token_budget, 1)


def plan(lengths: Sequence[int], longest: int, budget: int) -> list[Batch]:
    """Cuts texts into batches, the longest first.

    A batch takes as many texts as its budget allows at the length of its longest one, so there is
    one shape for each of `BUCKETS` at most. The last one, with fewer texts, has the rows of the
    others of its length, or the next power of two if there are none.

    Args:
        lengths: of each text, in tokens.
        longest: what the model can take.
        budget: rows × positions of a batch, padding included. A single row may exceed it.

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
        indices, order = order[:rows], order[rows:]
        if not batches or batches[-1].length != length:
            rows = min(rows, power_of_two(len(indices)))
        batches.append(Batch(indices, rows, length))
    return batches


def padded(rows: Sequence[Any], batch: Batch, pad: int = 0, left: bool = False) -> np.ndarray:
    """The batch's rows of numbers as an array `(rows, length)`, padded with `pad`."""
    array = np.full((batch.rows, batch.length), pad, np.int32)
    for place, index in enumerate(batch.indices):
        row = rows[index]
        start = batch.length - len(row) if left else 0
        array[place, start : start + len(row)] = row
    return array


SHORTEST = 8  # a row of so many tokens for each text it may hold


def check_width(packing: Any, longest: int, with_tokens: bool) -> int:
    """The width of rows that texts share; 0 if they share none.

    Raises:
        InputError: it is no whole number of positions that the model takes, or the vectors of
            tokens are asked for, which texts that share rows do not give.
    """
    if packing is None:
        return 0
    if with_tokens:
        raise InputError("packing: expected None, as token vectors are asked for")
    if whole("packing", packing, 1) > longest:
        raise InputError(f"packing: {packing} positions; expected at most {longest}")
    return packing


def plan_packed(lengths: Sequence[int], width: int, budget: int) -> list[Batch]:
    """Puts texts into rows of `width` positions, each where it leaves the least room.

    Args:
        lengths: of each text, in tokens, at most `width`.
        width: how many positions a row has.
        budget: rows × positions of a batch, padding included. A single row may exceed it.
    """
    packed = _rows(lengths, width)
    rows = max(1, budget // max(1, width))
    batches = []
    for start in range(0, len(packed), rows):
        some = packed[start : start + rows]
        indices = np.concatenate(some)
        places = [(row, slot) for row, texts in enumerate(some) for slot in range(len(texts))]
        size = rows if start else min(rows, power_of_two(len(some)))
        batches.append(Batch(indices, size, width, np.asarray(places)))
    return batches


def slots_of(width: int) -> int:
    """How many texts a row may hold."""
    return max(1, width // SHORTEST)


def _rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """The texts of each row: the longest first, into the fullest row that has room."""
    rows: list[list[int]] = []
    by_room: list[list[list[int]]] = [[] for _ in range(width + 1)]  # rows by the positions left
    for text in np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist():
        length = lengths[text]
        room = next((room for room in range(length, width) if by_room[room]), width)
        if by_room[room]:
            row = by_room[room].pop()
        else:
            rows.append(row := [])
        row.append(text)
        if len(row) < slots_of(width):
            by_room[room - length].append(row)
    return rows


def packed_rows(
    texts: Sequence[np.ndarray], batch: Batch, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and the segments of a batch's rows, each `(rows, length)`.

    Args:
        texts: the ids of each of the batch's texts.
        batch: where they stand.
        pad: the id of padding.
    """
    ids = np.full((batch.rows, batch.length), pad, np.int32)
    segments, ends = np.zeros_like(ids), np.zeros(batch.rows, np.int64)
    for text, (row, slot) in zip(texts, np.asarray(batch.places).tolist(), strict=True):
        place = slice(ends[row], ends[row] + len(text))
        ids[row, place], segments[row, place] = text, slot + 1
        ends[row] += len(text)
    return ids, segments


def own_text(
    segments: Integer[Array, "batch seq"], causal: bool = False
) -> Bool[Array, "batch seq seq"]:
    """True where a token may look: at its own text, with `causal` only back; padding at padding."""
    same = segments[:, :, None] == segments[:, None, :]
    return same & causal_mask(*same.shape[1:])[0] if causal else same


def numbered(
    counted: Bool[Array, "batch seq"], segments: Integer[Array, "batch seq"] | None = None
) -> Integer[Array, "batch seq"]:
    """How many of the tokens up to each one are counted, in its row or, with segments, its text."""
    numbers = jnp.cumsum(counted, axis=1)
    if segments is None:
        return numbers
    before = jnp.pad(segments, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    starts = jnp.where(segments != before, numbers - counted, 0)
    return numbers - jax.lax.cummax(starts, axis=1)
