"""Public names, what they are, and how they are called.

Modules are left out of annotations, since they move. Types that are no public names themselves, but
stand in the annotations of what is public, are recorded too (`reached.`), by their own names.
"""

import dataclasses
import enum
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from . import surface
from .records import Comparison, Record, different

MODULES = re.compile(r"(?<![\w.'\"])(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])")
SPECIAL = ("__call__", "__getitem__", "__iter__", "__len__")
NEW = " = "  # what a parameter has that callers need not know of


def found() -> Record:
    surface.everything.cache_clear()  # of an earlier comparison in this process
    record: Record = {}
    reached: dict[str, type] = {}
    public = surface.everything()
    for name, value in public.items():
        record |= of_name(name, value, reached)
    known = {value for value in public.values() if isinstance(value, type)}
    done: set[str] = set()
    while waiting := {n: c for n, c in reached.items() if n not in done and c not in known}:
        for name, cls in waiting.items():
            done.add(name)
            record |= of_name(f"reached.{name}", cls, reached)
    return record


def of_name(name: str, value: Any, reached: dict[str, type]) -> Record:
    """What is recorded of a name: of classes, of their members too."""
    if inspect.ismodule(value):
        return {name: {"kind": "module"}}
    if isinstance(value, type):
        record = {name: of_class(value, reached)}
        for member, found in members(value):
            record[f"{name}.{member}"] = of_member(found, reached)
        return record
    if inspect.isfunction(value):
        return {name: of_function("function", value, reached)}
    return {name: {"kind": "constant", "value": of_constant(value)}}


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "minibert"


def of_class(cls: type, reached: dict[str, type]) -> Record:
    public = {one for one in surface.everything().values() if isinstance(one, type)}
    bases = [b.__name__ for b in cls.__mro__[1:-1] if b in public or not is_ours(b)]
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            reach(field.type, reached)
    try:
        signature = inspect.signature(cls)
    except ValueError:  # of a built-in base
        return {"kind": "class", "bases": bases}
    return {"kind": "class", "bases": bases, "parameters": parameters(signature, reached)}


def members(cls: Any) -> Iterator[tuple[str, Any]]:
    """Returns the public members of a class that the library itself defines."""
    fields = (
        {field.name for field in dataclasses.fields(cls)}
        if dataclasses.is_dataclass(cls)
        else set()
    )
    fields |= set(getattr(cls, "_fields", ()))
    for name in dir(cls):
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        shown = name in SPECIAL or not name.startswith("_")
        if owner is not None and is_ours(owner) and name not in fields and shown:
            yield name, inspect.getattr_static(cls, name)


def of_member(found: Any, reached: dict[str, type]) -> Record:
    if isinstance(found, classmethod | staticmethod):
        return of_function(type(found).__name__, found.__func__, reached)
    if isinstance(found, property):
        kind = "property" if found.fset is None else "property that can be set"
        returned = getattr(found.fget, "__annotations__", {}).get("return", inspect.Signature.empty)
        reach(returned, reached)
        return {"kind": kind, "returns": annotation(returned)}
    if inspect.isfunction(found):
        return of_function("method", found, reached)
    if isinstance(found, enum.Enum):
        return {"kind": "value", "value": repr(found.value)}
    return {"kind": "attribute", "value": of_constant(found)}


def of_function(kind: str, function: Any, reached: dict[str, type]) -> Record:
    signature = inspect.signature(function)
    reach(signature.return_annotation, reached)
    return {
        "kind": kind,
        "parameters": parameters(signature, reached),
        "returns": annotation(signature.return_annotation),
    }


def parameters(signature: inspect.Signature, reached: dict[str, type]) -> list[str]:
    """The parameters, a text each; `*, ` is before those that are passed by name alone."""
    found = []
    for one in signature.parameters.values():
        reach(one.annotation, reached)
        before = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**", one.KEYWORD_ONLY: "*, "}
        text = f"{before.get(one.kind, '')}{one.name}"
        text += "" if one.annotation is one.empty else f": {annotation(one.annotation)}"
        found.append(text if one.default is one.empty else f"{text}{NEW}{default(one.default)}")
    return found


def annotation(value: Any) -> str:
    return "" if value is inspect.Signature.empty else short(inspect.formatannotation(value))


def default(value: Any) -> str:
    return repr(value) if isinstance(value, str) else short(getattr(value, "__name__", repr(value)))


def short(text: str) -> str:
    """A text without modules and addresses."""
    text = re.sub(r" at 0x[0-9a-f]+|<class '|'>", "", text)
    return MODULES.sub("", text)


def of_constant(value: Any) -> Any:
    """What a constant is: itself if it is plain, the keys of a mapping, else its class."""
    if isinstance(value, str):
        home = inspect.getfile(surface.module("minibert")).rpartition("/")[0]
        return repr(value.replace(home, "minibert"))
    if value is None or isinstance(value, int | float | frozenset):
        return repr(value)
    if isinstance(value, Mapping):
        return [f"{name}: {of_constant(value[name])}" for name in value]
    if isinstance(value, list | tuple):
        return [of_constant(one) for one in value]
    return short(getattr(value, "__name__", type(value).__name__))


def reach(hint: Any, reached: dict[str, type]) -> None:
    """Adds the library's own classes of an annotation."""
    plain = isinstance(hint, type) and not isinstance(hint, types.GenericAlias)
    if plain and is_ours(hint):
        reached[hint.__name__] = hint
    for one in typing.get_args(hint):
        reach(one, reached)


def compare(recorded: Record, now: Record) -> Comparison:
    result = Comparison(added=sorted(now.keys() - recorded.keys()))
    for name, before in sorted(recorded.items()):
        after = now.get(name)
        if after is None:
            result.differences.append(f"{name}: lost")
            continue
        for key in before.keys() | after.keys():
            one, other = before.get(key), after.get(key)
            if key == "parameters" and one is not None and other is not None:
                faults, more = different_parameters(one, other)
                result.differences += [f"{name}: {fault}" for fault in faults]
                result.added += [f"{name}: {parameter}" for parameter in more]
            elif isinstance(one, list) and isinstance(other, list) and other[: len(one)] == one:
                # the classes of a pipeline, of which a new family adds its own
                result.added += [f"{name}: {key}: {more}" for more in other[len(one) :]]
            elif why := different(one, other):
                result.differences.append(f"{name}: {key}: {why}")
    result.remarks.append(f"{len(recorded)} names")
    return result


def different_parameters(before: list[str], after: list[str]) -> tuple[list[str], list[str]]:
    """Which parameters differ; and which were added where no call is the worse for it."""
    old, new = ({named(text): text for text in texts} for texts in (before, after))
    faults = []
    for name, text in old.items():
        if name not in new:
            faults.append(f"lost {text!r}")
        elif new[name] != text:
            faults.append(f"was {text!r}, is {new[name]!r}")
    kept = [name for name in new if name in old]
    if kept != [name for name in old if name in new]:
        faults.append(f"the order was {', '.join(old)}, is {', '.join(new)}")
    last = max(
        (n for n, text in enumerate(after) if named(text) in old and positional(text)), default=-1
    )
    added = []
    for number, text in enumerate(after):
        if named(text) in old:
            continue
        free = text.startswith("*") or number > last
        harmless = free and (NEW in text or re.match(r"\*+\w", text))
        added += [text] if harmless else []
        faults += [] if harmless else [f"new: {text!r}"]
    return faults, added


def named(text: str) -> str:
    match = re.match(r"(?:\*, )?(\**\w+)", text)
    assert match is not None, text
    return match[1]


def positional(text: str) -> bool:
    return not text.startswith("*")
