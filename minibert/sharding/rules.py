"""What a sharding's rules may say, and which dimensions get which axes of the mesh."""

import functools
import itertools
import math
from typing import Any

from minibert.errors import InputError, shown

HEADS, FEATURES = "heads", "features"  # what a rule calls a dimension that the tensor axes split

Rule = tuple[str | int | None, ...]
Axes = tuple[str, ...]


def check_rule(pattern: Any, rule: Any) -> None:
    """Checks one rule by itself.

    Raises:
        InputError: it is none.
    """
    parts = list(rule) if isinstance(rule, tuple | list) else [0]
    numbers = [part for part in parts if type(part) is int]
    split = [part for part in parts if part is not None and type(part) is not int]
    known = all(part in (HEADS, FEATURES) for part in split) and all(n > 0 for n in numbers)
    if not known or len(numbers) > 1 or len(split) > 1 or type(parts[-1]) is int:
        raise InputError(
            f"rules: {shown(pattern)}: expected {HEADS!r}, {FEATURES!r} or None for each "
            "dimension, one of which may be split, and before one of them a number of parts; "
            f"found {shown(rule)}"
        )


def check_fits(pattern: str, rule: Any, path: str, shape: tuple[int, ...]) -> None:
    """Checks a rule against a parameter that its pattern matches.

    Raises:
        InputError: it is not for that shape.
    """
    folds = [(at, part) for at, part in enumerate(rule) if isinstance(part, int)]
    if len(rule) - len(folds) != len(shape) or any(shape[at] % n for at, n in folds):
        raise InputError(
            f"rules: {shown(pattern)}: {shown(rule)} is not for {path}, of shape {shape}"
        )


@functools.lru_cache(maxsize=4096)
def spread(shape: tuple[int, ...], axes: tuple[tuple[str, int], ...]) -> tuple[Axes, ...]:
    """Gives axes to one or two dimensions so that the product of those given is the largest.

    Of equal products, the one on fewer dimensions; then the one that splits the longest.
    """
    best: tuple[Any, tuple[Axes, ...]] = ((), ((),) * len(shape))
    for places in itertools.product([None, *range(len(shape))], repeat=len(axes)):
        split = [1] * len(shape)
        for place_, (_, size) in zip(places, axes, strict=True):
            if place_ is not None:
                split[place_] *= size
        touched = [number for number, parts in enumerate(split) if parts > 1]
        if len(touched) > 2 or any(n % parts for n, parts in zip(shape, split, strict=True)):
            continue
        longest = max((shape[number] for number in touched), default=0)
        merit = (math.prod(split), -len(touched), longest)
        if merit > best[0]:
            given = [
                tuple(a for p, (a, _) in zip(places, axes, strict=True) if p == number)
                for number in range(len(shape))
            ]
            best = (merit, tuple(given))
    return best[1]
