"""The command line: `python -m convert SOURCE OUT`."""

import contextlib
import signal
from collections.abc import Callable, Generator
from typing import Annotated, Literal

import typer
from rich.console import Console

from convert.conversion import Conversion, convert, verify_only
from convert.verify import ParityError, table, torch_installed
from minibert.core.progress import progress_bar
from minibert.errors import MinibertError

REFUSED, DIFFERS = 1, 3
DEFAULT_SHARD = "5GB"
STEPS = 7  # reading, writing, four runs to compare, flushing

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
output, problems = Console(), Console(stderr=True)


@app.command()
def main(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A model folder, or a repository of the Hub.")
    ],
    out: Annotated[
        str | None,
        typer.Argument(metavar="OUT", help="The folder to write; it must not hold a model."),
    ] = None,
    to: Annotated[
        Literal["hf", "orbax"], typer.Option(help="Hugging Face's format, or Orbax.")
    ] = "hf",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        typer.Option(metavar="TYPE", help="Store the parameters as float32, float16 or bfloat16."),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Split larger models (hf only).")
    ] = DEFAULT_SHARD,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.")] = None,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Open pytorch_model.bin. Only if you trust it.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model in OUT; other files stay.")
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare with PyTorch.")
    ] = False,
    only_verify: Annotated[
        bool, typer.Option("--verify-only", help="Compare SOURCE with PyTorch; write nothing.")
    ] = False,
) -> None:
    """Converts weights from and to Hugging Face's format, proved equal to PyTorch's.

    Reads safetensors (single or sharded), pytorch_model.bin, the flax_model.msgpack of the old
    Flax classes, and Orbax folders written here. OUT is there complete and verified, or not at all.

    Exit status: 0 done; 1 refused, nothing written; 2 wrong usage; 3 differs from PyTorch,
    nothing written.
    """
    if only_verify == (out is not None):
        wanted = "not both OUT and --verify-only" if out else "OUT, or --verify-only"
        raise typer.BadParameter(f"give {wanted}", param_hint="OUT")
    if to == "orbax" and max_shard_size != DEFAULT_SHARD:
        raise typer.BadParameter("an Orbax checkpoint has no shards", param_hint="--max-shard-size")
    if only_verify and no_verify:
        raise typer.BadParameter("--verify-only and --no-verify exclude each other")
    bar = progress_bar(
        None,
        STEPS,
        None,
        bar_format="{l_bar}{bar}| {elapsed}{postfix}",
        postfix="starting",
        leave=False,
        mininterval=0,  # every step is drawn, however soon after the last
        miniters=1,
    )
    try:
        with _interruptible() as check_interrupted, bar as advance:

            def progress(step: str) -> None:
                check_interrupted()
                advance(1, step)

            if out is None:
                done = verify_only(
                    source, revision=revision, allow_pickle=allow_pickle, progress=progress
                )
            else:
                done = convert(
                    source,
                    out,
                    to=to,
                    dtype=dtype,
                    max_shard_size=max_shard_size,
                    revision=revision,
                    allow_pickle=allow_pickle,
                    overwrite=overwrite,
                    verified=not no_verify,
                    progress=progress,
                )
    except ParityError as reason:
        output.print(table(reason.found))
        _fail(str(reason), DIFFERS)
    except MinibertError as reason:
        _fail(str(reason), REFUSED)
    _report(done, out)


@contextlib.contextmanager
def _interruptible() -> Generator[Callable[[], None]]:
    """Remembers Ctrl-C, which a callback of JAX's swallows while it runs; yields its check."""
    asked = False

    def remember(*_: object) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _report(done: Conversion, out: str | None) -> None:
    _print(output, str(done.info))
    if done.copied:
        _print(output, f"  copied: {', '.join(done.copied)}")
    if done.verification is not None:
        output.print(table(done.verification))
    elif torch_installed():
        output.print("[yellow]Not verified[/], as asked.")
    else:
        output.print("[yellow]Not verified[/]: torch is not installed, so nothing was compared.")
    if out is not None:
        _print(output, f"Wrote {out}")


def _fail(message: str, status: int) -> None:
    problems.print("[bold red]error:[/]", end=" ")
    _print(problems, message)
    raise typer.Exit(status)


def _print(console: Console, text: str) -> None:
    """Prints a text as it is: names and paths are neither markup nor wrapped."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    app(prog_name="python -m convert")
