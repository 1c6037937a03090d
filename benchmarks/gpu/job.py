"""The context of a step, which writes results to a file as soon as they exist."""

import importlib.util
import json
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

MARGIN = 2.0  # seconds before the limit after which no cell is started
RESERVE = 0.5  # time that must be left for a cell, relative to the longest so far


class SkippedError(Exception):
    """A step cannot run here; the message says what is missing."""


class Job:
    """A run of a step.

    Every result is written to a file immediately, as a line of JSON, so that a crash or a time
    limit only loses the current cell.

    Args:
        path: the file that the lines are appended to.
        seconds: the time limit from now.
        dry_run: whether sizes are tiny and the device may be a CPU.
        without: packages to treat as missing.
        scratch: a folder that the steps of a run share.
    """

    def __init__(
        self, path: str, seconds: float, dry_run: bool, without: list[str], scratch: str
    ) -> None:
        self.dry_run, self.scratch = dry_run, scratch
        self._path = path
        self._end, self._without = time.monotonic() + seconds - MARGIN, set(without)

    def left(self) -> float:
        """Returns the seconds until no cell should be started."""
        return self._end - time.monotonic()

    def emit(self, **line: Any) -> None:
        """Writes one line of JSON."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def skip(self, what: str, why: str) -> None:
        """Records that something is not measured, and why."""
        self.emit(skip=what, why=why)

    def note(self, **facts: Any) -> None:
        """Records facts about the whole step."""
        self.emit(notes=facts)

    def row(self, name: str, figures: Mapping[str, float | str], **details: Any) -> None:
        """Records a row of the step's table.

        Args:
            name: the name of the row.
            figures: the figures by column. A number that is not finite is an error.
            details: data for the JSON only.

        Raises:
            ArithmeticError: if a figure is not finite.
        """
        for column, figure in figures.items():
            if not isinstance(figure, str) and not math.isfinite(figure):
                raise ArithmeticError(f"{name}: {column} is {figure}")
        self.emit(row=name, figures=dict(figures), **details)

    def has(self, what: str, *packages: str) -> bool:
        """Returns whether packages are installed; if not, records `what` as skipped."""
        missing = [name for name in packages if not self.installed(name)]
        if missing:
            self.skip(what, f"{missing[0]} is not installed")
        return not missing

    def installed(self, package: str) -> bool:
        """Returns whether a package is installed and not treated as missing."""
        return package not in self._without and importlib.util.find_spec(package) is not None

    def need_card(self) -> Any:
        """Returns JAX's device.

        Raises:
            SkippedError: if it is not a GPU, and this is not a dry run.
        """
        import jax

        device = jax.devices()[0]
        if device.platform not in ("gpu", "cuda") and not self.dry_run:
            raise SkippedError(f"needs a GPU; JAX finds {device.platform} only")
        return device

    def each(self, cells: Mapping[str, Any], measure: Callable[[str, Any], None]) -> None:
        """Measures cells in order while there is enough time.

        A cell is skipped if the remaining time is short compared with the longest cell so far. An
        error in a cell is recorded, and the next cell follows.

        Args:
            cells: values by name, the most important first.
            measure: a function of a cell's name and value that records its rows.
        """
        longest = 0.0
        self.emit(planned=list(cells))
        for name, cell in cells.items():
            if self.left() < RESERVE * longest:
                continue
            self.emit(begins=name)
            start = time.monotonic()
            try:
                measure(name, cell)
            except Exception as reason:
                traceback.print_exc()
                self.emit(error=text_of(reason), at=name)
            longest = max(longest, time.monotonic() - start)
        self.emit(begins=None)


def text_of(reason: BaseException) -> str:
    """Returns an exception's type and the beginning of its message."""
    return f"{type(reason).__name__}: {reason}"[:600]


def cached_folder(job: Job, name: str, make: Callable[[str], None]) -> str:
    """Returns a folder that the first step to use it creates."""
    path = os.path.join(job.scratch, name)
    if not os.path.exists(path):
        make(path)
    return path
