"""Types of arguments that many functions have, under names that users know."""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypedDict

import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


class HasArray(Protocol):
    """What NumPy makes an array of: a tensor of another library, a column of a table."""

    def __array__(self) -> np.ndarray: ...


AnyArray = Array | np.ndarray
ArrayLike = Array | np.ndarray | HasArray | Sequence[Any] | float
Dtype = DTypeLike | None
Path = str | os.PathLike[str]
Rngs = nnx.Rngs | None
Size = int  # of an array: while a program is exported, it may be a symbol
Texts = str | Iterable[str]


class Options(TypedDict):
    """How layers are built: with random keys, or None for shapes; computing in and storing what."""

    rngs: Rngs
    dtype: Dtype
    param_dtype: DTypeLike
