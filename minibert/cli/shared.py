"""Code shared by the commands: options, one-line error messages, and printing."""

import contextlib
import json
import os
import sys
from collections.abc import Generator
from typing import Annotated, Any, Literal

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minibert.core.terminal import HIDDEN, visible
from minibert.errors import CheckpointMismatchError, InputError, MinibertError

# The printed texts are user data, in which markup and emoji codes must not be interpreted.
PLAIN: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False, "emoji": False}
output, problems = Console(**PLAIN), Console(stderr=True, **PLAIN)
styled: Console = Console(soft_wrap=True, highlight=False)  # for text without user data

# The flags that correspond to arguments in the library's messages.
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
    str | None, typer.Option(help="cpu, gpu or tpu; by default the fastest available.")
]
Compute = Annotated[
    Literal["float32", "float16", "bfloat16"] | None,
    typer.Option("--dtype", help="The dtype of computation."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Truncate long texts.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Number of answers.")]


@contextlib.contextmanager
def settings(device: str | None) -> Generator[None]:
    """Runs a command on a device; converts errors to one line and an exit status."""
    try:
        with contextlib.nullcontext() if device is None else jax.default_device(_device(device)):
            yield
        sys.stdout.flush()  # here, because errors raised at exit cannot be caught
    except MinibertError as reason:
        raise refused(in_the_shell(reason)) from None
    except BrokenPipeError:  # the reader of the output has closed it
        _discard_output()
        raise typer.Exit(1) from None
    except OSError as reason:
        _discard_output()
        where = "" if reason.filename is None else f"{reason.filename}: "
        raise refused(f"{where}{reason.strerror or reason}") from None
    except KeyboardInterrupt:
        problems.print("interrupted")
        raise typer.Exit(130) from None


def refused(why: str) -> typer.Exit:
    """Prints the reason on one line and returns the exception to raise."""
    problems.print(Text("error:", style="bold red"), visible(why).replace("\n", " "))
    return typer.Exit(1)


def in_the_shell(reason: MinibertError) -> str:
    """Returns the library's message on one line, with flags in place of arguments."""
    text = str(reason)
    if isinstance(reason, CheckpointMismatchError):
        where = text.partition("\n")[0].rpartition(": ")[0]
        more = len(reason.faults) - 1
        text = f"{where}: {reason.faults[0]}{f' (and {more} more)' if more else ''}"
    for argument in reason.arguments:
        text = text.replace(argument, FLAGS.get(argument, argument))
    return text


def _discard_output() -> None:
    """Discards buffered output, which Python would try to write again at exit."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _device(name: str) -> Any:
    try:
        return jax.devices(name.lower())[0]
    except RuntimeError as reason:
        why = str(reason).partition("\n")[0]
        raise InputError(f"--device: {name!r} is not available ({why})") from None


def print_json(value: object) -> None:
    """Prints JSON, with arrays as lists and other unknown types as text; see `visible`."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_plain)
    text = HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2, default=_plain)
    sys.stdout.write(f"{text}\n")


def _plain(value: object) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else str(value)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Prints dictionaries with equal keys as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    output.print(table)


def print_answers(found: Any, as_json: bool) -> None:
    """Prints one or more answers of a pipeline, as JSON or as a table."""
    found = found if isinstance(found, list) else [found]
    print_json(found) if as_json else print_rows(found)


def _cell(value: object) -> str:
    if not isinstance(value, float | np.floating):
        return visible(str(value))
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
