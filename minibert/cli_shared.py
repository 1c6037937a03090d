"""What the commands share: options, refusals as one line, printing."""

import contextlib
import enum
import json
import sys
from collections.abc import Generator
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from minibert.errors import InputError, MinibertError

output, problems = Console(soft_wrap=True, highlight=False), Console(stderr=True, soft_wrap=True)


class DType(enum.StrEnum):
    """What to compute in."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Precision(enum.StrEnum):
    """What embeddings are stored in."""

    float32 = "float32"
    int8 = "int8"
    uint8 = "uint8"
    binary = "binary"
    ubinary = "ubinary"


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, or a repository of the Hub.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, gpu or tpu; by default the fastest there is.")
]
Compute = Annotated[DType | None, typer.Option("--dtype", help="What to compute in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs to read.")]
TopK = Annotated[int | None, typer.Option(min=1, help="How many answers.")]


@contextlib.contextmanager
def settings(device: str | None) -> Generator[None]:
    """Runs a command on a device; turns refusals into one line and an exit status."""
    try:
        with contextlib.ExitStack() as stack:
            if device is not None:
                stack.enter_context(jax.default_device(_device(device)))
            yield
    except MinibertError as reason:
        problems.print("[bold red]error:[/]", end=" ")
        problems.print(str(reason), markup=False, highlight=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        problems.print("interrupted", markup=False)
        raise typer.Exit(130) from None


def _device(name: str) -> Any:
    try:
        return jax.devices(name)[0]
    except RuntimeError as reason:
        why = str(reason).partition("\n")[0]
        raise InputError(f"--device: no {name!r} here ({why})") from None


def computing(dtype: DType | None) -> dict[str, Any]:
    """The options of a load that `--dtype` stands for."""
    return {} if dtype is None else {"dtype": dtype.value}


def print_json(value: Any) -> None:
    """Arrays as lists, other things that JSON has not as text."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else str(value)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Dictionaries of equal keys as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for key, value in rows[0].items():
        table.add_column(key, justify="right" if isinstance(value, int | float) else "left")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    output.print(table)


def _cell(value: Any) -> str:
    if not isinstance(value, float | np.floating):
        return str(value)
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
