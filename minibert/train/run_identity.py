"""The identity of a training run: everything that determines the numbers it computes."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr

from minibert.errors import InputError, shown
from minibert.train.checkpoint_state import checksums, key_data, opt_state_leaves
from minibert.train.fingerprint import digest
from minibert.train.optimizers import sum_of_squares

if TYPE_CHECKING:
    from minibert.train.trainer import Trainer

Values = Mapping[str, Any]  # by name
FORMAT = 2
STATE = ("params: ", "opt_state: ")  # prefixes of differences that make restoring impossible
# fields of configs that do not affect a training step
INERT = ("extra", "generation", "output_hidden_states", "output_attentions")


def identity(trainer: "Trainer", about: Values) -> dict[str, Any]:
    """Returns what two runs must have in common for one to resume the other, as JSON values.

    Args:
        trainer: the run's trainer.
        about: further values from the caller.
    """
    state, config = trainer.state, trainer.config
    sums = checksums(trainer.frozen)
    found = {
        "format": FORMAT,
        **trainer.made_by,
        "config": {name: value for name, value in vars(config).items() if name not in INERT},
        "optimizer": _optimizer(trainer, state.params),
        "params": _specs(state.params),
        "opt_state": _specs(opt_state_leaves(state)),
        "frozen": {path: f"{spec} #{sums[path]}" for path, spec in _specs(trainer.frozen).items()},
        "about": about,
    }
    return as_json("about", found)


def as_json(name: str, about: object) -> dict[str, Any]:
    """Returns a mapping as it is after a round trip through JSON.

    Raises:
        InputError: `about` is not a mapping, or holds a value that JSON cannot represent.
    """
    if not isinstance(about, Mapping):
        raise InputError(f"{name}: expected values by name, found {shown(about)}")
    try:
        return json.loads(json.dumps(dict(about), default=_plain, allow_nan=False))
    except (TypeError, ValueError) as reason:
        raise InputError(f"{name}: expected values that JSON can represent ({reason})") from None


def _plain(value: object) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise InputError(f"expected a value that JSON can represent, found {shown(value)}")


def run_differences(found: Values, expected: Values) -> list[str]:
    """Returns the differences between the identity in a checkpoint and this run's, a line each.

    Checkpoints of the first format do not record configs, optimisers and computation dtypes, and
    have other checksums of frozen parameters; these are not compared. Of `about`, only the values
    that this run states are compared.
    """
    found, expected = dict(found), dict(expected)
    stated = expected.get("about", {})
    found["about"] = {name: one for name, one in found.get("about", {}).items() if name in stated}
    if found.get("format") != FORMAT:
        expected = {name: expected[name] for name in expected if name in (*found, "lora")}
        for side in (found, expected):
            side["frozen"] = {path: one.partition(" #")[0] for path, one in side["frozen"].items()}
    faults = differences(found, expected)
    if any(fault.startswith("optimizer: arguments: ") for fault in faults):  # they have a name
        faults = [fault for fault in faults if not fault.startswith("optimizer: program: ")]
    return sorted(faults, key=lambda fault: fault.startswith((*STATE, "frozen: ")))  # arrays last


def differences(found: Values, expected: Values, where: str = "") -> list[str]:
    """Returns the differences between two nested mappings, sorted lines with the prefix `where`.

    An optimiser's programs are compared only if the same versions of jax and optax traced both.
    """
    faults: list[str] = []
    names = expected.keys() | found.keys()
    if where == "optimizer: program: ":
        names = expected.keys() & found.keys()
    for name in names:
        ours, theirs = expected.get(name), found.get(name)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            faults += differences(theirs, ours, f"{where}{name}: ")
        elif ours != theirs:
            both = [shown(side[name]) if name in side else "nothing" for side in (found, expected)]
            faults.append(f"{where}{name}: {both[0]} in the checkpoint, {both[1]} here")
    return sorted(faults)


def is_of_state(fault: str) -> bool:
    """Returns whether a difference is in paths, shapes or dtypes of the state's arrays."""
    return fault.startswith(STATE)


def _specs(arrays: Values) -> dict[str, str]:
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in arrays.items()}


def _optimizer(trainer: "Trainer", params: Values) -> dict[str, Any]:
    """Returns what identifies an optimiser: its arguments, if it keeps them, and a digest.

    The digest is of the programs of `init` and `update`, in which all hyperparameters and schedules
    are constants. There is no digest of an optimiser whose `init` needs the numbers of its arrays.
    """
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in params.items()}
    init, arguments = trainer.optimizer.init, getattr(trainer.optimizer, "arguments", None)
    found: dict[str, Any] = {} if arguments is None else {"arguments": arguments}

    def update(gradients: Values, state: object, params: Values) -> Any:
        return trainer.update(gradients, state, params, np.float32(1), sum_of_squares)

    try:
        state = jax.eval_shape(init, shapes)
        programs = [jax.make_jaxpr(init)(shapes), jax.make_jaxpr(update)(shapes, state, shapes)]
    except Exception:  # a custom optimiser may raise anything if it is traced
        return found
    texts = [re.sub(r"0x[0-9a-f]+", "", str(one.jaxpr)) for one in programs]  # without addresses
    constants = [list(_constants(one)) for one in programs]
    versions = f"jax {jax.__version__}, optax {optax.__version__}"
    return found | {"program": {versions: digest([texts, constants])}}


def _constants(program: Jaxpr | ClosedJaxpr) -> Iterator[np.ndarray]:
    """Yields the constant arrays of a program and of the programs that it calls."""
    constants = getattr(program, "consts", ())  # any jaxpr has them in JAX 0.12, before closed ones
    yield from (np.asarray(key_data(constant)) for constant in constants)
    equations = getattr(program, "jaxpr", program).eqns
    for one in jax.tree.leaves([equation.params for equation in equations]):
        if isinstance(one, Jaxpr | ClosedJaxpr):
            yield from _constants(one)
