"""Arrays on the devices that a `Sharding` says: put there, used there, and taken off again."""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import DictKey

from minibert.core.types import AnyArray
from minibert.errors import InputError
from minibert.nn.tree import Structure, parameters
from minibert.sharding.mesh import Sharding


def put(sharding: Sharding, path: str, array: AnyArray) -> Array:
    """A parameter on its devices, in its shape in training; a copy."""
    return _placed(sharding, path, array, sharding.shape(path, array.shape))


def stored(sharding: Sharding, path: str, array: AnyArray) -> Array:
    """A parameter on its devices, in the shape it has; a copy."""
    return _placed(sharding, path, array, array.shape)


def _placed(sharding: Sharding, path: str, array: AnyArray, shape: tuple[int, ...]) -> Array:
    """A parameter's numbers in a shape, where one of that shape is stored; made part by part."""
    where = sharding.of(path, shape)
    if isinstance(array, jax.Array) and array.sharding.device_set == where.device_set:
        return _copier(_split_rows(array, where), shape, where)(array)
    host = np.asarray(array).reshape(shape)
    return jax.make_array_from_callback(shape, where, lambda index: np.array(host[index]))


def _split_rows(array: Array, where: NamedSharding) -> NamedSharding:
    """All that splits an array, splitting its first dimension, which reshaping leaves as it is."""
    there = array.sharding
    alike = isinstance(there, NamedSharding) and there.mesh == where.mesh
    axes = tuple(jax.tree.leaves(tuple(there.spec))) if alike else ()
    even = len(array) % math.prod(where.mesh.shape[axis] for axis in axes) == 0
    return NamedSharding(where.mesh, PartitionSpec(axes if even and axes else None))


@functools.lru_cache(maxsize=256)
def _copier(rows: NamedSharding, shape: tuple[int, ...], where: NamedSharding) -> Any:
    def copy(array: Array) -> Array:
        if array.shape == shape:
            return jnp.copy(array)
        if len(array) == shape[0]:
            array = jax.lax.with_sharding_constraint(array, rows)
            return jax.lax.with_sharding_constraint(array.reshape(shape), rows)
        return array.reshape(shape)  # a bias

    return jax.jit(copy, out_shardings=where)


def taken(
    sharding: Sharding, arrays: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """Parameters in their model's own shapes; those that had them stay as they are."""
    return {
        path: array if array.shape == shapes[path] else _placed(sharding, path, array, shapes[path])
        for path, array in arrays.items()
    }


def shardings_of(sharding: Sharding, tree: Any, params: Mapping[str, Any]) -> Any:
    """Where the leaves of a tree live: with the parameter whose path they have, else everywhere."""

    def where(keys: tuple[Any, ...], leaf: Array) -> NamedSharding:
        path = next((key.key for key in reversed(keys) if isinstance(key, DictKey)), "")
        if path in params and leaf.shape == params[path].shape:
            return sharding.of(path, leaf.shape)
        return sharding.everywhere

    return jax.tree.map_with_path(where, tree)


def put_batch(sharding: Sharding, batch: dict[str, np.ndarray]) -> dict[str, Array]:
    """This process's rows of a batch on its devices; together, the processes' are the batch."""
    return jax.tree.map(
        functools.partial(jax.make_array_from_process_local_data, sharding.batch), batch
    )


def check_shares(sharding: Sharding, batch: dict[str, np.ndarray]) -> None:
    """Checks that processes with one share of a batch's rows give the same; all have to call it.

    Raises:
        InputError: they do not; in every process.
    """
    index, count = sharding.share
    octets = b"".join(name.encode() + batch[name].tobytes() for name in sorted(batch))
    checksum = zlib.crc32(octets) >> 1  # JAX's integers have 31 bits and a sign
    own = np.array([index, checksum, len(next(iter(batch.values())))], np.int32)
    check_table(multihost_utils.process_allgather(own).tolist(), count)


def check_table(table: list[list[int]], count: int) -> None:
    """Checks what the processes give: a share, the checksum of its rows, how many there are.

    Raises:
        InputError: two processes with one share give other rows, or not all give as many.
    """
    first: dict[int, int] = {}
    for process, (share, checksum, _) in enumerate(table):
        before = first.setdefault(share, process)
        if table[before][1] != checksum:
            raise InputError(
                f"batch: processes {before} and {process} both have share {share} of {count}, but "
                "give other rows; make the data with share=sharding.share"
            )
    if len({rows for _, _, rows in table}) > 1:
        raise InputError(
            f"batch: expected as many rows of every process, found {[row[2] for row in table]}"
        )


def check_rows(sharding: Sharding, batch: dict[str, np.ndarray], parts: int) -> None:
    """Checks that a batch's rows can be split over devices, in each of some parts.

    Raises:
        InputError: they cannot.
    """
    count = len(next(iter(batch.values())))
    shares = sharding.rows_here * parts
    if count % shares:
        times = f" × {parts} parts" if parts > 1 else ""
        raise InputError(
            f"batch: {count} rows in this process cannot be split over {sharding.rows_here} "
            f"devices{times}; expected a multiple of {shares}"
        )


def gathered(sharding: Sharding, path: str, array: Array) -> Array:
    """In a traced program: a parameter as it is used; its gradient is put as it is stored."""
    stored = sharding.of(path, array.shape)
    used = NamedSharding(sharding.mesh, sharding.used_spec(path, array.shape))
    return array if stored.spec == used.spec else _moved(used, stored, array)


def gathered_module(sharding: Sharding, module: nnx.Module, but: str = "") -> Any:
    """In a traced program: a module with its parameters as they are used.

    Args:
        sharding: where that is.
        module: the module.
        but: the place of blocks, which are left as they are stored: each gathers its own.
    """
    arrays = parameters(module)
    for path, array in arrays.items():
        if not (but and path.startswith(but)):
            arrays[path] = gathered(sharding, path, array)
    return Structure(module).build(arrays)


def by_rows(sharding: Sharding, hidden: Array, *, last: bool = False) -> Array:
    """In a traced program: hidden states `(batch, seq, hidden)`, rows split as a batch's are.

    Args:
        sharding: where that is.
        hidden: the hidden states.
        last: whether a head follows. Its work is split by position over the tensor axes: a device
            has all scores of some positions, not a summand of every score.
    """
    even = hidden.shape[1] % sharding.size(sharding.tensor) == 0
    spec = PartitionSpec(sharding.rows, sharding.tensor if last and even else None)
    return jax.lax.with_sharding_constraint(hidden, NamedSharding(sharding.mesh, spec))


def on_host(model: nnx.Module) -> Any:
    """The model with its arrays whole in this host's memory, put together one at a time.

    Every process has to call it; then any may save it.
    """
    arrays = {
        path: multihost_utils.process_allgather(array, tiled=True)
        if not array.is_fully_addressable
        else np.asarray(array)
        for path, array in parameters(model).items()
    }
    return Structure(model).build(arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _moved(there: NamedSharding, back: NamedSharding, array: AnyArray) -> Array:
    """In a traced program: an array as it lives there; its gradient lives as `back` says.

    Without the second half a gradient would be summed whole on every device.
    """
    return jax.lax.with_sharding_constraint(array, there)


def _moved_forward(
    there: NamedSharding, back: NamedSharding, array: AnyArray
) -> tuple[Array, None]:
    return _moved(there, back, array), None


def _moved_backward(
    there: NamedSharding, back: NamedSharding, _: None, cotangent: Array
) -> tuple[Array]:
    return (jax.lax.with_sharding_constraint(cotangent, back),)


_moved.defvjp(_moved_forward, _moved_backward)
