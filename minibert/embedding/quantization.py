"""Quantization of embeddings to one byte or one bit for each dimension.

Follows sentence-transformers' `quantize_embeddings` (`util/quantization.py`).
"""

import jax.numpy as jnp
import numpy as np

from minibert.core.checks import as_array, check_choice
from minibert.core.types import ArrayLike
from minibert.embedding.similarity import vectors
from minibert.errors import InputError
from minibert.nn.numerics import is_finite

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
STEPS = 255
SMALLEST = np.finfo(np.float32).tiny  # a smaller step loses digits in float32


def quantize_embeddings(
    embeddings: ArrayLike,
    precision: str,
    ranges: ArrayLike | None = None,
    calibration_embeddings: ArrayLike | None = None,
) -> np.ndarray:
    """Quantizes embeddings.

    Args:
        embeddings: `(texts, dim)`, or one `(dim,)`.
        precision: `float32`; `int8` or `uint8`, where each feature's range is divided into 256
            levels; `binary` or `ubinary`, where the signs of eight features are the bits of a
            signed or unsigned byte.
        ranges: `(2, dim)`, the min and max of each feature, for `int8` and `uint8`.
        calibration_embeddings: `(texts, dim)` from which ranges are computed; by default the
            embeddings themselves, at least two.

    Returns:
        `(texts, dim)`, or `(texts, ⌈dim / 8⌉)` packed bits.

    Raises:
        InputError: if there is no such precision, or nothing to compute ranges from; if embeddings
            are not floating-point numbers, or one is NaN, infinite or beyond float32; if a range is
            reversed.
    """
    check_choice("precision", precision, PRECISIONS)
    array = as_array("embeddings", embeddings)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"embeddings: expected floating-point numbers, found {array.dtype}")
    floats = vectors("embeddings", array)
    match precision:
        case "float32":
            return _float32("embeddings", floats)
        case "ubinary":
            return np.packbits(floats > 0, axis=-1)
        case "binary":
            return (np.packbits(floats > 0, axis=-1).astype(np.int16) - 128).astype(np.int8)
    if floats.shape[0] == 0:
        return floats.astype(precision)
    least, greatest = _ranges(floats, precision, ranges, calibration_embeddings)
    with np.errstate(over="ignore"):
        step = (greatest - least) / np.float32(STEPS)
        if not (((step >= SMALLEST) | (greatest == least)) & (step < np.inf)).all():
            least, greatest = least.astype(np.float64), greatest.astype(np.float64)
            step = (greatest - least) / STEPS
        levels = np.clip(np.floor((floats - least) / np.where(step == 0, 1, step)), 0, STEPS)
    return (levels - 128 if precision == "int8" else levels).astype(precision)


def _ranges(
    floats: np.ndarray, precision: str, ranges: ArrayLike | None, calibration: ArrayLike | None
) -> np.ndarray:
    dim = floats.shape[-1]
    if ranges is not None:
        found = _float32("ranges", vectors("ranges", ranges))
        if found.shape != (2, dim):
            raise InputError(f"ranges: expected shape (2, {dim}), found {found.shape}")
        if (reversed_ := np.flatnonzero(found[0] > found[1])).size:
            feature = reversed_[0]
            raise InputError(
                f"ranges: expected the smallest numbers in row 0 and the largest in row 1; feature "
                f"{feature} has {found[0, feature]} and {found[1, feature]}"
            )
        return found
    known = floats if calibration is None else vectors("calibration_embeddings", calibration)
    if known.ndim == 1 or (calibration is None and len(known) < 2):
        raise InputError(
            f"precision: {precision} needs at least two embeddings to compute each feature's "
            "range, found fewer; pass ranges, or calibration_embeddings to quantize_embeddings"
        )
    if known.shape[1] != dim or not len(known):
        raise InputError(f"calibration_embeddings: expected (texts, {dim}), found {known.shape}")
    return _float32("embeddings", np.stack([known.min(axis=0), known.max(axis=0)]))


def _float32(name: str, values: np.ndarray) -> np.ndarray:
    """Converts numbers to float32; raises an `InputError` if one overflows."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(np.float32)
    if not is_finite(narrow):
        raise InputError(f"{name}: expected numbers within float32's range, found larger ones")
    return narrow
