"""The module tree: its submodules, variables and arrays by path, and its text representation."""

import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import GetAttrKey, keystr, tree_flatten_with_path, tree_leaves_with_path

from minibert.errors import InputError, shown


def submodules(module: nnx.Module) -> Iterator[tuple[str, Any]]:
    """Yields every submodule with its path, parents first, in the order of construction."""
    return ((path, node) for path, node, _ in _walk(module) if isinstance(node, nnx.Module))


def variables(module: nnx.Module) -> Iterator[tuple[str, Any, Any]]:
    """Yields every variable with its path and its owner, in the order of construction."""
    return (found for found in _walk(module) if isinstance(found[1], nnx.Variable))


def _walk(module: nnx.Module, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the path of each module and variable in a module, the object itself, and its owner."""
    for name, child in _children(module):
        yield f"{prefix}{name}", child, module
        if isinstance(child, nnx.Module):
            yield from _walk(child, f"{prefix}{name}.")


def _children(module: nnx.Module) -> list[tuple[str, Any]]:
    items = enumerate(module) if isinstance(module, nnx.List) else vars(module).items()
    return [(str(k), v) for k, v in items if isinstance(v, nnx.Module | nnx.Variable)]


def module_repr(module: nnx.Module) -> str:
    """Returns the module tree as text: one line per leaf module, equal neighbours in lists once."""
    return "\n".join(_tree_lines(module))


def _tree_lines(module: nnx.Module) -> list[str]:
    name = type(module).__name__
    match module:
        case nnx.Linear():
            return [f"{name}({module.in_features}, {module.out_features})"]
        case nnx.Embed():
            return [f"{name}({module.num_embeddings}, {module.features})"]
        case nnx.LayerNorm():
            return [f"{name}({module.num_features}, epsilon={module.epsilon:g})"]
        case nnx.Module(printed=str(arguments)):
            return [f"{name}({arguments})"]
        case nnx.Variable():
            return [f"{name}{module.shape}"]
    parts = [(key, _tree_lines(child)) for key, child in _children(module)]
    if isinstance(module, nnx.List):
        parts = _grouped([lines for _, lines in parts])
    lines = [f"{name}("]
    for key, child in parts:
        lines += [f"  ({key}): {child[0]}", *(f"  {line}" for line in child[1:])]
    return [*lines, ")"]


def _grouped(blocks: list[list[str]]) -> list[tuple[str, list[str]]]:
    groups, start = [], 0
    for block, equal in itertools.groupby(blocks):
        count = len(list(equal))
        if count == 1:
            groups.append((str(start), block))
        else:
            name = f"{start}-{start + count - 1}"
            groups.append((name, [f"{count} x {block[0]}", *block[1:]]))
        start += count
    return groups


class Structure:
    """The structure of a model, without its arrays.

    Attributes:
        paths: the paths of the arrays, such as `encoder.layer.0.output.dense.kernel`.
    """

    def __init__(self, model: nnx.Module):
        found, self._treedef = tree_flatten_with_path(model)
        self.paths: tuple[str, ...] = tuple(_path(keys) for keys, _ in found)

    def build(self, arrays: Mapping[str, Any]) -> Any:
        """Returns the model with the given arrays."""
        return jax.tree.unflatten(self._treedef, [arrays[path] for path in self.paths])


def parameters(model: nnx.Module) -> dict[str, Any]:
    """Returns the arrays of a model by path; for a tree of shapes, the shapes."""
    return {_path(keys): leaf for keys, leaf in tree_leaves_with_path(model)}


def computing_dtypes(model: nnx.Module) -> list[str]:
    """Returns the dtypes that are set for the computations of a model's layers, sorted."""
    found = {getattr(module, "dtype", None) for _, module in nnx.iter_modules(model)} - {None}
    return sorted(str(jnp.dtype(dtype)) for dtype in found)


def trainable_paths(model: nnx.Module) -> list[str]:
    """Returns the paths of a model's `nnx.Param`s: all its arrays except constants."""
    found = tree_leaves_with_path(model, is_leaf=lambda node: isinstance(node, nnx.Variable))
    return [_path(keys) for keys, leaf in found if isinstance(leaf, nnx.Param)]


def matching_paths(name: str, patterns: object, paths: Iterable[str]) -> list[str]:
    """Returns the paths that match at least one pattern, in which `*` matches any characters.

    Args:
        name: the argument, for messages.
        patterns: such as `classifier.*` or `*.attention.*.kernel`.
        paths: the paths to match.

    Raises:
        InputError: a pattern matches no path.
    """
    if isinstance(patterns, str):
        patterns = (patterns,)
    if not isinstance(patterns, Iterable) or not (patterns := list(patterns)):
        raise InputError(f"{name}: expected patterns of paths, found {shown(patterns)}")
    paths = list(paths)
    found = set().union(*paths_by_pattern(name, patterns, paths, "parameter").values())
    return [path for path in paths if path in found]


def paths_by_pattern(
    name: str, patterns: object, paths: Iterable[str], kind: str
) -> dict[str, list[str]]:
    """Returns the paths that match each pattern; `kind` is what they are paths of, for messages."""
    if not isinstance(patterns, Iterable):
        raise InputError(f"{name}: expected paths of {kind}s, found {shown(patterns)}")
    paths, found = list(paths), {}
    for pattern in patterns:
        hits = fnmatch.filter(paths, pattern) if isinstance(pattern, str) else []
        if not hits:
            near = ", ".join(paths[:1] + paths[-1:])
            raise InputError(f"{name}: {shown(pattern)} matches no {kind}; paths look like {near}")
        found[pattern] = hits
    return found


def _path(keys: tuple[Any, ...]) -> str:
    if keys and keys[-1] == GetAttrKey("value"):  # the array in its nnx.Variable
        keys = keys[:-1]
    return keystr(keys, simple=True, separator=".")
