"""Contents of checkpoints in the form that Orbax and JSON store: states, checksums, positions."""

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.errors import (
    InputError,
    MinibertError,
    NotFiniteError,
    WeightsFileError,
    shown,
)
from minibert.train.trainer import TrainState

# the parts that are covered by one digest, the seal; arrays have checksums
SEALED = ("identity", "standing", "checksums", "positions", "data")


@jax.jit
def _summary(leaf: Array) -> tuple[Array, Array, Array]:
    """Returns whether all numbers of an array are finite, whether none is NaN, and a checksum.

    Shards are not moved.

    Machine words of at most 32 bits are mixed with their indices (by the finalizer of MurmurHash3,
    which is a bijection, so that every change of a single word changes the sum) and summed.
    """
    width = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    words = leaf if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, width)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):  # not flattened, which would gather the shards
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = words.astype(jnp.uint32) + place * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
    mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
    mixed = mixed ^ (mixed >> 16)
    finite, numbers = jnp.isfinite(leaf).all(), ~jnp.isnan(leaf).any()
    return finite, numbers, jnp.sum(mixed, dtype=jnp.uint32)


def checksums(arrays: Mapping[str, Array], *, step: int | None = None) -> dict[str, int]:
    """Returns checksums of arrays by path, which depend neither on devices nor on shardings.

    Args:
        arrays: the arrays.
        step: the step of a checkpoint in which all numbers must be finite, except that a scalar of
            the optimiser may be infinite, as the smallest loss before the first is; None for other
            arrays.

    Raises:
        NotFiniteError: a number of a checkpoint is NaN or infinite.
    """
    found = jax.device_get({path: _summary(array) for path, array in arrays.items()})
    for path, (finite, numbers, _) in found.items():
        scalar = path.startswith("opt_state: ") and arrays[path].ndim == 0
        if step is not None and not (numbers if scalar else finite):
            raise NotFiniteError(
                f"step {step}: NaN or infinity in {path}; no checkpoint of this step was written"
            )
    return {path: int(value) for path, (_, _, value) in found.items()}


def opt_state_leaves(state: TrainState) -> dict[str, Any]:
    """Returns the leaves of the optimiser's state by path."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def as_dict(state: TrainState) -> dict[str, Any]:
    """Returns a state as plain dictionaries, so that checkpoints do not depend on optax's classes.

    Typed random keys are replaced by their data; see `from_dict`.
    """
    leaves = {path: key_data(leaf) for path, leaf in opt_state_leaves(state).items()}
    return {"step": state.step, "params": state.params, "opt_state": leaves}


def from_dict(arrays: Mapping[str, Any], like: TrainState) -> TrainState:
    """Returns a state from what `as_dict` returned, in the structure of another state.

    Random keys get the implementations that those of `like` have, which a run's identity records.
    """
    leaves = [
        jax.random.wrap_key_data(arrays["opt_state"][path], impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else arrays["opt_state"][path]
        for path, leaf in opt_state_leaves(like).items()
    ]
    opt_state = jax.tree.unflatten(jax.tree.structure(like.opt_state), leaves)
    return TrainState(arrays["step"], arrays["params"], opt_state)


def key_data(array: Array) -> Any:
    """Returns the data of an array of typed random keys, and any other array as it is."""
    return jax.random.key_data(array) if _is_key(array) else array


def _is_key(array: Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def flat(state: TrainState) -> dict[str, Array]:
    """Returns all arrays of a state in one dictionary by path."""
    plain = as_dict(state)
    found = {"step": plain.pop("step")}
    for part, arrays in plain.items():
        found |= {f"{part}: {path}": leaf for path, leaf in arrays.items()}
    return found


def seal(record: Mapping[str, Any]) -> str:
    """Returns a digest of everything in a checkpoint except its arrays."""
    text = json.dumps({name: record[name] for name in SEALED}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def of_all_processes(value: object) -> list[str]:
    """Returns the values of all processes as JSON, in the order of the processes."""
    own = json.dumps(value, default=_jsonable)
    if jax.process_count() == 1:
        return [own]
    from jax.experimental.multihost_utils import process_allgather

    octets = np.frombuffer(own.encode(), np.uint8)
    longest = int(process_allgather(np.int64(octets.size)).max())
    padded = np.pad(octets, (0, longest - octets.size), constant_values=ord(" "))
    return [bytes(row).decode() for row in process_allgather(padded)]


def _jsonable(value: object) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise InputError(f"checkpoints: expected a value that JSON can represent, found {shown(value)}")


def position_of_json(text: str) -> Any:
    """Returns the position of an iterator from its JSON."""
    return json.loads(
        text, object_hook=lambda one: bytes.fromhex(one["bytes"]) if [*one] == ["bytes"] else one
    )


@contextlib.contextmanager
def readable(where: str) -> Generator[None]:
    """Converts the errors of reading a checkpoint to `WeightsFileError`s that name it.

    Raises:
        WeightsFileError: an error was raised that is not a `MinibertError`.
    """
    try:
        yield
    except MinibertError:
        raise
    except Exception as reason:  # Orbax raises nothing narrower
        raise damaged(where, shown(str(reason))) from reason


def damaged(where: str, why: str) -> WeightsFileError:
    """Returns the error for a checkpoint that differs from what was saved."""
    return WeightsFileError(f"{where}: a damaged checkpoint ({why})")
