"""Checks that a model's outputs are finite, and the cause if they are not."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.nn.tree import computing_dtypes, parameters

MAX_QUOTED = 48  # characters of an input that a message quotes


def is_finite(values: np.ndarray) -> bool:
    """Returns whether an array of float32 or float64 holds neither NaN nor infinity."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # a sum of squares is not finite if a number is not, and takes one pass without a temporary
        return bool(np.isfinite(flat @ flat)) or bool(np.isfinite(flat).all())


def rows_not_finite(rows: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """Returns the indices of the rows that hold NaN or infinity."""
    if isinstance(rows, np.ndarray) and is_finite(rows):
        return []
    return [index for index, row in enumerate(rows) if not is_finite(row)]


def scores_defined(scores: np.ndarray) -> bool:
    """Returns whether the softmax over the last axis is defined.

    It is if the max of each row is finite: -inf excludes an outcome, but with NaN, with +inf or
    with -inf alone a row has no probabilities.
    """
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(scores.max(axis=-1)).all())


@jax.jit
def each_finite(arrays: list[Array]) -> list[Array]:
    """Returns for each array whether it is finite, computed on its device."""
    return [jnp.isfinite(array).all() for array in arrays]


def cause(model: Any) -> str:
    """Returns why a model's outputs are not finite, and what to do."""
    known = parameters(model)
    found = jax.device_get(each_finite(list(known.values())))
    wrong = [path for path, finite in zip(known, found, strict=True) if not finite]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"the parameter {wrong[0]}{more} is not finite; reload the model"
    if "float16" in {*computing_dtypes(model), *(str(leaf.dtype) for leaf in known.values())}:
        return "float16 overflows above 65504; load the model with dtype float32 or bfloat16"
    return "every parameter is finite, but an intermediate value overflowed"


def quoted(value: Any) -> str:
    """Returns the beginning of an input, for messages."""
    text = repr(value[: MAX_QUOTED + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"
