"""Looking into a forward pass: what any room of the tree gives, read or replaced by its path.

The model itself stays as it is: a copy is made whose rooms tell what they give. It is a pure
function, so it may be jitted, differentiated and mapped over.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx
from jax import Array

from minibert.core.checks import as_array, shaped
from minibert.core.types import ArrayLike
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.models.stack import with_execution
from minibert.nn.tree import paths_by_pattern, submodules


class Captured(dict[str, Any]):
    """What rooms gave, by path.

    Attributes:
        outputs: what the model returned.
    """

    outputs: Any = None


def rooms(model: PretrainedModel) -> dict[str, Any]:
    """The modules of a model by their paths, from the top down; lists are left out."""
    return {path: one for path, one in submodules(model) if not isinstance(one, nnx.List)}


def captured(
    model: PretrainedModel,
    paths: str | Iterable[str],
    *args: Any,
    replace: Mapping[str, Callable[[Any], Any] | ArrayLike] | None = None,
    **kwargs: Any,
) -> Captured:
    """Calls a model, and keeps what some of its rooms give.

    A room that returns several things (attention: states, weights, cache) gives the first, the
    states; one that is called several times, what it gave last. What is replaced is kept as it is
    after that. Layers are not computed again for gradients, whatever the model is set to.

    Args:
        model: the model.
        paths: of rooms, such as `encoder.layer.3.attention.self`; `*` stands for anything.
        *args, **kwargs: the model's arguments.
        replace: by path (`*` here too), what a room gives in place of its own: an array of the same
            shape, or a function from its own to that.

    Returns:
        What the rooms gave by path, arrays but for whole models; with the model's `outputs`.

    Raises:
        InputError: there is no such room, or the call does not come through it; or what is to
            replace an array is none of its shape.
    """
    # what `jax.checkpoint` computes inside could not be kept; arrays stay where they are
    copy = with_execution(model, remat=False, sharding=None)
    known = rooms(copy)
    patterns = [paths] if isinstance(paths, str) else paths
    read = paths_by_pattern("paths", patterns, known, "room")
    replacing = {} if replace is None else replace
    if not isinstance(replacing, Mapping):
        raise InputError(f"replace: expected edits by path, found {shown(replace)}")
    replaced = paths_by_pattern("replace", replacing, known, "room")
    edits = {}
    for pattern, hits in replaced.items():
        for path in hits:
            if path in edits:
                raise InputError(f"replace: {path} is named twice")
            edits[path] = replacing[pattern]
    found, wanted = Captured(), set().union(*read.values())
    for path in {*wanted, *edits}:
        tell = functools.partial(_told, found, path, edits)
        object.__setattr__(known[path], "_tell", tell)
        object.__setattr__(known[path], "__class__", _tapped(type(known[path])))
    found.outputs = copy(*args, **kwargs)
    for name, matched in (("paths", read), ("replace", replaced)):
        for pattern, hits in matched.items():
            if found.keys().isdisjoint(hits):
                raise InputError(f"{name}: {shown(pattern)}: this call does not come through")
    for path in found.keys() - wanted:
        del found[path]
    return found


def _told(found: Captured, path: str, edits: Mapping[str, Any], output: Any) -> Any:
    several = isinstance(output, tuple)
    value = output[0] if several else output
    if path in edits:
        value = _replaced(path, edits[path], value)
        make = getattr(output, "_make", tuple)  # a named tuple's own
        output = make((value, *output[1:])) if several else value
    found[path] = value
    return output


def _replaced(path: str, edit: Any, value: object) -> Array:
    where = f"replace: {path}"
    if not isinstance(value, Array):
        raise InputError(f"{where}: gives no array but {type(value).__name__}: name a room in it")
    new = as_array(where, edit(value) if callable(edit) else edit)
    return shaped(where, new, [value.shape]).astype(value.dtype)


@functools.cache
def _tapped(cls: Any) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._tell(cls.__call__(self, *args, **kwargs))

    return type(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})
