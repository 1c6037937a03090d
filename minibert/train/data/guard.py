"""Checks of examples and of functions of them, whose errors Grain takes for the end of the data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from minibert.errors import InputError, shown


@dataclasses.dataclass(frozen=True)
class CheckedFunction:
    """A function that must return a mapping of arrays.

    Grain takes a `StopIteration` for the end of the data, and skips None. Here the first is a
    `RuntimeError`, as in a generator (PEP 479), and the second an `InputError`.
    """

    function: Callable[..., Any]
    name: str

    def __call__(self, *args: Any) -> Any:
        """Calls the function with `args`."""
        try:
            found = self.function(*args)
        except StopIteration as reason:
            raise RuntimeError(f"{self.name}: raised StopIteration") from reason
        if not isinstance(found, Mapping):
            raise InputError(f"{self.name}: expected arrays by name, found {shown(found)}")
        return found


@dataclasses.dataclass(frozen=True)
class CheckedExamples:
    """Examples, each checked when it is read."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return CheckedFunction(self.source.__getitem__, f"example {index}")(index)
