"""Captures or replaces the outputs of any submodule in a forward pass, by path.

`captured` runs a copy of the model whose submodules record their outputs; the model itself does not
change. It is a pure function, so that it can be jitted, differentiated and vectorised.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flax import nnx
from jax import Array

from minibert.core.checks import as_array, shaped
from minibert.core.types import ArrayLike
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.stack import with_execution
from minibert.nn import tree

CALL = re.compile(r"@\d+$")


class Captured(dict[str, Any]):
    """The outputs of submodules, by path.

    Attributes:
        outputs: the outputs of the model.
    """

    outputs: Any = None


def submodules(model: PretrainedModel) -> dict[str, Any]:
    """Returns the submodules of a model by path, top down, without lists."""
    return {path: one for path, one in tree.submodules(model) if not isinstance(one, nnx.List)}


def captured(
    model: PretrainedModel,
    paths: str | Iterable[str],
    *args: Any,
    replace: Mapping[str, Callable[[Any], Any] | ArrayLike] | None = None,
    **kwargs: Any,
) -> Captured:
    """Calls a model and returns the outputs of some of its submodules.

    Of a submodule that returns several values (attention: states, weights, cache) the first is
    captured; of one that is called several times, its last output; of one whose output is replaced,
    the replacement. Gradient checkpointing is switched off.

    Args:
        model: the model.
        paths: paths of submodules, such as `encoder.layer.3.attention.self`; `*` matches anything.
            `@2` after a path is the third call of a submodule that is called several times, such as
            a block that layers share.
        *args, **kwargs: the model's arguments.
        replace: replacements of outputs, by path (`*` here too): an array of the same shape, or a
            function from the output to such an array.

    Returns:
        The outputs by path: arrays, or for base models their output objects. The model's output is
        the attribute `outputs`.

    Raises:
        InputError: if no submodule has such a path or the call does not execute it, or a
            replacement does not have the shape of the output.
    """
    # values computed inside `jax.checkpoint` could not leave it
    copy = with_execution(model, remat=False, sharding=None)
    known = submodules(copy)
    patterns = [paths] if isinstance(paths, str) else paths
    read = _paths_by_pattern("paths", patterns, known)
    replacing = {} if replace is None else replace
    if not isinstance(replacing, Mapping):
        raise InputError(f"replace: expected a mapping of paths, found {shown(replace)}")
    replaced = _paths_by_pattern("replace", replacing, known)
    edits = {}
    for pattern, hits in replaced.items():
        for path in hits:
            if path in edits:
                raise InputError(f"replace: {path}: matches two patterns; expected only one")
            edits[path] = replacing[pattern]
    found, wanted = Captured(), set().union(*read.values())
    for path in {name.partition("@")[0] for name in (*wanted, *edits)}:
        record = functools.partial(_record, found, path, edits, itertools.count())
        object.__setattr__(known[path], "_record", record)
        object.__setattr__(known[path], "__class__", _tapped(type(known[path])))
    found.outputs = copy(*args, **kwargs)
    for name, matched in (("paths", read), ("replace", replaced)):
        for pattern, hits in matched.items():
            if found.keys().isdisjoint(hits):
                raise InputError(f"{name}: {shown(pattern)}: is not executed by this call")
    for path in found.keys() - wanted:
        del found[path]
    return found


def _paths_by_pattern(name: str, patterns: object, known: Iterable[str]) -> dict[str, list[str]]:
    """Returns the paths that match each pattern, with the number of the call that it ends with."""
    given: Any = list(patterns) if isinstance(patterns, Iterable) else patterns
    plain = given
    if isinstance(given, list):
        plain = [CALL.sub("", one) if isinstance(one, str) else one for one in given]
    found = tree.paths_by_pattern(name, plain, known, "submodule")
    calls = {one: CALL.search(one) for one in given}
    return {
        one: [f"{path}{call[0] if call else ''}" for path in found[CALL.sub("", one)]]
        for one, call in calls.items()
    }


def _record(
    found: Captured, path: str, edits: Mapping[str, Any], calls: Iterator[int], output: Any
) -> Any:
    several = isinstance(output, tuple)
    value = output[0] if several else output
    call = f"{path}@{next(calls)}"
    for name in (path, call):
        if name in edits:
            value = _replaced(name, edits[name], value)
            make = getattr(output, "_make", tuple)  # for named tuples
            output = make((value, *output[1:])) if several else value
    found[path] = found[call] = value
    return output


def _replaced(path: str, edit: Any, value: object) -> Array:
    where = f"replace: {path}"
    if not isinstance(value, Array):
        kind = type(value).__name__
        raise InputError(f"{where}: returns {kind}, not an array; replace a submodule of it")
    new = as_array(where, edit(value) if callable(edit) else edit)
    return shaped(where, new, [value.shape]).astype(value.dtype)


@functools.cache
def _tapped(cls: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._record(cls.__call__(self, *args, **kwargs))

    return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
