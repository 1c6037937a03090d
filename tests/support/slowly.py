"""Which cases of a test are in the default run, and which among the slow ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but(values: Iterable[Any], *quick: Any) -> list[Any]:
    """Parameters of which all but `quick` are slow."""
    values = list(values)
    assert all(value in values for value in quick), (quick, values)
    slow = pytest.mark.slow
    return [
        value
        if value in quick
        else pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=slow)
        for value in values
    ]
