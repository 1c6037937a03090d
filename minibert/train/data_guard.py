"""Errors in examples and in functions of them, which must not look like the end of the data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from minibert.errors import InputError, shown


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A function that returns arrays by name, or raises an error.

    Grain takes a `StopIteration` for the end of the data, and leaves out what is None. Here the
    first is a `RuntimeError`, as in a generator (PEP 479), and the second an `InputError`.
    """

    function: Callable[..., Any]
    name: str

    def __call__(self, *given: Any) -> Any:
        """Calls the function."""
        try:
            found = self.function(*given)
        except StopIteration as reason:
            raise RuntimeError(f"{self.name}: raised StopIteration") from reason
        if not isinstance(found, Mapping):
            raise InputError(f"{self.name}: expected arrays by name, found {shown(found)}")
        return found


@dataclasses.dataclass(frozen=True)
class GuardedExamples:
    """Examples, each checked when it is read."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return Guarded(self.source.__getitem__, f"example {index}")(index)
