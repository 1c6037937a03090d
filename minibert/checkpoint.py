"""Tree ⇄ tensors: the four leaf rules, read in one direction and written in the other.

A leaf's tensor name is its path in the tree; only the last part may differ, by the type of the
module that owns it:

    owner          leaf         tensor     transform
    nnx.Linear     kernel       weight     transpose
    nnx.Embed      embedding    weight     none
    nnx.LayerNorm  scale        weight     none
    anything else  (any)        the same   none
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from minibert.layers import children
from minibert.tensor_files import aligned_empty


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the tree, and the tensor it is on disk.

    Attributes:
        name: the tensor's name, with the trunk's prefix.
        path: the leaf's own path, with the trunk's prefix.
        owner: the module that holds it.
        attribute: its name there.
        transposed: whether the tensor is the array transposed.
    """

    name: str
    path: str
    owner: Any
    attribute: str
    transposed: bool

    @property
    def variable(self) -> Any:
        """The `nnx.Variable`."""
        return getattr(self.owner, self.attribute)

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of the tensor on disk."""
        shape = self.variable.shape
        return shape[::-1] if self.transposed else shape

    def to_file(self) -> np.ndarray:
        """The tensor to write: the leaf on the host, in the file's layout."""
        array = np.asarray(self.variable[...])
        return np.ascontiguousarray(array.T if self.transposed else array)


def leaves(model: Any) -> Iterator[Leaf]:
    """Every leaf of a model, in the order of its construction."""
    return _leaves(model, f"{model.trunk}." if model.is_trunk else "")


def _leaves(module: Any, prefix: str) -> Iterator[Leaf]:
    for key, child in children(module):
        if not isinstance(child, nnx.Variable):
            yield from _leaves(child, f"{prefix}{key}.")
            continue
        tensor, transposed = key, False
        match module, key:
            case nnx.Linear(), "kernel":
                tensor, transposed = "weight", True
            case (nnx.Embed(), "embedding") | (nnx.LayerNorm(), "scale"):
                tensor = "weight"
        yield Leaf(f"{prefix}{tensor}", f"{prefix}{key}", module, key, transposed)


def leaf_array(array: np.ndarray, dtype: np.dtype, *, transpose: bool) -> np.ndarray | str:
    """Makes the array a leaf will hold of the one a checkpoint holds.

    Args:
        array: the checkpoint's numbers.
        dtype: what to store them in.
        transpose: whether the leaf is the array transposed.

    Returns:
        The array; or, where it must not be used, a sentence that says why.
    """
    if not _finite(array):
        return "expected finite numbers, found NaN or infinity"
    if transpose:
        array = _transposed(array)
    if dtype != array.dtype:
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
        if not _finite(array):
            return f"too large for param_dtype {dtype}"
    return array


def stored_dtypes(model: Any) -> dict[str, int]:
    """How many leaves are stored in each dtype, the most common first."""
    return dict(Counter(str(leaf.variable[...].dtype) for leaf in leaves(model)).most_common())


def _transposed(array: np.ndarray, block: int = 128) -> np.ndarray:
    """A transposed copy, a block of rows at a time so that the reads stay in cache."""
    rows, columns = array.shape
    result = aligned_empty(array.nbytes).view(array.dtype).reshape(columns, rows)
    for start in range(0, rows, block):
        result[:, start : start + block] = array[start : start + block].T
    return result


def _finite(array: np.ndarray, chunk: int = 1 << 18) -> bool:
    """Whether no exponent is all ones, by chunks that stay in cache."""
    info = jnp.finfo(array.dtype)
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    sign = 1 << (info.bits - 1)
    exponent = np.array(sign - (1 << info.nmant), bits.dtype)
    return all(
        (bits[start : start + chunk] & exponent).max() != exponent
        for start in range(0, bits.size, chunk)
    )
