"""Placement of arrays as a `Sharding` specifies: transfers, constraints and gathering."""

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


def reusable(like: Array, array: object) -> bool:
    """Returns whether an array is where a program puts what it reads beside another."""
    return (
        isinstance(array, jax.Array)
        and array.sharding == like.sharding
        and array.committed == like.committed
    )


def beside(like: object, tree: object) -> Any:
    """Returns a tree with its host arrays transferred, explicitly, to the device of an array.

    Where that is not committed to one device, they go where JAX itself would put them. Arrays that
    are on a device already are not moved.
    """
    leaves, treedef = jax.tree.flatten(tree)
    host = [number for number, leaf in enumerate(leaves) if not isinstance(leaf, jax.Array)]
    where = committed_device(like)
    for number, leaf in zip(host, jax.device_put([leaves[n] for n in host], where), strict=True):
        leaves[number] = leaf
    return jax.tree.unflatten(treedef, leaves)


def committed_device(array: object) -> jax.Device | None:
    """Returns the one device to which an array is committed, or None."""
    one = isinstance(array, jax.Array) and array.committed and len(array.devices()) == 1
    return next(iter(array.devices())) if one else None


def put(sharding: Sharding, path: str, array: AnyArray) -> Array:
    """Returns a copy of a parameter on its devices, in its shape in training."""
    return _placed(sharding, path, array, sharding.shape(path, array.shape))


def stored(sharding: Sharding, path: str, array: AnyArray) -> Array:
    """Returns a copy of a parameter on its devices, in its own shape."""
    return _placed(sharding, path, array, array.shape)


def _placed(sharding: Sharding, path: str, array: AnyArray, shape: tuple[int, ...]) -> Array:
    """Returns a copy of a parameter in a given shape, made shard by shard on its devices."""
    where = sharding.of(path, shape)
    if isinstance(array, jax.Array) and array.sharding.device_set == where.device_set:
        return _copier(_split_rows(array, where), shape, where)(array)
    host = jax.device_get(array).reshape(shape)
    return jax.make_array_from_callback(shape, where, lambda index: np.array(host[index]))


def _split_rows(array: Array, where: NamedSharding) -> NamedSharding:
    """Returns a sharding of the first dimension, which reshaping keeps, over an array's axes."""
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
    """Returns parameters in the shapes of their model; those that have them are not copied."""
    return {
        path: array if array.shape == shapes[path] else _placed(sharding, path, array, shapes[path])
        for path, array in arrays.items()
    }


def shardings_of(sharding: Sharding, tree: Any, params: Mapping[str, Any]) -> Any:
    """Returns the shardings of a tree: that of the parameter of a leaf's path, else replicated."""

    def where(keys: tuple[Any, ...], leaf: Array) -> NamedSharding:
        path = next((key.key for key in reversed(keys) if isinstance(key, DictKey)), "")
        if path in params and leaf.shape == params[path].shape:
            return sharding.of(path, leaf.shape)
        return sharding.everywhere

    return jax.tree.map_with_path(where, tree)


def put_batch(sharding: Sharding, batch: dict[str, np.ndarray]) -> dict[str, Array]:
    """Puts this process's rows of a batch on its devices; returns the arrays of the whole batch."""
    return jax.tree.map(
        functools.partial(jax.make_array_from_process_local_data, sharding.batch), batch
    )


def check_shares(sharding: Sharding, batch: dict[str, np.ndarray]) -> None:
    """Checks that processes with the same share of a batch provide the same rows.

    Every process must call it.

    Raises:
        InputError: rows or their numbers differ; it is raised in every process.
    """
    index, count = sharding.share
    octets = b"".join(name.encode() + batch[name].tobytes() for name in sorted(batch))
    checksum = zlib.crc32(octets) >> 1  # JAX's integers have 31 bits and a sign
    own = np.array([index, checksum, len(next(iter(batch.values())))], np.int32)
    check_table(multihost_utils.process_allgather(own).tolist(), count)


def check_table(table: list[list[int]], count: int) -> None:
    """Checks the share, the checksum of its rows and their number, of each process.

    Raises:
        InputError: two processes with the same share provide different rows, or the numbers of
            rows differ.
    """
    first: dict[int, int] = {}
    for process, (share, checksum, _) in enumerate(table):
        before = first.setdefault(share, process)
        if table[before][1] != checksum:
            raise InputError(
                f"batch: expected equal rows in processes {before} and {process}, which both have "
                f"share {share} of {count}, found different ones; pass share=sharding.share to the "
                "data set"
            )
    if len({rows for _, _, rows in table}) > 1:
        raise InputError(
            "batch: expected the same number of rows in all processes, found "
            f"{[row[2] for row in table]}"
        )


def check_rows(sharding: Sharding, batch: dict[str, np.ndarray], parts: int) -> None:
    """Checks that the rows of a batch can be split over devices, in each of its parts.

    Raises:
        InputError: the number of rows is not divisible.
    """
    count = len(next(iter(batch.values())))
    shares = sharding.rows_here * parts
    if count % shares:
        times = f" × {parts} parts" if parts > 1 else ""
        raise InputError(
            f"batch: expected a multiple of {shares} rows in this process ({sharding.rows_here} "
            f"devices{times}), found {count}"
        )


def gathered(sharding: Sharding, path: str, array: Array) -> Array:
    """Returns a parameter as it is used, in a traced program; its gradient is split as stored."""
    stored = sharding.of(path, array.shape)
    used = NamedSharding(sharding.mesh, sharding.used_spec(path, array.shape))
    return array if stored.spec == used.spec else _moved(used, stored, array)


def gathered_module(sharding: Sharding, module: nnx.Module, but: str = "") -> Any:
    """Returns a module with its parameters as they are used, in a traced program.

    Args:
        sharding: the sharding.
        module: the module.
        but: a prefix of paths to leave as they are stored: that of blocks, which gather their own.
    """
    arrays = parameters(module)
    for path, array in arrays.items():
        if not (but and path.startswith(but)):
            arrays[path] = gathered(sharding, path, array)
    return Structure(module).build(arrays)


def by_rows(sharding: Sharding, hidden: Array, *, last: bool = False) -> Array:
    """Constrains hidden states to the sharding of a batch's rows, in a traced program.

    Args:
        sharding: the sharding.
        hidden: the hidden states, `(batch, seq, hidden)`.
        last: whether a head follows. Positions are then split over the tensor axes: a device
            computes all logits of some positions, not a partial sum of every logit.
    """
    even = hidden.shape[1] % sharding.size(sharding.tensor) == 0
    spec = PartitionSpec(sharding.rows, sharding.tensor if last and even else None)
    return jax.lax.with_sharding_constraint(hidden, NamedSharding(sharding.mesh, spec))


def on_host(model: nnx.Module) -> Any:
    """Returns a model whose arrays are whole in this host's memory, gathered one at a time.

    Every process must call it; then any of them can save the model.
    """
    arrays = {
        path: multihost_utils.process_allgather(array, tiled=True)
        if not array.is_fully_addressable
        else jax.device_get(array)
        for path, array in parameters(model).items()
    }
    return Structure(model).build(arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _moved(there: NamedSharding, back: NamedSharding, array: AnyArray) -> Array:
    """Constrains an array to one sharding and its gradient to another, in a traced program.

    Without the latter, the whole gradient would be summed on every device.
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
