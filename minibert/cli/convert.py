"""`minibert convert` and `minibert verify`: checkpoints converted, and compared with PyTorch."""

import contextlib
import signal
import sys
from collections.abc import Callable, Generator
from typing import Annotated, Literal

import typer
from rich.console import Console

from minibert.checkpoint.matching import LoadingInfo
from minibert.cli.shared import AsJson, print_json
from minibert.conversion.api import convert as convert_checkpoint
from minibert.conversion.api import verify_checkpoint
from minibert.conversion.parity import Progress
from minibert.conversion.verification import ParityError, Verification, table, torch_installed
from minibert.core.progress import progress_bar
from minibert.core.terminal import visible
from minibert.errors import MinibertError

REFUSED, DIFFERS = 1, 3
DEFAULT_SHARD = "5GB"
STEPS = 7  # reading, writing, four runs to compare, flushing

output, problems = Console(), Console(stderr=True)

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A model folder, or a repository of the Hub.")
]
Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Open pytorch_model.bin. Only if you trust it.")
]


def convert(
    source: Source,
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
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
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
    """Converts weights from and to Hugging Face's format, verified against PyTorch.

    Reads safetensors (single or sharded), pytorch_model.bin, the flax_model.msgpack of the old
    Flax classes, and Orbax folders written here. OUT is written and verified, or not at all.

    Exit status: 0 done; 1 refused, nothing written; 2 wrong usage; 3 differs from PyTorch,
    nothing written.
    """
    if only_verify == (out is not None):
        expected = "not both OUT and --verify-only" if out else "OUT, or --verify-only"
        raise typer.BadParameter(f"give {expected}", param_hint="OUT")
    if to == "orbax" and max_shard_size != DEFAULT_SHARD:
        raise typer.BadParameter("an Orbax checkpoint has no shards", param_hint="--max-shard-size")
    if only_verify and no_verify:
        raise typer.BadParameter("--verify-only and --no-verify exclude each other")
    if out is None:
        verify(source, revision, allow_pickle)
        return
    with _running() as progress:
        done = convert_checkpoint(
            source,
            out,
            to=to,
            dtype=dtype,
            max_shard_size=max_shard_size,
            revision=revision,
            allow_pickle=allow_pickle,
            overwrite=overwrite,
            verifies=not no_verify,
            progress=progress,
        )
    _report(done.info, done.copied, done.verification)
    _print(output, f"Wrote {out}")


def verify(
    source: Source,
    revision: Revision = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Compares every output of a checkpoint with PyTorch's, in float32 and float64.

    Exit status: 0 equal; 1 refused; 2 wrong usage; 3 differs from PyTorch.
    """
    with _running() as progress:
        info, verification = verify_checkpoint(source, revision, allow_pickle, progress)
        if not verification.passed and not as_json:
            raise ParityError(f"{source}: differs from PyTorch", verification)
    if as_json:
        print_json(verification.to_dict())
        raise typer.Exit(0 if verification.passed else DIFFERS)
    _report(info, [], verification)


@contextlib.contextmanager
def _running() -> Generator[Progress]:
    """Shows progress while a conversion runs; turns its errors into a line and an exit status."""
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

            yield progress
    except ParityError as reason:
        output.print(table(reason.verification))
        _fail(str(reason), DIFFERS)
    except MinibertError as reason:
        _fail(str(reason), REFUSED)
    except OSError as reason:
        where = "" if reason.filename is None else f"{reason.filename}: "
        _fail(f"{where}{reason.strerror or reason}", REFUSED)
    except KeyboardInterrupt:
        problems.print("interrupted")
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _interruptible() -> Generator[Callable[[], None]]:
    """Records Ctrl-C, which a running JAX callback swallows; yields a check for it."""
    interrupted = False

    def remember(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def check() -> None:
        if interrupted:
            raise KeyboardInterrupt

    def report(found: "sys.UnraisableHookArgs") -> None:
        if not isinstance(found.exc_value, KeyboardInterrupt):
            shown(found)

    shown, sys.unraisablehook = sys.unraisablehook, report  # for an interrupt that was swallowed
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield check
    except Exception:
        check()  # a library may have made another error of an interrupt, as while it is imported
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = shown


def _report(info: LoadingInfo, copied: list[str], verification: Verification | None) -> None:
    _print(output, str(info))
    if copied:
        _print(output, f"  copied: {', '.join(copied)}")
    if verification is not None:
        output.print(table(verification))
    elif torch_installed():
        output.print("[yellow]Not verified[/], as requested.")
    else:
        output.print("[yellow]Not verified[/]: torch is not installed, so nothing was compared.")


def _fail(message: str, status: int) -> None:
    problems.print("[bold red]error:[/]", end=" ")
    _print(problems, message)
    raise typer.Exit(status)


def _print(console: Console, text: str) -> None:
    """Prints a text whose names and paths are neither markup nor wrapped."""
    console.print(visible(text), markup=False, highlight=False, soft_wrap=True)
