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
    """A tensor that a file must have.

    Attributes:
        path: the path of the leaf that it fills.
        shape: its shape in the file.
        transposed: whether the leaf is the tensor transposed.
    """

    path: str
    shape: tuple[int, ...]
    transposed: bool


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

    @property
    def expected(self) -> Expected:
        """What a file of PyTorch's layout must have for it."""
        return Expected(self.path, self.shape_in("torch"), self.transposed == "torch")

    def fill(self, array: np.ndarray, sharding: Sharding | None) -> None:
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


def tensor_faults(name: str, info: TensorInfo, shape: tuple[int, ...]) -> list[str]:
    """Says in what a stored tensor is not one of floating-point numbers of a shape."""
    faults = []
    if info.shape != shape:
        faults.append(f"{name!r}: expected shape {shape}, found {shown(info.shape)}")
    if not jnp.issubdtype(info.dtype, jnp.floating) or info.dtype.itemsize < 2:
        faults.append(f"{name!r}: expected floating-point numbers, found {info.dtype}")
    return faults


def needs_x64(dtype: np.dtype, remedy: str) -> str:
    """Says of a dtype that JAX would narrow what it needs, or else `remedy`; "" of any other."""
    narrowed = dtype != jax.dtypes.canonicalize_dtype(dtype)
    return f"{dtype} needs jax.enable_x64(True){remedy}" if narrowed else ""


def read_exactly(
    source: TensorSource,
    where: str,
    expected: Mapping[str, Expected],
    dtype_of: Callable[[np.dtype], DTypeLike],
    remedy: str = "",
) -> dict[str, jax.Array]:
    """Reads the tensors of a source that has the expected ones and no others.

    Args:
        source: the tensors, in PyTorch's layout.
        where: the file or folder, for messages.
        expected: the tensors by name.
        dtype_of: from the stored dtype of a tensor to that of its leaf.
        remedy: what the caller may do about a dtype that JAX would narrow, for messages.

    Returns:
        The arrays by their leaves' paths.

    Raises:
        CheckpointMismatchError: a tensor is missing, unexpected, of another shape, not of
            floating-point numbers, not finite, or of a dtype that JAX does not have.
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
