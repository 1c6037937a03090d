"""Numerical helpers: wider dtypes, unit vectors, and checks that outputs are finite."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from minibert.core.types import AnyArray
from minibert.nn.tree import computing_dtypes, parameters

EPSILON = 1e-12  # torch.nn.functional.normalize divides a vector of zeros by it


def wide_dtype(dtype: DTypeLike) -> Any:
    """Returns float64 for float64, and float32 for every narrower dtype.

    (Under `jax.numpy_dtype_promotion("strict")`, `jnp.promote_types` of two dtypes is an error.)
    """
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def common_dtype(*dtypes: np.dtype) -> Any:
    """Returns the narrowest dtype that holds all numbers of some floating-point dtypes."""
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    alike = all(dtype == widest or dtype.itemsize < widest.itemsize for dtype in dtypes)
    return widest if alike else np.dtype(np.float32)  # of float16 and bfloat16


def added(one: Array, other: Array) -> Array:
    """Returns the sum of two arrays, in the narrowest dtype that holds the numbers of both."""
    dtype = common_dtype(one.dtype, other.dtype)
    return one.astype(dtype) + other.astype(dtype)


def widen(array: Any) -> Any:
    """Returns an array of NumPy or of JAX in float32 or wider."""
    return array.astype(wide_dtype(array.dtype))


def unit(vectors: AnyArray) -> Any:
    """Scales vectors to length 1 along the last axis.

    A vector whose squares would overflow or underflow is first multiplied by a power of two, which
    is exact; all others are computed as `torch.nn.functional.normalize` computes them. A vector of
    zeros stays zero, and its gradient is PyTorch's, that of a division by `EPSILON`. (PyTorch
    divides all vectors shorter than `EPSILON` by it, and turns those longer than 1e19 into zeros.)

    Args:
        vectors: `(..., dim)` of float32 or float64, of NumPy or JAX. JAX's compiler may treat
            subnormal numbers as zeros.

    Returns:
        An array of the same kind, shape and dtype. NaN and infinity are not checked for.
    """
    return _on_host(vectors) if isinstance(vectors, np.ndarray) else _on_device(vectors)


def extreme(vectors: np.ndarray) -> np.ndarray:
    """Returns which vectors `(..., dim)` have squares that overflow or underflow, `(...)`.

    Components much smaller than the largest one of their vector are disregarded.
    """
    with np.errstate(over="ignore", under="ignore"):
        found = out_of_range(np.einsum("...i,...i->...", vectors, vectors))
    return (
        found & vectors.any(axis=-1) if found.any() else found
    )  # vectors of zeros are not extreme


def out_of_range(sums: np.ndarray) -> np.ndarray:
    """Returns which sums of products are so large or small that some may have over- or underflowed.

    Args:
        sums: magnitudes of any shape, in float32 or float64.
    """
    bits = np.finfo(sums.dtype).maxexp
    return ~((sums >= 2.0 ** (-bits * 5 // 8)) & (sums <= 2.0 ** (bits * 3 // 4)))


def in_range(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divides vectors `(..., dim)` that are `extreme` by powers of two, which is exact.

    Returns:
        The vectors, and the exponents `(...)` of their divisors; 0 for all other vectors.
    """
    found = extreme(vectors)
    if not found.any():
        return vectors, np.zeros(found.shape, np.int32)
    largest = np.abs(vectors).max(axis=-1, initial=0)
    exponents = np.where(found, np.frexp(largest)[1], 0).astype(np.int32)
    return np.ldexp(vectors, -exponents[..., None]), exponents


def _on_host(vectors: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        squares = (vectors**2).sum(axis=-1, keepdims=True)
    if out_of_range(squares).any():
        vectors, _ = in_range(vectors)
        squares = (vectors**2).sum(axis=-1, keepdims=True)
    return vectors / np.sqrt(np.where(squares == 0, 1, squares))


def _on_device(vectors: jax.Array) -> jax.Array:
    bits = np.finfo(vectors.dtype).maxexp
    up, down = 2.0 ** (bits * 25 // 32), 2.0 ** (-bits * 5 // 8)
    small, large = 2.0 ** (-bits * 5 // 16), 2.0 ** (bits * 3 // 8)
    largest = jnp.abs(jax.lax.stop_gradient(vectors)).max(axis=-1, keepdims=True, initial=0)
    scale = jnp.where(largest > large, down, jnp.where(largest < small, up, 1.0))
    zero = largest == 0
    scaled = vectors * jnp.where(zero, 1 / EPSILON, scale).astype(vectors.dtype)
    squares = (scaled**2).sum(axis=-1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(zero, 1, squares))  # the square root of 0 has no gradient


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

    It is if the max of each row is finite: -inf excludes an outcome, but a row with NaN, with +inf
    or with only -inf has no probabilities.
    """
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(scores.max(axis=-1)).all())


@jax.jit
def each_finite(arrays: list[Array]) -> list[Array]:
    """Returns whether each array is finite, computed on its device."""
    return [jnp.isfinite(array).all() for array in arrays]


def cause(model: nnx.Module) -> str:
    """Returns a message that states why a model's outputs are not finite, and what to do."""
    known = parameters(model)
    found = jax.device_get(each_finite(list(known.values())))
    if wrong := [path for path, finite in zip(known, found, strict=True) if not finite]:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"the parameter {wrong[0]}{more} is not finite; reload the model"
    if "float16" in {*computing_dtypes(model), *(str(leaf.dtype) for leaf in known.values())}:
        return "float16 overflows above 65504; load the model with dtype float32 or bfloat16"
    return "every parameter is finite, but an intermediate value overflowed"


def quoted(value: object) -> str:
    """Returns the beginning of an input, for messages."""
    text = repr(value[: MAX_QUOTED + 1] if isinstance(value, str) else value)
    return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…"


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the `count` highest scores, in order; the first of equal ones."""
    candidates = np.arange(len(scores))
    if count < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]
