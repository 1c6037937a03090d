"""`minibert train`: pre-training and fine-tuning from files, with a flag for each setting."""

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from minibert.cli.shared import AsJson, Device, output, print_json, problems, settings
from minibert.core.atomic_file import new_file
from minibert.core.terminal import visible
from minibert.inspection.plots import loss_curve
from minibert.train.job.settings import FIELDS, read_settings
from minibert.train.loop import Result


def train(
    path: Annotated[
        str | None, typer.Argument(metavar="[CONFIG.toml]", help="A file with these keys.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run in the output folder.")
    ] = False,
    elsewhere: Annotated[
        bool,
        typer.Option(
            "--elsewhere", help="Resume with other data or settings; prints the differences."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard the run in the output folder.")
    ] = False,
    device: Device = None,
    as_json: AsJson = False,
    **given: Any,
) -> None:
    """Trains a model on a file: `minibert train CONFIG.toml`. Flags override the file.

    The output folder contains model/ (in Hugging Face's format, with the tokenizer), log.jsonl,
    loss.png and checkpoints/. A run that was stopped is resumed with --resume, and computes exactly
    the numbers of an uninterrupted one. The task contrastive writes a sentence-transformers folder:
    with the modules, prompts and settings of the initial folder (its pooling is used in training;
    Dense layers are not changed), or, for a plain model, with the pooling used in training.
    """
    from minibert.train import keep_memory
    from minibert.train.job.run import run  # imports dependencies that only training needs

    if device is None or device.lower() == "cpu":
        keep_memory()  # before JAX starts threads
    with settings(device):
        chosen = read_settings(path, {k: v for k, v in given.items() if v not in (None, [])})
        result = run(chosen, resume="elsewhere" if elsewhere else resume, overwrite=overwrite)
        interrupted = result.stopped == "interrupted"
        picture = interrupted or _picture(result, chosen.output)
        last = result.history[-1] if result.history else {}
        if as_json:
            print_json(
                {
                    "output": chosen.output,
                    "stopped": result.stopped,
                    "steps": result.step,
                    "best_step": result.best_step,
                    "metrics": last,
                }
            )
        else:
            _print_result(result, last, chosen.output, picture)
    if interrupted:
        raise typer.Exit(130)


def _print_result(result: Result, last: Mapping[str, Any], folder: str, picture: bool) -> None:
    known = [f"{name} {last[name]:.4f}" for name in ("loss", "eval_loss") if name in last]
    losses = f": {', '.join(known)}" if known else ""
    if result.stopped == "interrupted":
        problems.print(f"interrupted at step {result.step}{losses}; resume with --resume")
        return
    why = "" if result.stopped == "steps" else f" ({result.stopped})"
    output.print(f"Trained {result.step:,} steps{why}{losses}")
    output.print(visible(f"Wrote {os.path.join(folder, 'model')}"))
    if not picture:
        output.print("No loss.png: pip install 'minibert-jax[plots]'")


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


def _with_flags(command: Any) -> None:
    """Adds a flag for each setting to the command's signature, where typer reads them."""
    *parameters, given = inspect.signature(command).parameters.values()
    for name, field in FIELDS.items():
        kind: Any = field.type
        flag = name.replace("_", "-")
        named = f"--{flag}/--no-{flag}" if kind in (bool, bool | None) else f"--{flag}"
        about = field.metadata["about"]
        if field.default not in (dataclasses.MISSING, None):
            default = f"no-{flag}" if field.default is False else field.default
            about += f" [default: {default}]"  # which the file can change
        option = typer.Option(None, named, help=about, show_default=False)
        parameters.append(
            given.replace(
                name=name, kind=given.KEYWORD_ONLY, default=option, annotation=kind | None
            )
        )
    command.__signature__ = inspect.Signature(parameters)


_with_flags(train)
