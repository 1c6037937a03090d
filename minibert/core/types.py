"""Types of arguments that many functions have, under names that users know."""

import os
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

AnyArray = Array | np.ndarray
Dtype = DTypeLike | None
Path = str | os.PathLike[str]
Rngs = nnx.Rngs | None
Size = int  # of an array: while a program is exported, it may be a symbol
Texts = str | Iterable[str]


class Options(TypedDict):
    """How layers are built: random keys, or None for shapes; and what to compute in and store."""

    rngs: Rngs
    dtype: Dtype
    param_dtype: DTypeLike


__all__ = ["AnyArray", "ArrayLike", "Dtype", "Options", "Path", "Rngs", "Size", "Texts"]
