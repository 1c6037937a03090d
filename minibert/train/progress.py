"""The bar of a run, on stderr."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

SHOWN = {
    "loss": "loss {:.4g}",
    "eval_loss": "eval {:.4g}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "examples_per_second": "{:,.1f} examples/s",
    "mfu": "MFU {:.1%}",
}


@contextlib.contextmanager
def training_bar(
    step: int, steps: int, show: bool | None
) -> Generator[Callable[[int, dict[str, Any]], None]]:
    """Shows a bar on stderr, and yields a callback that moves it.

    Args:
        step: how many steps are done.
        steps: how many there are in all.
        show: whether there is a bar; None for one if stderr is a terminal.
    """
    from rich.console import Console  # not earlier: `import minibert` stays light
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    hidden = show is False or (show is None and not console.is_terminal)
    with Progress(*columns, console=console, disable=hidden) as bar:
        task = bar.add_task("compiling", total=steps, completed=step)
        known: dict[str, Any] = {}

        def move(step: int, metrics: dict[str, Any]) -> None:
            known.update(metrics)
            said = [text.format(known[name]) for name, text in SHOWN.items() if name in known]
            bar.update(task, completed=step, description=" · ".join(said))

        yield move
