"""Rows of different lengths as one batch, and a batch's outputs as rows again."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minibert.nn.numerics import widen
from minibert.text import batching
from minibert.text.batching import Batch

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

Row = Mapping[str, Any]


def length(row: Row) -> int:
    """How many tokens a row `(1, seq)` has."""
    return int(np.shape(row["input_ids"])[-1])


def collated(rows: Sequence[Row], batch: Batch, pad: int, left: bool) -> dict[str, np.ndarray]:
    """The rows of a batch as arrays `(rows, length)`: what goes into a model.

    The batch's spare rows repeat its first, so that every row holds a text.

    Args:
        rows: all rows there are, each a dict of arrays `(1, seq)`; what is no input of a model
            stays out.
        batch: which rows, and the shape.
        pad: the word that fills a row up.
        left: whether it does so on the left.
    """
    chosen = [rows[index] for index in batch.indices]
    here = batch._replace(indices=np.arange(len(chosen)))
    arrays = {}
    for name in [name for name in MODEL_INPUTS if name in chosen[0]]:
        values = [np.reshape(row[name], -1).tolist() for row in chosen]
        arrays[name] = batching.padded(values, here, pad if name == "input_ids" else 0, left)
    if "attention_mask" not in arrays:
        arrays["attention_mask"] = batching.padded(
            [[1] * length(row) for row in chosen], here, 0, left
        )
    for array in arrays.values():
        array[len(chosen) :] = array[0]
    return arrays


def separated(
    outputs: Mapping[str, Any],
    rows: Sequence[Row],
    batch: Batch,
    by_token: Sequence[str],
    left: bool,
) -> list[dict[str, Any]]:
    """A batch's outputs for each of its rows alone: arrays `(1, …)` on the host.

    Args:
        outputs: what `forward` returned for the batch.
        rows: all rows there are; what a row brought with it is in its output too.
        batch: which rows they were.
        by_token: the outputs with an axis of positions behind that of rows; they lose the padding.
        left: whether that is on the left.
    """
    computed = {name: value for name, value in outputs.items() if name not in MODEL_INPUTS}
    computed = jax.tree.map(on_host, computed)
    found = []
    for place, index in enumerate(batch.indices):
        row, size = rows[index], length(rows[index])
        kept = slice(batch.length - size, None) if left else slice(size)

        def alone(array: Any, place: int = place) -> Any:
            return array[place : place + 1]

        def unpadded(array: Any, place: int = place, kept: slice = kept) -> Any:
            return array[place : place + 1, kept]

        own = {
            name: jax.tree.map(unpadded if name in by_token else alone, value)
            for name, value in computed.items()
            if name not in row
        }
        found.append({**row, **own})
    return found


def on_host(array: Any) -> np.ndarray:
    """An array on the host; half precision as float32."""
    array = np.asarray(array)
    half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return widen(array) if half else array
