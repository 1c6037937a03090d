"""Validated dataclass fields: the values that each rule allows, and the messages."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from minibert.core.fields import (
    COUNT,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    PROBABILITY,
    SIZE,
    SWITCH,
    TEXT,
    check,
    checked,
    field,
    interval,
    one_of,
    or_null,
    refuse,
    size,
    whole,
)
from minibert.errors import ConfigError, InputError, UnsupportedConfigError

KINDS = one_of(("linear", "cosine"))


@dataclasses.dataclass(frozen=True)
class Example:
    steps: Any = field(COUNT)
    rate: Any = field(POSITIVE, 1, "the largest one")
    kind: Any = field(KINDS, None)
    tags: Any = field(or_null(TEXT), default_factory=str)
    free: Any = None

    def __post_init__(self):
        check(self, InputError)


@pytest.mark.parametrize(
    ("rule", "allowed", "refused"),
    [
        (whole(), [0, -3, 10**40, np.int64(3)], [True, 1.0, "1", None, math.nan]),
        (whole(0), [0], [-1, False]),
        (whole(2, 4), [2, np.uint8(4)], [1, 5]),
        (COUNT, [1, 2**40], [0]),
        (SIZE, [1, 2**31 - 1], [0, -(2**31), True, 1.5]),
        (size(0), [0], [-1]),
        (
            NUMBER,
            [1, -0.5, np.float32(2), np.int8(3)],
            [True, np.True_, np.float16(math.inf), "1", math.nan, math.inf, 10**400, [1]],
        ),
        (POSITIVE, [5e-324, 1], [0, -1, math.inf]),
        (NON_NEGATIVE, [0], [-1e-9, math.nan]),
        (PROBABILITY, [0, 1, 0.5], [-0.1, 1.5, math.nan]),
        (interval(-1, 1e9), [-1, 1e9], [1e10]),
        (SWITCH, [True, False], [0, 1, "true", None]),
        (TEXT, ["", "a"], [1, b"a", None]),
        (KINDS, ["linear"], ["steep", ["linear"], None]),
        (or_null(KINDS), [None, "cosine"], ["steep"]),
    ],
    ids=lambda part: getattr(part, "expected", None),
)
def test_rules(rule, allowed, refused):
    for value in allowed:
        assert rule.check("name", value) == value
    for value in refused:
        with pytest.raises(ConfigError, match=f"^name: expected {rule.expected}, found "):
            rule.check("name", value)


@pytest.mark.parametrize("value", [2**31, np.int64(2**31), 10**400])
def test_numbers_beyond_32_bits(value):
    for rule, least in ((SIZE, 1), (size(0), 0), (or_null(SIZE), 1)):
        said = f"^name: expected a whole number from {least} to 2147483647, found "
        with pytest.raises(ConfigError, match=said):
            rule.check("name", value)


def test_what_is_kept_is_plain():
    assert type(COUNT.check("name", np.int64(3))) is int
    assert type(NUMBER.check("name", 3)) is float
    assert type(NUMBER.check("name", np.float32(3))) is float
    assert or_null(NUMBER).check("name", None) is None


def test_expectations():
    rules = (whole(), whole(0), whole(2, 4), SIZE, interval(0, 2), or_null(KINDS))
    assert [rule.expected for rule in rules] == [
        "a whole number",
        "a whole number of at least 0",
        "a whole number from 2 to 4",
        "a whole number of at least 1",
        "a number from 0 to 2",
        "one of linear, cosine or null",
    ]


def test_a_dataclass_checks_itself():
    example = Example(steps=np.int32(3))
    assert vars(example) == {"steps": 3, "rate": 1.0, "kind": None, "tags": "", "free": None}
    assert hash(example) == hash(Example(3))
    assert dataclasses.fields(Example)[1].metadata["about"] == "the largest one"
    with pytest.raises(InputError, match=r"^steps: expected a whole number .*, found None$"):
        Example(None)
    with pytest.raises(InputError, match=r"^rate: expected a positive number, found None$"):
        Example(1, None)
    with pytest.raises(InputError, match=r"^kind: expected one of linear, cosine, found 'steep'$"):
        dataclasses.replace(example, kind="steep")
    with pytest.raises(TypeError, match="steps"):
        Example()


def test_some_fields_of_a_file():
    given = {"rate": 2, "free": [1], "unknown": 1}
    assert checked(Example, given) == {"rate": 2.0, "free": [1], "unknown": 1}
    with pytest.raises(ConfigError, match=r"^a\.toml: steps: expected"):
        checked(Example, {"steps": "3"}, where="a.toml: ")


def test_what_is_not_implemented():
    neutral = {"kind": ("plain", None), "scale": (1,)}
    refuse({"kind": None, "scale": 1.0, "other": 2}, neutral)
    refuse({"kind": "plain", "other": 2}, neutral, ("other",))
    with pytest.raises(
        UnsupportedConfigError,
        match=r"^a: kind: 'odd' is not implemented \(only 'plain', which changes nothing\)$",
    ):
        refuse({"kind": "odd"}, neutral, where="a: ")
    with pytest.raises(
        UnsupportedConfigError, match=r"^other: not a field that minibert supports$"
    ):
        refuse({"other": 2}, neutral, ())
