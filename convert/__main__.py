"""The command line `python -m convert SOURCE OUT`: `minibert convert`, from a checkout."""

import functools
from collections.abc import Callable

from minibert.__main__ import run


def command() -> Callable[..., object]:
    """Returns the command."""
    import typer

    from minibert.cli.convert import convert

    app = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
    )
    app.command()(convert)
    return app


if __name__ == "__main__":
    run(lambda: functools.partial(command(), prog_name="python -m convert"))
