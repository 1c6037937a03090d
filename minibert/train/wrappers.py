"""Optimisers around another one: a moving average of the parameters, learning rates by layer."""

import itertools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from minibert.core.fields import BELOW_1, number
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.nn.tree import submodules
from minibert.train.optimizers import ConfiguredOptimizer

RATIO = number("a number above 0, to 1", lambda value: 0 < value <= 1)


class AverageState(NamedTuple):
    """The state of `averaged`: that of the optimiser, and the averaged parameters by path."""

    inner: Any
    average: Any


def averaged(
    optimizer: optax.GradientTransformation, decay: float = 0.999
) -> optax.GradientTransformation:
    """Returns an optimiser that keeps an exponential moving average of the parameters.

    After each step the average is `decay` times itself plus `1 - decay` times the parameters; it
    begins with the initial parameters. `Trainer.evaluate`, `Trainer.model` and `Trainer.adapter`
    use it instead of the parameters, which training continues with; checkpoints store both.

    Args:
        optimizer: the optimiser, of which no other wrapper changes the updates afterwards.
        decay: the factor of the average, from 0 to below 1.

    Raises:
        InputError: an argument is wrong.
    """
    decay = BELOW_1.check("decay", decay, InputError)
    _check_last(optimizer)
    inner = _with_arguments(optimizer)

    def init(params: optax.Params) -> AverageState:
        return AverageState(inner.init(params), params)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra: object
    ) -> tuple[Any, AverageState]:
        updates, changed = inner.update(updates, state.inner, params, **extra)
        new: Any = optax.apply_updates(params, updates)
        average = optax.incremental_update(new, state.average, 1 - decay)
        return updates, AverageState(changed, average)

    found = _wrapped(optimizer, init, update, average_decay=decay)
    found.averages = True
    return found


def average_of(opt_state: object) -> Any:
    """Returns the averaged parameters by path in an optimiser's state; empty if there are none.

    An optimiser of some of the parameters, in `optax.multi_transform`, averages these alone.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, AverageState))
    return {
        path: array
        for node in leaves
        if isinstance(node, AverageState)
        for path, array in node.average.items()
        if not isinstance(array, optax.MaskedNode)
    }


def layerwise(
    optimizer: optax.GradientTransformation, model: PretrainedModel, decay: float = 0.9
) -> optax.GradientTransformation:
    """Returns an optimiser with a smaller learning rate for each lower layer.

    What is above the layers, such as a head, has the optimiser's own rate, the last layer `decay`
    times that, each other layer `decay` times the rate of the one above it, and the embeddings
    `decay` times the rate of the first layer. So updates have to be proportional to the learning
    rate, as those of `adamw` are.

    Args:
        optimizer: the optimiser.
        model: the model to train.
        decay: the ratio of the rates of neighbouring layers, above 0, to 1.

    Raises:
        InputError: an argument is wrong.
    """
    decay = RATIO.check("decay", decay, InputError)
    if not isinstance(model, PretrainedModel):
        raise InputError(f"model: expected a model, found {shown(model)}")
    _check_last(optimizer)
    inner, above = _with_arguments(optimizer), _layers_above(model)

    def update(
        updates: Any, state: optax.OptState, params: Any = None, **extra: object
    ) -> tuple[Any, optax.OptState]:
        updates, changed = inner.update(updates, state, params, **extra)
        scaled = {p: jnp.asarray(decay ** above(p), u.dtype) * u for p, u in updates.items()}
        return scaled, changed

    return _wrapped(optimizer, inner.init, update, layer_decay=decay)


def _layers_above(model: PretrainedModel) -> Any:
    """Returns a function from a parameter's path to the number of layers above it.

    It is one more than that of the first layer for what comes before the layers, and for what they
    share. Layers that share a block are one.
    """
    blocks, count = f"{model.blocks_path}.", len(operator.attrgetter(model.blocks_path)(model))
    prefix = "" if model.is_trunk else f"{model.trunk}."
    children = (path for path, _ in submodules(model.base_model) if "." not in path)
    first = model.blocks.partition(".")[0]
    before = itertools.takewhile(lambda child: child != first, children)
    early = tuple(f"{prefix}{child}." for child in (*before, first))

    def above(path: str) -> int:
        if path.startswith(blocks):
            return count - int(path.removeprefix(blocks).partition(".")[0])
        return count + 1 if path.startswith(early) else 0

    return above


def _check_last(optimizer: object) -> None:
    if getattr(optimizer, "averages", False):
        raise InputError(
            "optimizer: expected one without an average, which must be of the last updates: "
            "averaged(layerwise(…))"
        )


def _with_arguments(optimizer: object) -> Any:
    if not isinstance(optimizer, optax.GradientTransformation):
        raise InputError(f"optimizer: expected an optax transformation, found {shown(optimizer)}")
    return optax.with_extra_args_support(optimizer)


def _wrapped(optimizer: object, init: Any, update: Any, **arguments: float) -> ConfiguredOptimizer:
    """Returns an optimiser whose arguments, if the wrapped one keeps any, are those of both."""
    found = ConfiguredOptimizer(init, update)
    if (own := getattr(optimizer, "arguments", None)) is not None:
        found.arguments = {**own, **arguments}
    return found
