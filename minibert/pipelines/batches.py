"""Rows of different lengths as one batch, and a batch's outputs as rows again."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from minibert.core.types import AnyArray
from minibert.nn.numerics import widen
from minibert.text.batching import Batch, padded

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

# Arrays by name, and whatever else belongs to an input.
Arrays = Mapping[str, Any]


def length(row: Arrays) -> int:
    """How many tokens a row `(1, seq)` has."""
    return int(np.shape(row["input_ids"])[-1])


def collated(rows: Sequence[Arrays], batch: Batch, pad: int, left: bool) -> dict[str, np.ndarray]:
    """The rows of a batch as arrays `(rows, length)`: what goes into a model.

    The batch's spare rows repeat its first, so that every row holds a text.

    Args:
        rows: the batch's rows, each a dict of arrays `(1, seq)`; what is no input of a model stays
            out.
        batch: the shape.
        pad: the word that fills a row up.
        left: whether it does so on the left.
    """
    here = batch._replace(indices=np.arange(len(rows)))
    arrays = {}
    for name in MODEL_INPUTS:
        if name in rows[0]:
            values = [np.reshape(row[name], -1).tolist() for row in rows]
        elif name == "attention_mask":
            values = [[1] * length(row) for row in rows]
        else:
            continue
        arrays[name] = padded(values, here, pad if name == "input_ids" else 0, left)
        arrays[name][len(rows) :] = arrays[name][0]
    return arrays


def separated(
    outputs: Arrays,
    rows: Sequence[Arrays],
    batch: Batch,
    by_token: Sequence[str],
    left: bool,
) -> list[dict[str, Any]]:
    """A batch's outputs for each of its rows alone: arrays `(1, …)` on the host.

    Args:
        outputs: what `forward` returned for the batch.
        rows: its rows; what a row brought with it is in its output too.
        batch: the shape.
        by_token: the outputs with an axis of positions behind that of rows; they lose the padding.
        left: whether that is on the left.
    """
    computed = {name: value for name, value in outputs.items() if name not in MODEL_INPUTS}
    computed = jax.tree.map(on_host, computed)
    found = []
    for place, row in enumerate(rows):
        size = length(row)
        kept = slice(batch.length - size, None) if left else slice(size)
        alone = operator.itemgetter(slice(place, place + 1))
        unpadded = operator.itemgetter((slice(place, place + 1), kept))
        own = {
            name: jax.tree.map(unpadded if name in by_token else alone, value)
            for name, value in computed.items()
            if name not in row
        }
        found.append({**row, **own})
    return found


def on_host(array: AnyArray) -> np.ndarray:
    """An array on the host; half precision as float32."""
    array = np.asarray(array)
    half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return widen(array) if half else array
