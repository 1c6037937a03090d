"""What a checkpoint holds, as Orbax and JSON take it: states, positions, what a run is."""

import contextlib
import json
from collections.abc import Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.errors import (
    CheckpointMismatchError,
    InputError,
    NotFiniteError,
    TargetError,
    WeightsFileError,
    shown,
)
from minibert.finite import each_finite
from minibert.train.state import TrainState


def identity(trainer: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common for one to go on from the other, as JSON holds it."""
    state = as_dict(trainer.state)
    return {
        **trainer.made_by,
        "params": {path: _spec(leaf) for path, leaf in state["params"].items()},
        "opt_state": {path: _spec(leaf) for path, leaf in state["opt_state"].items()},
        "frozen": {
            path: f"{_spec(leaf)} #{_checksum(leaf)}" for path, leaf in trainer.frozen.items()
        },
        "about": as_json("about", about),
    }


def as_json(name: str, about: Any) -> dict[str, Any]:
    """A mapping as JSON gives it back.

    Raises:
        InputError: it is none, or holds what JSON does not.
    """
    if not isinstance(about, Mapping):
        raise InputError(f"{name}: expected values by name, found {shown(about)}")
    try:
        return json.loads(json.dumps(dict(about), default=_jsonable, allow_nan=False))
    except (TypeError, ValueError) as reason:
        raise InputError(f"{name}: expected what JSON holds ({reason})") from None


def check_same(where: str, found: Any, expected: Any) -> None:
    """Compares what a checkpoint says about its run with this run.

    Raises:
        CheckpointMismatchError: they differ; it names every difference.
    """
    faults = []
    for name in expected.keys() | found.keys():
        ours, theirs = expected.get(name), found.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            faults += [
                f"{name}: {key}: {_said(theirs, key)} in the checkpoint, {_said(ours, key)} here"
                for key in ours.keys() | theirs.keys()
                if _said(ours, key) != _said(theirs, key)
            ]
        elif ours != theirs:
            faults.append(f"{name}: {shown(theirs)} in the checkpoint, {shown(ours)} here")
    if faults:
        raise CheckpointMismatchError(f"{where}: another run's checkpoint", sorted(faults))


def _said(one: Mapping[str, Any], key: str) -> str:
    return shown(one[key]) if key in one else "nothing"


def _spec(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


@jax.jit
def _sum_of_bits(leaf: Array) -> Array:
    octets = jax.lax.bitcast_convert_type(leaf, jnp.uint8).reshape(-1).astype(jnp.uint32)
    places = jnp.arange(octets.size, dtype=jnp.uint32)
    return jnp.sum(octets * (places * jnp.uint32(2654435761) + 1), dtype=jnp.uint32)


def _checksum(leaf: Array) -> int:
    """Of an array's bytes, computed where they are, however it is sharded."""
    return int(_sum_of_bits(leaf))


def as_dict(state: TrainState) -> dict[str, Any]:
    """A state as plain dictionaries, that a checkpoint does not depend on optax's own classes."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    own = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return {"step": state.step, "params": state.params, "opt_state": own}


def check_finite(state: TrainState, step: int) -> None:
    """Looks at every number of a state.

    Raises:
        NotFiniteError: one is NaN or infinite.
    """
    found = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    paths, arrays = zip(*found, strict=True)
    for path, finite in zip(paths, jax.device_get(each_finite(list(arrays))), strict=True):
        if not finite:
            raise NotFiniteError(
                f"step {step}: NaN or infinity in {jax.tree_util.keystr(path[1:])}; no checkpoint "
                "of it was written"
            )


def positions_of_all(position: Any) -> list[str]:
    """The positions of every process's data, as JSON."""
    own = json.dumps(position, default=_jsonable)
    if jax.process_count() == 1:
        return [own]
    from jax.experimental.multihost_utils import process_allgather

    octets = np.frombuffer(own.encode(), np.uint8)
    longest = int(process_allgather(np.int64(octets.size)).max())
    padded = np.pad(octets, (0, longest - octets.size), constant_values=ord(" "))
    return [bytes(row).decode() for row in process_allgather(padded)]


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise InputError(f"checkpoints: expected what JSON holds, found {shown(value)}")


def position_of_json(text: str) -> Any:
    """A position, back from JSON."""
    return json.loads(
        text, object_hook=lambda one: bytes.fromhex(one["bytes"]) if [*one] == ["bytes"] else one
    )


@contextlib.contextmanager
def reported(folder: Any) -> Generator[None]:
    """Says of which folder it is that something cannot be written."""
    try:
        yield
    except OSError as reason:
        raise TargetError(f"{folder}: cannot be written ({reason.strerror or reason})") from reason


@contextlib.contextmanager
def readable(where: str) -> Generator[None]:
    """Says of which checkpoint it is that it cannot be read."""
    try:
        yield
    except Exception as reason:  # Orbax raises nothing narrower
        what = f"{where}: a damaged checkpoint ({shown(str(reason))}); remove it"
        raise WeightsFileError(what) from reason
