"""The checker of shapes that the tests import minibert with (`--jaxtyping-packages`).

Arguments and results are checked against jaxtyping's annotations alone, `Float[Array, "batch seq"]`
and unions, tuples and lists of such. What Python's own types say is for a type checker to hold:
many tests pass what a function does not take, and expect its own error.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import AbstractArray


def shaped(annotation: Any) -> bool:
    """Whether there is a shape in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(map(shaped, typing.get_args(annotation)))


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value has the shape of an annotation; true of all that is no shape."""
    kind, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, part) if shaped(part) else _is(value, part) for part in parts)
    if kind is tuple and isinstance(value, tuple):
        if parts[-1] is Ellipsis:
            return all(fits(one, parts[0]) for one in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if kind in (list, Sequence) and isinstance(value, list | tuple):
        return all(fits(one, parts[0]) for one in value)
    if kind is Callable:
        return callable(value)
    return not shaped(annotation) or isinstance(value, annotation)


def _is(value: Any, part: Any) -> bool:
    """Whether a value is of a part of a union that has no shape, as far as `isinstance` can say."""
    kind = typing.get_origin(part) or part
    return part is Any or not isinstance(kind, type) or isinstance(value, kind)


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its arguments and its result checked."""
    known = {name: one for name, one in function.__annotations__.items() if shaped(one)}
    if not known:
        return function
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if name in known and not fits(value, known[name]):
                raise TypeError(
                    f"{function.__qualname__}: {name}: expected {known[name]}: {value!r}"
                )
        result = function(*args, **kwargs)
        if "return" in known and not fits(result, known["return"]):
            raise TypeError(f"{function.__qualname__}: expected {known['return']}: {result!r}")
        return result

    return call
