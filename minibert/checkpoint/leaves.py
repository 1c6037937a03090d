"""Conversion between leaves of the tree and tensors of a file, by the four leaf rules.

The name of a leaf's tensor is its path in the tree; only the last part may differ, depending on the
type of the module that owns the leaf:

    owner          leaf         tensor     transform
    nnx.Linear     kernel       weight     transpose
    Conv1D         kernel       weight     none
    nnx.Embed      embedding    weight     none
    nnx.LayerNorm  scale        weight     none
    anything else  (any)        the same   none

In files of the old Flax classes it is the reverse: a `Conv1D` is transposed, a `Linear` is not.
"""

import dataclasses
import math
import mmap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from minibert.checkpoint.tensors import TensorInfo, TensorSource
from minibert.errors import CheckpointMismatchError, shown
from minibert.nn.layers import Conv1D
from minibert.nn.tree import variables
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import stored


class Expected(NamedTuple):
    """A tensor that a file must contain.

    Attributes:
        path: the path of the leaf that it fills.
        shape: its shape in the file.
        transposed: whether the leaf is the transposed tensor.
    """

    path: str
    shape: tuple[int, ...]
    transposed: bool


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of the tree, and the tensor that stores it in a file.

    Attributes:
        name: the name of the tensor, with the trunk's prefix.
        path: the path of the leaf, with the trunk's prefix.
        owner: the module that owns it.
        attribute: its attribute name in `owner`.
        transposed: the layout (see `TensorSource`) in which the tensor is the transposed array; ""
            if there is none.
    """

    name: str
    path: str
    owner: Any
    attribute: str
    transposed: str

    @property
    def variable(self) -> Any:
        """The `nnx.Variable` that holds the array."""
        return getattr(self.owner, self.attribute)

    def name_in(self, layout: str) -> str:
        """Returns the name of the tensor in a file of a layout."""
        return self.name if layout == "torch" else self.path

    def shape_in(self, layout: str) -> tuple[int, ...]:
        """Returns the shape of the tensor in a file of a layout."""
        shape = self.variable.shape
        return shape[::-1] if self.transposed == layout else shape

    @property
    def expected(self) -> Expected:
        """The tensor that a file of PyTorch's layout must contain for this leaf."""
        return Expected(self.path, self.shape_in("torch"), self.transposed == "torch")

    def fill(self, array: np.ndarray, sharding: Sharding | None) -> None:
        """Moves an array to its devices and stores it in the leaf."""
        placed = jax.device_put(array) if sharding is None else stored(sharding, self.path, array)
        self.variable.set_value(placed)

    def to_file(self, layout: str = "torch") -> np.ndarray:
        """Returns the tensor of the leaf as a file of a layout stores it, on the host."""
        array = np.asarray(self.variable[...])
        # np.ascontiguousarray would add an axis to a scalar
        return np.asarray(array.T if self.transposed == layout else array, order="C")


def leaves(model: Any) -> Iterator[Leaf]:
    """Yields every leaf of a model, in the order of construction."""
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
    """Reads the array of a leaf: each block is checked, cast and copied while it is in the cache.

    Args:
        source: the checkpoint.
        name: the name of the tensor in it.
        dtype: the dtype of the array.
        transpose: whether to transpose the tensor.

    Returns:
        The array; or, if it must not be used, a message that states the reason.
    """
    shape = source.tensors[name].shape
    result = _page_aligned_zeros(shape[::-1] if transpose else shape, dtype)
    rows = np.atleast_1d(result.T if transpose else result)
    for start, block in source.blocks(name):
        if not finite(block):
            return "expected finite numbers, found NaN or infinity"
        if dtype != block.dtype:
            with np.errstate(over="ignore"):
                block = block.astype(dtype)
            if not finite(block):
                return f"expected numbers that fit in param_dtype {dtype}, found larger ones"
        rows[start : start + len(block)] = _padded_copy(block) if transpose else block
    return result


def tensor_faults(name: str, info: TensorInfo, shape: tuple[int, ...]) -> list[str]:
    """Returns messages on how a stored tensor differs from floating-point numbers of a shape."""
    faults = []
    if info.shape != shape:
        faults.append(f"{name!r}: expected shape {shape}, found {shown(info.shape)}")
    if not jnp.issubdtype(info.dtype, jnp.floating) or info.dtype.itemsize < 2:
        faults.append(f"{name!r}: expected floating-point numbers, found {info.dtype}")
    return faults


def needs_x64(dtype: np.dtype, remedy: str) -> str:
    """Returns a message if JAX would narrow a dtype, which ends with `remedy`; otherwise ""."""
    narrowed = dtype != jax.dtypes.canonicalize_dtype(dtype)
    return f"{dtype} needs jax.enable_x64(True){remedy}" if narrowed else ""


def read_exactly(
    source: TensorSource,
    where: str,
    expected: Mapping[str, Expected],
    dtype_of: Callable[[np.dtype], DTypeLike],
    remedy: str = "",
) -> dict[str, jax.Array]:
    """Reads the tensors of a source that must contain the expected ones and no others.

    Args:
        source: the tensors, in PyTorch's layout.
        where: the file or folder, for messages.
        expected: the tensors by name.
        dtype_of: maps the stored dtype of a tensor to that of its leaf.
        remedy: an alternative to 64-bit mode for a dtype that JAX would narrow, for messages.

    Returns:
        The arrays by the paths of their leaves.

    Raises:
        CheckpointMismatchError: a tensor is missing, unexpected, of a different shape, not
            of floating-point numbers, not finite, or of a dtype that JAX does not have.
    """
    found = source.tensors
    faults = [f"{name!r}: missing" for name in expected.keys() - found.keys()]
    faults += [f"{shown(name)}: unexpected" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        faults += tensor_faults(name, found[name], expected[name].shape)
    arrays = {}
    for name, (path, _, transposed) in {} if faults else expected.items():
        dtype = np.dtype(dtype_of(found[name].dtype))
        array = needs_x64(dtype, remedy) or leaf_array(source, name, dtype, transpose=transposed)
        if isinstance(array, str):
            faults.append(f"{name!r}: {array}")
        else:
            arrays[path] = jax.device_put(array)
    if faults:
        raise CheckpointMismatchError(where, sorted(faults))
    return arrays


def stored_dtypes(model: nnx.Module) -> dict[str, int]:
    """Returns the number of leaves stored in each dtype, the most common first."""
    return dict(Counter(str(leaf.variable[...].dtype) for leaf in leaves(model)).most_common())


def _page_aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array of zeros aligned to a page, which JAX uses without a copy.

    NumPy's own arrays request huge pages. In a virtual machine whose host reclaims free memory,
    those were filled at 0.4 GB/s, small pages at 2 GB/s: here the system chooses the page size.
    """
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype).reshape(shape)


def _padded_copy(block: np.ndarray) -> np.ndarray:
    """Returns a copy whose columns are read three to six times as fast as those of the block.

    The stride of its rows is an odd number of cache lines. A row of 768 or 3072 numbers takes a
    multiple of 16 lines: the numbers of a column then compete for a few sets of the L1 cache.
    """
    rows, columns = block.shape
    lines = -(-columns * block.itemsize // 64) | 1
    spread = np.empty((rows, lines * 64 // block.itemsize), block.dtype)[:, :columns]
    spread[...] = block
    return spread


def finite(array: np.ndarray) -> bool:
    """Returns whether all numbers are finite: no exponent consists of ones only."""
    info = jnp.finfo(array.dtype)
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    sign = 1 << (info.bits - 1)
    exponent = np.array(sign - (1 << info.nmant), bits.dtype)
    return bool((bits & exponent).max() != exponent)
