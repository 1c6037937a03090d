"""What the commands share: options, refusals as one line, printing."""

import contextlib
import json
import os
import sys
import unicodedata
from collections.abc import Generator
from typing import Annotated, Any, Literal

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minibert.errors import CheckpointMismatchError, InputError, MinibertError

# What is printed is other people's text: neither markup nor emoji codes in it mean anything.
PLAIN: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False, "emoji": False}
output, problems = Console(**PLAIN), Console(stderr=True, **PLAIN)
styled: Console = Console(soft_wrap=True, highlight=False)  # for text that is all our own

# The flags that stand for arguments which the library's messages advise.
FLAGS = {
    "do_sample=True": "--seed",
    "key=jax.random.key(0)": "--seed",
    "max_new_tokens": "--max-new-tokens",
    "overwrite=True": "--overwrite",
    "pooling='mean'": "--pooling mean",
    "resume='elsewhere'": "--elsewhere",
    "truncation=True": "--truncate",
}


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or a repository of the Hub.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, gpu or tpu; by default the fastest there is.")
]
Compute = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option("--dtype", help="What to compute in."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs to read.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut a text too long.")]
TopK = Annotated[int | None, typer.Option(min=1, help="How many answers.")]


@contextlib.contextmanager
def settings(device: str | None) -> Generator[None]:
    """Runs a command on a device; turns refusals into one line and an exit status."""
    try:
        with contextlib.nullcontext() if device is None else jax.default_device(_device(device)):
            yield
        sys.stdout.flush()  # not at the exit, where nobody could catch what it raises
    except MinibertError as reason:
        raise refused(in_the_shell(reason)) from None
    except BrokenPipeError:  # who reads our output has enough of it
        _let_go_of_output()
        raise typer.Exit(1) from None
    except OSError as reason:
        _let_go_of_output()
        where = "" if reason.filename is None else f"{reason.filename}: "
        raise refused(f"{where}{reason.strerror or reason}") from None
    except KeyboardInterrupt:
        problems.print("interrupted")
        raise typer.Exit(130) from None


def refused(why: str) -> typer.Exit:
    """Says why on one line; what is raised then."""
    problems.print(Text("error:", style="bold red"), visible(why).replace("\n", " "))
    return typer.Exit(1)


def in_the_shell(reason: MinibertError) -> str:
    """A library's message on one line, in the words of the command line."""
    text = str(reason)
    if isinstance(reason, CheckpointMismatchError):
        where = text.partition("\n")[0].rpartition(": ")[0]
        more = len(reason.faults) - 1
        text = f"{where}: {reason.faults[0]}{f' (and {more} more)' if more else ''}"
    for argument in reason.arguments:
        text = text.replace(argument, FLAGS.get(argument, argument))
    return text


def _let_go_of_output() -> None:
    """What is still to be written goes nowhere: at the exit it would be tried once more."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _device(name: str) -> Any:
    try:
        return jax.devices(name.lower())[0]
    except RuntimeError as reason:
        why = str(reason).partition("\n")[0]
        raise InputError(f"--device: no {name!r} here ({why})") from None


def print_json(value: object) -> None:
    """Arrays as lists, other things that JSON has not as text."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_plain)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, default=_plain)
    sys.stdout.write(f"{text}\n")


def visible(text: str) -> str:
    """A text that does nothing to a terminal: control characters but ends of lines as escapes."""
    return "".join(
        repr(one)[1:-1] if unicodedata.category(one) in ("Cc", "Cs") and one != "\n" else one
        for one in text
    )


def _plain(value: object) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else str(value)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Dictionaries of equal keys as a table; every text as it is."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    output.print(table)


def print_answers(found: Any, as_json: bool) -> None:
    """A pipeline's answer, or several, as JSON or as a table."""
    found = found if isinstance(found, list) else [found]
    print_json(found) if as_json else print_rows(found)


def _cell(value: object) -> str:
    if not isinstance(value, float | np.floating):
        return visible(str(value))
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
