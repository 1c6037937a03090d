"""Collation of rows of different lengths to a batch, and separation of a batch's outputs."""

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

# Arrays by name, and other entries of an input.
Arrays = Mapping[str, Any]


def length(row: Arrays) -> int:
    """Returns the number of tokens of a row `(1, seq)`."""
    return int(np.shape(row["input_ids"])[-1])


def collated(rows: Sequence[Arrays], batch: Batch, pad: int, left: bool) -> dict[str, np.ndarray]:
    """Returns the model inputs of a batch as arrays `(rows, length)`.

    Unused rows repeat the first, so that every row holds a text.

    Args:
        rows: the batch's rows, each a dict of arrays `(1, seq)`; entries that are not model inputs
            are left out.
        batch: the shape.
        pad: the pad token.
        left: whether to pad on the left.
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
    """Returns the outputs of each row of a batch: arrays `(1, …)` on the host.

    Args:
        outputs: the outputs of `forward` for the batch.
        rows: the batch's rows, whose entries are included in the results.
        batch: the shape.
        by_token: the outputs whose second axis is that of positions; their padding is removed.
        left: whether rows are padded on the left.
    """
    computed = {name: value for name, value in outputs.items() if name not in MODEL_INPUTS}
    computed = jax.tree.map(on_host, computed)
    found = []
    for index, row in enumerate(rows):
        size = length(row)
        kept = slice(batch.length - size, None) if left else slice(size)
        alone = operator.itemgetter(slice(index, index + 1))
        unpadded = operator.itemgetter((slice(index, index + 1), kept))
        own = {
            name: jax.tree.map(unpadded if name in by_token else alone, value)
            for name, value in computed.items()
            if name not in row
        }
        found.append({**row, **own})
    return found


def on_host(array: AnyArray) -> np.ndarray:
    """Copies an array to the host; half precision becomes float32."""
    array = np.asarray(jax.device_get(array))
    half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return widen(array) if half else array
