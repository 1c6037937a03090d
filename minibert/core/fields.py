"""Validated dataclass fields: rules for their values, and the check of all fields.

A field is declared with a rule and a default, and `check` is called from `__post_init__`:

    @dataclasses.dataclass(frozen=True)
    class Settings:
        steps: int = field(whole(1), 100)
        schedule: str | None = field(one_of(("linear", "cosine")), None)

        def __post_init__(self) -> None:
            check(self)
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from minibert.errors import ConfigError, MinibertError, UnsupportedConfigError, shown


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule for the values of a field.

    Attributes:
        expected: the allowed values, as an error message describes them.
        allows: returns whether a value is allowed.
        convert: returns an allowed value in the form in which it is stored.
        interval: the allowed values, as a message about a positive whole number describes them;
            empty if `expected` describes these too.
    """

    expected: str
    allows: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    interval: str = ""

    def check(self, name: str, value: object, error: type[MinibertError] = ConfigError) -> Any:
        """Returns a value in its final form, or raises `error` if it is not allowed."""
        if not self.allows(value):
            large = isinstance(value, int | np.integer) and value > 0 and value is not True
            expected = self.interval if large and self.interval else self.expected
            raise error(f"{name}: expected {expected}, found {shown(value)}")
        return self.convert(value)


def number(expected: str, allows: Callable[[float], bool]) -> Rule:
    """Returns the rule of a number, of Python or NumPy, which must not allow NaN."""
    return Rule(
        expected,
        lambda value: (
            isinstance(value, int | float | np.integer | np.floating)
            and not isinstance(value, bool)
            and allows(_as_float(value))
        ),
        float,
    )


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except (OverflowError, TypeError):  # a huge integer, or np.timedelta64
        return math.nan


def interval(least: int | float, most: int | float) -> Rule:
    """Returns the rule of a number in a closed interval."""
    return number(f"a number from {least} to {most}", lambda value: least <= value <= most)


def whole(least: int | None = None, most: int | None = None) -> Rule:
    """Returns the rule of a whole number, of Python or NumPy; without `most` it has no limit."""
    bound = "" if least is None else f" of at least {least}"
    return Rule(
        "a whole number" + (bound if most is None else f" from {least} to {most}"),
        lambda value: (
            isinstance(value, int | np.integer)
            and not isinstance(value, bool)
            and (least is None or value >= least)
            and (most is None or value <= most)
        ),
        int,
    )


def size(least: int) -> Rule:
    """Returns the rule of a whole number of at least `least` that fits into 32 bits.

    Its message states the upper limit only if it matters.
    """
    rule = whole(least, 2**31 - 1)
    return dataclasses.replace(rule, expected=whole(least).expected, interval=rule.expected)


def one_of(choices: Iterable[str]) -> Rule:
    """Returns the rule of a name among `choices`."""
    known = tuple(choices)
    return Rule(
        f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known
    )


def or_null(rule: Rule) -> Rule:
    """Returns a rule that also allows None."""
    return Rule(
        f"{rule.expected} or null",
        lambda value: value is None or rule.allows(value),
        lambda value: None if value is None else rule.convert(value),
        rule.interval,
    )


SWITCH = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str))
NUMBER = number("a number", math.isfinite)
POSITIVE = number("a positive number", lambda value: 0 < value < math.inf)
NON_NEGATIVE = number("a number of at least 0", lambda value: 0 <= value < math.inf)
PROBABILITY = interval(0, 1)
BELOW_1 = number("a number of at least 0 and below 1", lambda value: 0 <= value < 1)
SIZE = size(1)
COUNT = whole(1)


def field(
    rule: Rule,
    default: Any = dataclasses.MISSING,
    about: str = "",
    *,
    default_factory: Any = dataclasses.MISSING,
) -> Any:
    """Returns a dataclass field with a rule.

    Args:
        rule: what the field may hold.
        default: its default; where that is None, None is always allowed.
        about: a description of the field, as a help text.
        default_factory: as in `dataclasses.field`.
    """
    return dataclasses.field(
        default=default,
        default_factory=default_factory,
        metadata={"rule": rule, "about": about},
    )


def key(about: str, rule: Rule = TEXT, default: object = None) -> Any:
    """Returns a field, with the description first; by default an optional text."""
    return field(rule, default, about)


def checked(
    cls: Any,
    values: Mapping[str, Any],
    error: type[MinibertError] = ConfigError,
    where: str = "",
) -> dict[str, Any]:
    """Returns values of a dataclass's fields in their final form.

    Args:
        cls: the dataclass.
        values: some of its fields, or all of them, by name.
        error: the type of error to raise if a value is not allowed.
        where: a prefix of the field's name, for messages.
    """
    found = dict(values)
    for one in dataclasses.fields(cls):
        if one.name in found and "rule" in one.metadata:
            value = found[one.name]
            if value is not None or one.default is not None:
                found[one.name] = one.metadata["rule"].check(f"{where}{one.name}", value, error)
    return found


def check(instance: object, error: type[MinibertError] = ConfigError) -> None:
    """Checks and converts the fields of a frozen dataclass, in its `__post_init__`."""
    assign(instance, checked(type(instance), vars(instance), error))


def assign(instance: object, values: Mapping[str, Any]) -> None:
    """Sets fields of a frozen dataclass in its `__post_init__`."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def refuse(
    data: Mapping[str, Any],
    neutral: Mapping[str, tuple[Any, ...]],
    known: Collection[str] | None = None,
    where: str = "",
) -> None:
    """Refuses the fields of a file that are not implemented.

    Args:
        data: the file's fields by name.
        neutral: the fields that are not implemented, each with the values that have no effect.
        known: the names of all other fields that the file may have; None for any.
        where: a prefix of the field's name, for messages.

    Raises:
        UnsupportedConfigError: a field is not known, or its value would have an effect.
    """
    for name, value in data.items():
        if name in neutral and value not in neutral[name]:
            raise UnsupportedConfigError(
                f"{where}{name}: {shown(value)} is not implemented "
                f"(only {shown(neutral[name][0])}, which changes nothing)"
            )
        if known is not None and name not in (*neutral, *known):
            raise UnsupportedConfigError(f"{where}{name}: not a field that minibert supports")
