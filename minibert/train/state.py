"""What a training run carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from minibert.errors import InputError
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import put, shardings_of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What changes in training; checkpoints hold this.

    Attributes:
        step: how many steps are done, `()` int32.
        params: what is trained, by path.
        opt_state: the optimiser's own.
    """

    step: Any  # JAX rebuilds the tree with leaves of its own, such as shapes
    params: dict[str, Any]
    opt_state: Any


def first_state(
    params: dict[str, Array],
    frozen: dict[str, Array],
    optimizer: optax.GradientTransformation,
    sharding: Sharding | None,
) -> tuple[TrainState, dict[str, Array], Any]:
    """The state before the first step, what is frozen, and where a step's results are to live.

    Of what is trained these are copies, for each step gives its own state's memory away.
    """
    start = jnp.zeros((), jnp.int32)
    if sharding is None:
        params = copied(params)
        return TrainState(start, params, _first_opt_state(optimizer, params)), frozen, None
    params = {path: put(sharding, path, array) for path, array in params.items()}
    frozen = {path: put(sharding, path, array) for path, array in frozen.items()}
    first = TrainState(start, params, jax.eval_shape(optimizer.init, params))
    where = shardings_of(sharding, first, params)
    opt_state = jax.jit(optimizer.init, out_shardings=where.opt_state)(params)
    state = TrainState(jax.device_put(start, where.step), params, opt_state)
    return state, frozen, (where, sharding.everywhere)


def _first_opt_state(optimizer: optax.GradientTransformation, params: dict[str, Array]) -> Any:
    """An optimiser's first state, in memory of its own: some return their own keys or parameters.

    The leaves are copied one by one, so that only one of them is in memory twice.
    """
    leaves, structure = jax.tree.flatten(optimizer.init(params))
    for index, leaf in enumerate(leaves):
        leaves[index] = jnp.array(leaf, copy=True)
    return jax.tree.unflatten(structure, leaves)


def copied(arrays: dict[str, Array]) -> dict[str, Array]:
    """Copies of some arrays, where they are."""
    return {path: jnp.array(array, copy=True) for path, array in arrays.items()}


def check_wide(params: dict[str, Array]) -> None:
    """Checks that what is trained is wide enough for small steps.

    Raises:
        InputError: a parameter is narrower than float32.
    """
    for path, array in params.items():
        if array.dtype.itemsize < 4:
            raise InputError(
                f"{path}: expected float32 or wider, found {array.dtype}, in which small steps "
                "vanish; load the model with param_dtype=jnp.float32 (dtype= may stay narrow)"
            )
