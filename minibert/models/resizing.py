"""Changes to the size of a model, in place: tokens, positions and layers, with the config.

Which arrays depend on a size, and along which axis, is found by comparing the trees of shapes that
the class builds from the old config and from the new one. It therefore holds for every family and
head.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
from flax import nnx
from jax import Array

from minibert.checkpoint.agreement import check_tree
from minibert.checkpoint.config import Config
from minibert.core.checks import whole
from minibert.core.types import Rngs
from minibert.errors import ConfigError, InputError, shown
from minibert.nn.tree import submodules, variables

if TYPE_CHECKING:
    from minibert.models.base import PretrainedModel

NewRows = Callable[[Array, int], Array]


def resize(model: "PretrainedModel", field: str, size: int, new_rows: NewRows) -> None:
    """Changes a field of a model's config and every array whose shape depends on it.

    Args:
        model: the model.
        field: the field.
        size: its new value.
        new_rows: returns additional rows from the old rows, which are the first axis, and their
            number.

    Raises:
        InputError: the config does not allow the size, or the model is sharded.
        CheckpointMismatchError: the model is not the one that its config describes.
    """
    if model.base_model.execution.sharding is not None:
        raise InputError(
            "model: expected a model on one device, found a sharded one; resize it before sharding"
        )
    config = _replaced(model.config, field, size)
    check_tree(model, model.config)
    cls = type(model)
    before, after = cls(model.config, rngs=None), cls(config, rngs=None)
    old = {path: variable.shape for path, variable, _ in variables(before)}
    new = {path: variable.shape for path, variable, _ in variables(after)}
    for path, variable, _ in variables(model):
        if old[path] != new[path]:
            differs = [one != other for one, other in zip(old[path], new[path], strict=True)]
            axis = differs.index(True)
            rows = jnp.moveaxis(variable.get_value(), axis, 0)
            count = new[path][axis] - len(rows)
            rows = jnp.concatenate([rows, new_rows(rows, count)]) if count > 0 else rows[:count]
            variable.set_value(jnp.moveaxis(rows, 0, axis))
    modules = dict(submodules(model))
    built = dict(submodules(before))
    for path, module in submodules(after):
        for name, value in vars(module).items():
            if isinstance(value, int) and path in modules and value != vars(built[path])[name]:
                setattr(modules[path], name, value)
    set_config(model, config)


def set_config(model: "PretrainedModel", config: Config) -> None:
    """Replaces the config of a model and of the bare model inside it."""
    model.config = model.base_model.config = config


def keep_layers(model: "PretrainedModel", layers: Sequence[int]) -> None:
    """Keeps some layers of a model; see `PretrainedModel.keep_layers`."""
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
        raise InputError(f"layers: expected indices of layers, found {shown(layers)}")
    parent, attribute = model.base_model, model.blocks
    *parents, last = attribute.split(".")
    for part in parents:
        parent = getattr(parent, part)
    blocks = list(getattr(parent, last))
    order = _blocks_of_layers(model.config)
    chosen = [whole("layers", layer, 0, len(order) - 1) for layer in layers]
    if len(set(chosen)) != len(chosen):
        raise InputError(f"layers: expected different layers, found {shown(chosen)}")
    check_tree(model, model.config)
    used = [order[layer] for layer in chosen]
    kept = list(dict.fromkeys(used))
    config = model.config.with_layers(len(chosen), len(kept))
    if _blocks_of_layers(config) != [kept.index(block) for block in used]:
        raise InputError(
            f"layers: expected layers of which equal numbers share each block, in order; found "
            f"{shown(chosen)}, which are calls of the blocks {shown(used)}"
        )
    setattr(parent, last, nnx.List([blocks[block] for block in kept]))
    try:
        check_tree(model, config)
    except ValueError:
        setattr(parent, last, nnx.List(blocks))
        raise
    set_config(model, config)


def _blocks_of_layers(config: Config) -> list[int]:
    """Returns the index of each layer's block in the list of blocks."""
    numbers = [int(path.partition(".")[0]) for path in config.layer_paths]
    return numbers[:: len(numbers) // getattr(config, config.name_of("num_hidden_layers"))]


def mean_rows(rows: Array, count: int, *, mean_of_bias: bool = True) -> Array:
    """Returns the mean of some rows, `count` times, computed in float32 or wider.

    Args:
        rows: the rows, or the numbers of a bias.
        count: how many to return.
        mean_of_bias: whether a bias has a mean too, rather than zeros.
    """
    if rows.ndim == 1 and not mean_of_bias:
        return jnp.zeros(count, rows.dtype)
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    mean = rows.mean(axis=0, keepdims=True, dtype=wide).astype(rows.dtype)
    return jnp.broadcast_to(mean, (count, *rows.shape[1:]))


def drawn_rows(stddev: float, rngs: Rngs) -> NewRows:
    """Returns a function that draws new rows as the initialisation does, and zeros for a bias."""
    if not isinstance(rngs, nnx.Rngs):
        raise InputError(f"rngs: expected nnx.Rngs(0) for new rows, found {shown(rngs)}")

    def draw(rows: Array, count: int) -> Array:
        if rows.ndim == 1:
            return jnp.zeros(count, rows.dtype)
        return stddev * rngs.params.normal((count, *rows.shape[1:]), rows.dtype)

    return draw


def _replaced(config: Config, field: str, value: int) -> Config:
    try:
        return config.replace(**{field: value})
    except ConfigError as reason:
        raise InputError(f"{reason}") from None
