"""A training step on shapes only: nothing is allocated, whatever the size of the model.

The step is the Trainer's. As the blocks of a model are equal, their parameters are stacked and run
by one `lax.scan`, so that only one block is compiled, however many the model has.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec

from minibert.models.stack import Execution, _runner, with_execution
from minibert.nn.cache import BlockOutput
from minibert.nn.layers import Module
from minibert.nn.tree import Structure, parameters
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import by_rows, shardings_of
from minibert.train import adamw
from minibert.train.objectives.base import Objective
from minibert.train.optimizers import checked_update
from minibert.train.trainer import TrainState, _built, _step, _together

STACKED = ".0.stacked."  # in the path of a parameter that every block has


class StackedSharding(Sharding):
    """A sharding that stores and uses stacked parameters as those of one block."""

    def shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns a parameter's shape in training; the blocks' axis stays first."""
        if STACKED in path:
            return (shape[0], *super().shape(path, shape[1:]))
        return super().shape(path, shape)

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns how a parameter is stored; the blocks' axis is not sharded."""
        if STACKED in path:
            return PartitionSpec(None, *super().spec(path, shape[1:]))
        return super().spec(path, shape)


class ScannedBlocks(Module):
    """Equal blocks with stacked parameters, run in a loop, each rematerialised."""

    def __init__(self, blocks: Any, sharding: Sharding):
        self.layers, self.on = len(blocks), sharding
        self.stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *blocks)

    def __call__(self, hidden: Any, mask: Any, *given: Any) -> BlockOutput:
        """Runs the blocks one after the other, as `run_blocks` does."""
        *rest, rngs = given
        run = _runner(Execution(remat=True, sharding=self.on))

        def one(hidden: Any, layer: tuple[Any, Any]) -> tuple[Any, None]:
            block, key = layer
            return run(block, hidden, mask, *rest, key).hidden, None

        keys = jax.random.split(rngs.dropout(), self.layers)
        hidden, _ = jax.lax.scan(one, by_rows(self.on, hidden), (self.stacked, keys))
        hidden = by_rows(self.on, hidden, last=True)
        return BlockOutput(hidden, jnp.zeros(()), None, None)  # attention weights are not kept


def abstract_model(cls: Any, config: Any) -> Any:
    """Returns a model of shapes, with float32 parameters and bfloat16 computation."""
    return jax.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))


def with_scan(sharding: Sharding, model: Any) -> Any:
    """Returns the model with its blocks replaced by one loop over them."""
    trunk = model.base_model
    *above, last = model.blocks.split(".")
    owner = functools.reduce(getattr, above, trunk)
    setattr(owner, last, nnx.List([ScannedBlocks(getattr(owner, last), sharding)]))
    return model


def abstract_state(model: Any, sharding: Sharding, optimizer: Any) -> tuple[TrainState, Any]:
    """Returns the training state as shapes with their shardings; and the shardings."""
    params = {
        path: jax.ShapeDtypeStruct(sharding.shape(path, array.shape), array.dtype)
        for path, array in parameters(model).items()
    }
    start = jax.ShapeDtypeStruct((), jnp.int32)
    state = TrainState(start, params, jax.eval_shape(optimizer.init, params))
    where = shardings_of(sharding, state, params)

    def placed(leaf: Any, there: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)

    return jax.tree.map(placed, state, where), where


def lowered_step(
    model: Any,
    objective: Objective,
    sharding: Sharding,
    shape: tuple[int, int],
    parts: int,
    scan: bool,
) -> tuple[Any, dict[str, Any]]:
    """Returns the training step, lowered for the mesh's devices, and the parameters' shapes.

    Args:
        model: a model of shapes.
        objective: the objective to minimise.
        sharding: a sharding for the model's class (`for_model`).
        shape: the shape of a whole batch, `(rows, seq)`.
        parts: the number of microbatches.
        scan: whether the blocks run in a loop; otherwise one after the other, as in the Trainer.
    """
    if scan:
        model = jax.eval_shape(functools.partial(with_scan, sharding), model)
    else:
        model = with_execution(model, remat=True, sharding=sharding)
    optimizer = adamw(1e-4)
    state, where = abstract_state(model, sharding, optimizer)
    words = jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding.batch)
    build = functools.partial(_built, Structure(model.train()), _together, sharding)
    update = checked_update(optimizer, state.params, state.opt_state)
    step = functools.partial(_step, build, objective, update, parts, jax.random.key(0))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(where, sharding.everywhere))
    traced = jitted.trace(state, {}, {"input_ids": words, "labels": words})
    return traced.lower(lowering_platforms=("tpu",)), state.params
