"""A model as a dictionary of arrays by path, and back: what optimisers and shardings work on."""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import GetAttrKey, SequenceKey

from minibert.errors import InputError, shown


class Structure:
    """A model without its arrays.

    Attributes:
        paths: the arrays' places in the tree, such as `encoder.layer.0.output.dense.kernel`.
    """

    def __init__(self, model: Any):
        found, self._treedef = jax.tree_util.tree_flatten_with_path(model)
        self.paths = tuple(_dotted(keys) for keys, _ in found)

    def build(self, arrays: Mapping[str, Any]) -> Any:
        """The model, with these arrays in it."""
        return jax.tree.unflatten(self._treedef, [arrays[path] for path in self.paths])


def parameters(model: Any) -> dict[str, Any]:
    """A model's arrays by path; their shapes, of a model of shapes."""
    return {_dotted(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(model)}


def computing_dtypes(model: nnx.Module) -> list[str]:
    """The dtypes that a model's layers compute in, where they are set; sorted."""
    modules = (module for _, module in nnx.iter_modules(model))
    found = {getattr(module, "dtype", None) for module in modules} - {None}
    return sorted(str(jnp.dtype(dtype)) for dtype in found)


def trainable_paths(model: Any) -> list[str]:
    """Returns the paths of a model's `nnx.Param`s: all its arrays but constants."""
    leaves = jax.tree_util.tree_leaves_with_path(
        model, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )
    return [_dotted(keys) for keys, leaf in leaves if isinstance(leaf, nnx.Param)]


def matching_paths(name: str, patterns: Any, paths: Iterable[str]) -> list[str]:
    """The paths that match one of some patterns, in which `*` stands for anything.

    Args:
        name: the argument, for messages.
        patterns: such as `classifier.*` or `*.attention.*.kernel`.
        paths: where to look.

    Raises:
        InputError: a pattern matches nothing.
    """
    if isinstance(patterns, str):
        patterns = (patterns,)
    if not isinstance(patterns, Iterable) or not (patterns := list(patterns)):
        raise InputError(f"{name}: expected patterns of paths, found {shown(patterns)}")
    paths, found = list(paths), set()
    for pattern in patterns:
        hits = fnmatch.filter(paths, pattern) if isinstance(pattern, str) else []
        if not hits:
            near = ", ".join(paths[:1] + paths[-1:])
            raise InputError(
                f"{name}: {shown(pattern)} matches no parameter; their paths are {near} and such"
            )
        found |= set(hits)
    return [path for path in paths if path in found]


def _dotted(keys: tuple[Any, ...]) -> str:
    if keys and keys[-1] == GetAttrKey("value"):  # the array in its nnx.Variable
        keys = keys[:-1]
    parts = []
    for key in keys:
        match key:
            case GetAttrKey(name=name):
                parts.append(name)
            case SequenceKey(idx=index):
                parts.append(str(index))
            case _:
                raise TypeError(f"a tree with {key!r} in it")
    return ".".join(parts)
