"""`minibert train`: pre-training and fine-tuning from files. Its flags are the settings' keys."""

import inspect
import os
from typing import Annotated, Any

import typer

from minibert.cli.shared import AsJson, Device, output, print_json, problems, settings
from minibert.core.atomic_file import new_file
from minibert.inspection.plots import loss_curve
from minibert.train.job.settings import FIELDS, read_settings
from minibert.train.loop import Result

Config = Annotated[
    str | None, typer.Argument(metavar="[CONFIG.toml]", help="A file with these keys.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")]
Elsewhere = Annotated[
    bool,
    typer.Option(
        "--elsewhere", help="Resume with other data or settings; what differs is printed."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Throw away the run in the output folder.")
]


def train(
    path: Config = None,
    resume: Resume = False,
    elsewhere: Elsewhere = False,
    overwrite: Overwrite = False,
    device: Device = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Trains a model on a file: `minibert train CONFIG.toml`, with flags that count more.

    The output folder holds model/ (as Hugging Face's, with its tokenizer), log.jsonl, loss.png, and
    checkpoints/, from which a run that was stopped goes on with --resume to the very numbers of one
    that was not. The task contrastive writes a sentence-transformers folder: the modules, prompts
    and settings of the one it started from (whose pooling is trained; Dense layers stay as they
    are), or, from a plain model, the pooling that was trained.
    """
    from minibert.train import keep_memory
    from minibert.train.job.run import run  # not earlier: it brings in what only training needs

    if device is None or device.lower() == "cpu":
        keep_memory()  # before JAX's threads begin
    with settings(device):
        chosen = read_settings(path, {k: v for k, v in given.items() if v not in (None, [])})
        how = "elsewhere" if elsewhere else resume
        result = run(chosen, resume=how, overwrite=overwrite)
        picture = result.stopped == "interrupted" or _picture(result, chosen.output)
        if as_json:
            print_json(_summary(result, chosen.output))
        else:
            _tell(result, chosen.output, picture)
    if result.stopped == "interrupted":
        raise typer.Exit(130)


def _summary(result: Result, folder: str) -> dict[str, Any]:
    last = result.history[-1] if result.history else {}
    return {
        "output": folder,
        "stopped": result.stopped,
        "steps": result.step,
        "best_step": result.best_step,
        "metrics": last,
    }


def _tell(result: Result, folder: str, picture: bool) -> None:
    last = result.history[-1] if result.history else {}
    known = [f"{name} {last[name]:.4f}" for name in ("loss", "eval_loss") if name in last]
    said = f": {', '.join(known)}" if known else ""
    if result.stopped == "interrupted":
        problems.print(f"interrupted at step {result.step}{said}; --resume goes on", markup=False)
        return
    why = "" if result.stopped == "steps" else f" ({result.stopped})"
    output.print(f"Trained {result.step:,} steps{why}{said}", markup=False)
    output.print(f"Wrote {os.path.join(folder, 'model')}", markup=False)
    if not picture:
        output.print("No loss.png: pip install 'minibert-jax[plots]'", markup=False)


def _picture(result: Result, folder: str) -> bool:
    if not result.history:
        return True
    try:
        figure = loss_curve(result.history)
    except ImportError:
        return False
    with new_file(os.path.join(folder, "loss.png")) as file:
        figure.savefig(file, format="png")
    return True


def _with_flags(command: Any) -> Any:
    """The command with a flag for each key, as typer reads them: from its signature."""
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = []
    for name, field in FIELDS.items():
        kind: Any = field.type
        flag = "--" + name.replace("_", "-")
        named = [f"{flag}/--no-{flag[2:]}"] if kind in (bool, bool | None) else [flag]
        help_text = field.metadata["about"]
        default = typer.Option(None, *named, help=help_text, show_default=False)
        flags.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind | None
            )
        )
    parameters = [*own, *flags]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


_with_flags(train)
