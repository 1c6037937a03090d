"""Guards: an error in examples or transformations must not look like the end of the data."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from minibert.errors import InputError, shown


@dataclasses.dataclass(frozen=True)
class FunctionGuard:
    """Wraps a function so that it returns a mapping of arrays, or raises an error.

    Grain treats a `StopIteration` as the end of the data, and skips an example that is None. Here
    the first becomes a `RuntimeError`, as in a generator (PEP 479), and the second an `InputError`.
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
class ExampleSource:
    """A data source of Grain that checks each example when it is read."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return FunctionGuard(self.source.__getitem__, f"example {index}")(index)
