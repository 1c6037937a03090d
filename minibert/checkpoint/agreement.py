"""Checks that a model's tree is the one that its class builds from a config.

Loading builds the tree from the config that was saved with the model. If layers were removed, a
head was widened or a module was added without changing the config, loading fails, or, in
transformers, initialises the remaining parameters randomly.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from minibert.checkpoint.config import Config
from minibert.checkpoint.leaves import Leaf, leaves
from minibert.checkpoint.matching import head_of
from minibert.errors import CheckpointMismatchError, InputError, shown
from minibert.nn.tree import submodules

# attributes of modules that are set from the config and affect results
COMPUTING = ("heads", "scale", "epsilon", "name", "kind")


def check_tree(model: Any, config: Config) -> None:
    """Compares a model with the tree of shapes that its class builds from a config.

    Args:
        model: the model.
        config: the config with which the model will be saved.

    Raises:
        InputError: the config is not of the model's config class, or no model can be built from it.
        CheckpointMismatchError: parameters are missing, unexpected or of a different shape, or an
            attribute of a module differs; the message lists every difference.
    """
    cls = type(model)
    check_config(config, cls)
    try:
        expected = cls(config, rngs=None)
    except TypeError as reason:
        raise InputError(
            f"model: expected a class that can be built from its config alone, as loading does, "
            f"found {cls.__name__} ({reason})"
        ) from None
    faults = tree_faults(model, expected, lambda leaf: _may_be_absent(leaf, model, config))
    if faults:
        raise CheckpointMismatchError(
            f"{cls.__name__} does not match its config, so that the saved model could not be "
            "loaded; pass a matching config to save_pretrained(config=…)",
            faults,
        )


def check_config(config: object, cls: Any) -> None:
    """Raises an `InputError` if a config is not of a model class's config class."""
    if not isinstance(config, cls.config_class):
        raise InputError(
            f"config: expected a {cls.config_class.__name__}, found {shown(type(config).__name__)}"
        )


def tree_faults(
    model: nnx.Module, expected: nnx.Module, optional: Callable[[Leaf], bool] = lambda leaf: False
) -> list[str]:
    """Returns the differences between a model and a tree of shapes, as messages.

    Args:
        model: the model.
        expected: the tree of shapes.
        optional: returns whether the model may lack a leaf of `expected`.
    """
    ours = {leaf.path: leaf for leaf in leaves(model)}
    theirs = {leaf.path: leaf for leaf in leaves(expected)}
    faults = []
    for path in sorted(ours.keys() | theirs.keys()):
        shape = theirs[path].variable.shape if path in theirs else None
        if path not in ours:
            if not optional(theirs[path]):
                faults.append(f"{path}: expected shape {shape}, found no such parameter")
            continue
        array = ours[path].variable.get_value()
        if shape is None:
            faults.append(f"{path}: expected no such parameter, found shape {array.shape}")
        elif array.shape != shape:
            faults.append(f"{path}: expected shape {shape}, found shape {array.shape}")
        elif isinstance(array, jax.ShapeDtypeStruct):
            faults.append(f"{path}: expected an array, found a shape without values")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            faults.append(f"{path}: expected floating-point numbers, found {array.dtype}")
    attributes = _attributes(expected)
    for path, value in _attributes(model).items():
        if value != (built := attributes.get(path, value)):
            faults.append(f"{path}: expected {built!r}, found {value!r}")
    return faults


def _may_be_absent(leaf: Leaf, model: Any, config: Any) -> bool:
    """Returns whether a leaf is a tied copy or belongs to an optional submodule that is absent."""
    for submodule in model.optional:
        if leaf.name.startswith(f"{submodule}."):
            return not any(other.name.startswith(f"{submodule}.") for other in leaves(model))
    original = model.tied.get(leaf.name)
    if original is None:
        return False
    return config.tie_word_embeddings or head_of(model, leaf.name) == head_of(model, original)


def _attributes(model: Any) -> dict[str, Any]:
    return {
        f"{path}.{name}".removeprefix("."): value
        for path, module in (("", model), *submodules(model))
        for name, value in vars(module).items()
        if name in COMPUTING and isinstance(value, int | float | str)
    }
