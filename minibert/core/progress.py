"""Progress bars."""

import contextlib
import sys
from collections.abc import Callable, Generator

LONG = 1000  # the number of inputs for which a bar is shown by default


@contextlib.contextmanager
def progress_bar(
    label: str | None, total: int | None, show: bool | None, *, least: int = 0, **options: object
) -> Generator[Callable[..., None]]:
    """Shows a progress bar of tqdm on stderr, and yields a function that advances it.

    Args:
        label: the text before the bar.
        total: the number of items; None if it is not known.
        show: whether to show a bar; None to show it if stderr is a terminal and there are at least
            `least` items.
        least: see `show`.
        options: further arguments of tqdm.

    Yields:
        A function of the number of new items and, optionally, the text after the bar.
    """
    long = not least or (total is not None and total >= least)
    if not (long and sys.stderr.isatty() if show is None else show):
        yield lambda count, text="": None
        return
    from tqdm.auto import tqdm  # imported here to keep `import minibert` fast

    with tqdm(desc=label, total=total, **options) as bar:

        def advance(count: int, text: str = "") -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(count)

        yield advance
