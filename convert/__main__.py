"""The command line `python -m convert SOURCE OUT`: `minibert convert`, from a checkout."""

import typer

from minibert.cli.convert import convert

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
app.command()(convert)

if __name__ == "__main__":
    app(prog_name="python -m convert")
