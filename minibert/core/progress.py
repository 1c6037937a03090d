"""A progress bar for long inputs."""

import contextlib
from collections.abc import Callable, Generator

LONG = 1000


@contextlib.contextmanager
def ticking(label: str, total: int | None, show: bool | None) -> Generator[Callable[[int], None]]:
    """Shows a bar on stderr, and yields what advances it by a number.

    Args:
        label: what stands before the bar.
        total: how many there are; None if that is not known.
        show: whether there is a bar; None for one if there are `LONG` or more and stderr is a
            terminal.
    """
    if show is False or (show is None and (total is None or total < LONG)):
        yield lambda count: None
        return
    from rich.console import Console  # not earlier: `import minibert` stays light
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, disable=show is None and not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
