"""Selection of the cases of a test for the default run; the others are slow."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Returns parameters of which all but `quick` are marked slow."""
    values = list(values)
    assert all(value in values for value in quick), (quick, values)
    slow = pytest.mark.slow
    return [
        value
        if value in quick
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=slow)
        for value in values
    ]
