"""Tree ⇄ tensors: the four leaf rules, read in one direction and written in the other.

A leaf's tensor name is its path in the tree; only the last part may differ, by the type of the
module that owns it:

    owner          leaf         tensor     transform
    nnx.Linear     kernel       weight     transpose
    Conv1D         kernel       weight     none
    nnx.Embed      embedding    weight     none
    nnx.LayerNorm  scale        weight     none
    anything else  (any)        the same   none

The old Flax classes had it the other way round: there a `Linear` is not transposed, a `Conv1D` is.
"""

import dataclasses
import math
import mmap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from minibert.checkpoint.tensors import TensorSource
from minibert.nn.layers import Conv1D
from minibert.nn.tree import variables
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import stored


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the tree, and the tensor it is on disk.

    Attributes:
        name: the tensor's name, with the trunk's prefix.
        path: the leaf's own path, with the trunk's prefix.
        owner: the module that holds it.
        attribute: its name there.
        transposed: the layout (see `TensorSource`) in which the tensor is the array transposed; ""
            when there is none.
    """

    name: str
    path: str
    owner: Any
    attribute: str
    transposed: str

    @property
    def variable(self) -> Any:
        """The `nnx.Variable`."""
        return getattr(self.owner, self.attribute)

    def name_in(self, layout: str) -> str:
        """The name of the tensor in a file of that layout."""
        return self.name if layout == "torch" else self.path

    def shape_in(self, layout: str) -> tuple[int, ...]:
        """The shape of the tensor in a file of that layout."""
        shape = self.variable.shape
        return shape[::-1] if self.transposed == layout else shape

    def fill(self, array: Any, sharding: Sharding | None) -> None:
        """Puts an array there, on its devices."""
        placed = jax.device_put(array) if sharding is None else stored(sharding, self.path, array)
        self.variable.set_value(placed)

    def to_file(self, layout: str = "torch") -> np.ndarray:
        """The tensor to write: the leaf on the host, as a file of that layout keeps it."""
        array = np.asarray(self.variable[...])
        # numpy's ascontiguousarray would give a single number an axis
        return np.asarray(array.T if self.transposed == layout else array, order="C")


def leaves(model: Any) -> Iterator[Leaf]:
    """Every leaf of a model, in the order of its construction."""
    prefix = model.tensor_prefix
    for path, _, owner in variables(model):
        parent, dot, key = f"{prefix}{path}".rpartition(".")
        tensor, transposed = key, ""
        match owner, key:
            case Conv1D(), "kernel":
                tensor, transposed = "weight", "flax"
            case nnx.Linear(), "kernel":
                tensor, transposed = "weight", "torch"
            case (nnx.Embed(), "embedding") | (nnx.LayerNorm(), "scale"):
                tensor = "weight"
        yield Leaf(f"{parent}{dot}{tensor}", f"{prefix}{path}", owner, key, transposed)


def leaf_array(
    source: TensorSource, name: str, dtype: np.dtype, *, transpose: bool
) -> np.ndarray | str:
    """Reads the array a leaf will hold: each block is checked, cast and put in its place in cache.

    Args:
        source: the checkpoint.
        name: the tensor's name there.
        dtype: what to store the numbers in.
        transpose: whether the leaf is the tensor transposed.

    Returns:
        The array; or, where it must not be used, a sentence that says why.
    """
    shape = source.tensors[name].shape
    result = _fresh(shape[::-1] if transpose else shape, dtype)
    rows = np.atleast_1d(result.T if transpose else result)
    for start, block in source.blocks(name):
        if not finite(block):
            return "expected finite numbers, found NaN or infinity"
        if dtype != block.dtype:
            with np.errstate(over="ignore"):
                block = block.astype(dtype)
            if not finite(block):
                return f"too large for param_dtype {dtype}"
        rows[start : start + len(block)] = _spread(block) if transpose else block
    return result


def stored_dtypes(model: Any) -> dict[str, int]:
    """How many leaves are stored in each dtype, the most common first."""
    return dict(Counter(str(leaf.variable[...].dtype) for leaf in leaves(model)).most_common())


def _fresh(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of zeros on pages of its own: so aligned that JAX adopts it without a copy.

    numpy's own arrays ask for large pages. In a virtual machine whose host takes back what is
    free, those were filled at 0.4 GB/s, small pages at 2: the system is left to choose.
    """
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype).reshape(shape)


def _spread(block: np.ndarray) -> np.ndarray:
    """A copy to be read down its columns, three to six times as fast as the block itself.

    Its rows lie an odd number of cache lines apart. A row of 768 or 3072 numbers takes a multiple
    of 16 lines: the numbers of a column then compete for a few places of the first-level cache.
    """
    rows, columns = block.shape
    lines = -(-columns * block.itemsize // 64) | 1
    spread = np.empty((rows, lines * 64 // block.itemsize), block.dtype)[:, :columns]
    spread[...] = block
    return spread


def finite(array: np.ndarray) -> bool:
    """Whether no exponent is all ones."""
    info = jnp.finfo(array.dtype)
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    sign = 1 << (info.bits - 1)
    exponent = np.array(sign - (1 << info.nmant), bits.dtype)
    return bool((bits & exponent).max() != exponent)
