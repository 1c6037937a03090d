"""The bar of a run, on stderr."""

import contextlib
from collections.abc import Callable, Generator
from typing import Any

from minibert.core.progress import progress_bar

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
    known: dict[str, Any] = {}
    with progress_bar(None, steps, show, initial=step, unit="step", postfix="compiling") as advance:

        def move(reached: int, metrics: dict[str, Any]) -> None:
            nonlocal step
            known.update(metrics)
            said = [text.format(known[name]) for name, text in SHOWN.items() if name in known]
            advance(reached - step, " · ".join(said))
            step = reached

        yield move
