"""Embeddings in fewer bits: a byte or a bit a number.

What sentence-transformers' `quantize_embeddings` computes (`util/quantization.py`).
"""

from typing import Any

import numpy as np

from minibert.errors import InputError, shown
from minibert.similarity import vectors

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
STEPS = 255


def quantize_embeddings(
    embeddings: Any,
    precision: str,
    ranges: Any = None,
    calibration_embeddings: Any = None,
) -> np.ndarray:
    """Embeddings in fewer bits.

    Args:
        embeddings: `(texts, dim)`, or one `(dim,)`.
        precision: `float32`; `int8` or `uint8`, where each feature's range becomes 256 steps;
            `binary` or `ubinary`, where the signs of eight features become the bits of a signed or
            unsigned byte.
        ranges: `(2, dim)`, the least and the greatest number of each feature, for `int8` and
            `uint8`.
        calibration_embeddings: `(texts, dim)` to take the ranges from; by default the embeddings
            themselves, of which there must be two at least.

    Returns:
        `(texts, dim)`, or `(texts, ⌈dim / 8⌉)` of bits.

    Raises:
        InputError: there is no such precision, or nothing to take ranges from.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise InputError(f"precision: expected one of {known}; found {shown(precision)}")
    if np.asarray(embeddings).dtype.kind in "iu":
        raise InputError("embeddings: expected floating-point numbers, found whole ones")
    floats = vectors(embeddings)
    match precision:
        case "float32":
            return floats.astype(np.float32)
        case "binary":
            return (np.packbits(floats > 0, axis=-1).astype(np.int16) - 128).astype(np.int8)
        case "ubinary":
            return np.packbits(floats > 0, axis=-1)
    if floats.shape[0] == 0:
        return floats.astype(precision)
    least, greatest = _ranges(floats, precision, ranges, calibration_embeddings)
    step = (greatest - least) / STEPS
    levels = np.clip(np.floor((floats - least) / np.where(step == 0, 1, step)), 0, STEPS)
    return (levels - 128 if precision == "int8" else levels).astype(precision)


def _ranges(floats: np.ndarray, precision: str, ranges: Any, calibration: Any) -> np.ndarray:
    dim = floats.shape[-1]
    if ranges is not None:
        found = vectors(ranges).astype(np.float32)
        if found.shape != (2, dim):
            raise InputError(f"ranges: expected shape (2, {dim}), found {found.shape}")
        return found
    known = floats if calibration is None else vectors(calibration)
    if known.ndim == 1 or (calibration is None and len(known) < 2):
        raise InputError(
            f"precision: {precision} takes each feature's range from many embeddings, and there is "
            "one; give quantize_embeddings ranges or calibration_embeddings"
        )
    if known.shape[1] != dim or not len(known):
        raise InputError(f"calibration_embeddings: expected (texts, {dim}), found {known.shape}")
    return np.stack([known.min(axis=0), known.max(axis=0)]).astype(np.float32)
