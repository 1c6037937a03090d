"""Digests and descriptions of values, to tell whether two runs were made from the same ones."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

SAMPLE = 4096  # the number of items that are read of a sequence other than a list, tuple or array
AT_ONCE = 1 << 24  # items of an array that are read together: a memory map may exceed the memory
SIMPLE = (str, bool, int, float, type(None))


def digest(value: object) -> str:
    """Returns a short digest of a value's contents.

    All contents of numbers, texts, arrays, lists, tuples, mappings and dataclasses are included; of
    other sequences the length and at most 4,096 items, evenly spaced; of other objects the type.
    """
    found = hashlib.sha256()
    _feed(found, value)
    return found.hexdigest()[:16]


def description(value: Any) -> Any:
    """Describes a number, a function or an object with settings, as JSON can represent it.

    A dataclass is described by its fields, those that are not simple by their digests; another
    object by the name of the function or type.
    """
    if isinstance(value, SIMPLE):
        return value
    if _has_fields(value):
        found = {"type": type(value).__name__}
        for field in dataclasses.fields(value):
            one = getattr(value, field.name)
            found[field.name] = one if isinstance(one, SIMPLE) else digest(one)
        return found
    return getattr(value, "__qualname__", type(value).__qualname__)


def _has_fields(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _feed(found: "hashlib._Hash", value: object) -> None:
    match value:
        case np.ndarray() | np.generic():
            found.update(f"array {value.dtype.str} {value.shape} ".encode())
            if value.dtype.hasobject:
                _feed(found, value.tolist())
                return
            array = np.atleast_1d(value)
            rows = max(AT_ONCE * len(array) // max(array.size, 1), 1)
            for start in range(0, len(array), rows):
                found.update(array[start : start + rows].tobytes())
        case str() | bytes():
            octets = value if isinstance(value, bytes) else value.encode(errors="surrogatepass")
            found.update(f"{type(value).__name__} {len(octets)} ".encode() + octets)
        case bool() | int() | float() | None:
            found.update(f"{value!r} ".encode())
        case Mapping():
            found.update(f"mapping {len(value)} ".encode())
            for key in value:
                _feed(found, key)
                _feed(found, value[key])
        case _:
            _feed_object(found, value)


def _feed_object(found: "hashlib._Hash", value: Any) -> None:
    found.update(f"{type(value).__qualname__} ".encode())
    if _has_fields(value):
        for field in dataclasses.fields(value):
            _feed(found, field.name)
            _feed(found, getattr(value, field.name))
    elif hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        count = len(value)
        found.update(f"{count} ".encode())
        items = value
        if not isinstance(value, list | tuple):  # some items, evenly spaced
            indices = np.linspace(0, count - 1, min(count, SAMPLE)).astype(int).tolist()
            items = (value[index] for index in indices)
        for item in items:
            _feed(found, item)
