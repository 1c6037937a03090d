"""`minibert demo`: a one-minute demonstration with the embedded models, offline."""

import functools
import json
import os
import re
import time
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.table import Table

import minibert
from minibert import assets
from minibert.cli.shared import Device, problems, settings
from minibert.cli.shared import styled as output
from minibert.core.atomic import atomic_folder, matching_files
from minibert.core.terminal import visible
from minibert.errors import TargetError, writing
from minibert.models.base import PretrainedModel

BOUND = 2e-5  # maximum difference of a float32 hidden state, as in the tests
DIFFERS = 3  # exit status
REPORT = "report.json"
PICTURES = ("parity.png", "words.png", "attention.png", "similarity.png")
OWNED = re.compile("|".join(map(re.escape, (REPORT, *PICTURES))))
MASKED = [
    "If the file is not found, an [MASK] is raised.",
    "The variable is bound in the local [MASK].",
    "If an exception is [MASK], the search for a handler begins.",
]
SENTENCES = [
    "The exception is raised again.",
    "If no handler is found, the exception is propagated.",
    "Strings are sequences of characters.",
    "Tuples are immutable sequences.",
    "The loop is executed again.",
    "A break statement ends the loop.",
]
PROMPT = "A function definition"
Report = dict[str, Any]


def demo(
    folder: Annotated[
        str, typer.Option("--output", "-o", metavar="FOLDER", help="The folder for the figures.")
    ] = "minibert-demo",
    device: Device = None,
) -> None:
    """Loads two small models, compares them with PyTorch and applies them, offline.

    Verifies every hidden state against PyTorch's, fills masks, embeds and compares sentences,
    generates text, and saves figures of the results (with matplotlib).

    Exit status: 0 success; 1 error; 2 wrong usage; 3 a hidden state differs from PyTorch's.
    """
    start = time.perf_counter()
    with settings(device):
        again = _is_ours(folder)
        where = jax.local_devices()[0].device_kind
        output.print(f"[bold]minibert {minibert.__version__}[/], JAX {jax.__version__}, {where}")
        models = _load()
        report = {
            "parity": _verify(models),
            "words": _fill(),
            "similarity": _compare(),
            "text": _write(),
        }
        _title("Save")
        owned = functools.partial(matching_files, pattern=OWNED)
        with atomic_folder(folder, owned=owned, overwrite=again) as new, writing(folder):
            _save(report, models["bert"], new)
    output.print(visible(f"{folder}: {', '.join(sorted(os.listdir(folder)))}"), markup=False)
    output.print(f"\nAll done in {time.perf_counter() - start:.0f} s.")
    if not all(found["equal"] for found in report["parity"].values()):
        problems.print("a hidden state differs from PyTorch's", style="bold red")
        raise typer.Exit(DIFFERS)


def _is_ours(folder: str) -> bool:
    """Returns whether a folder contains the files of an earlier demo; False if it is empty.

    Raises:
        TargetError: if it contains other files.
    """
    is_folder = os.path.isdir(folder)
    found = set(os.listdir(folder)) if is_folder else set()
    if not found and (is_folder or not os.path.lexists(folder)):
        return False
    if REPORT not in found or found - {REPORT, *PICTURES}:
        raise TargetError(
            f"{folder}: exists, and has files that are not from a demo; choose another"
        )
    return True


def _title(text: str) -> None:
    output.print(f"\n[bold cyan]{text}[/]")


def _load() -> dict[str, Any]:
    """Loads both models on the CPU, for the comparison: accelerators round differently."""
    _title("Load Hugging Face folders, strictly")
    models = {}
    with jax.default_device("cpu"):
        for name, folder in (("bert", assets.BERT), ("gpt2", assets.GPT2)):
            models[name], info = minibert.load(folder, output_loading_info=True)
            count = sum(leaf.size for leaf in jax.tree.leaves(models[name]))
            output.print(
                f"{os.path.basename(folder)}: {info.model}, {count:,} parameters; "
                f"{len(info.matched)} tensors, all matched"
            )
    return models


def _verify(models: dict[str, Any]) -> Report:
    """Compares every hidden state with the recorded ones."""
    _title("Verify every hidden state against PyTorch's")
    recorded = np.load(assets.RECORDED)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "ours", "PyTorch float32", ""):
        table.add_column(column, justify="right" if "o" in column else "left")
    report = {}
    for name, model in models.items():
        given = {key: recorded[f"{name}.{key}"] for key in ("input_ids", "attention_mask")}
        expected, theirs = (recorded[f"{name}.{key}"] for key in ("hidden_states", "torch_errors"))
        with jax.default_device("cpu"), jax.default_matmul_precision("highest"):
            states = minibert.compiled(model)(**given, output_hidden_states=True).hidden_states
        real = given["attention_mask"] == 1
        ours = [
            float(np.abs(np.asarray(state)[real] - one).max())
            for state, one in zip(states, expected, strict=True)
        ]
        for layer, (error, other) in enumerate(zip(ours, theirs, strict=True)):
            equal = "[green]equal[/]" if error <= BOUND else "[bold red]differs[/]"
            row = f"{name} hidden_states[{layer}]"  # rich does not read [0] as markup
            table.add_row(row, f"{error:.1e}", f"{other:.1e}", equal)
        report[name] = {
            "ours": ours,
            "torch": theirs.tolist(),
            "equal": all(error <= BOUND for error in ours),
        }
    output.print(table)
    output.print(f"Maximum differences from PyTorch in float64; the bound is {BOUND}.", style="dim")
    return report


def _fill() -> list[Report]:
    """Predicts the masked words of sentences."""
    _title("Fill a mask")
    found = minibert.pipeline("fill-mask", assets.BERT)(MASKED)
    report = []
    for text, answers in zip(MASKED, found, strict=True):
        output.print(text, markup=False)
        for answer in answers:
            bar = "█" * max(1, round(40 * answer["score"]))
            output.print(f"  {answer['score']:6.1%}  {answer['token_str']:14} [blue]{bar}[/]")
        words = {answer["token_str"]: answer["score"] for answer in answers}
        report.append({"text": text, "words": words})
    return report


def _compare() -> Report:
    """Embeds sentences, and prints the most similar one to each."""
    _title("Embed and compare sentences")
    encoder = minibert.SentenceEncoder.from_pretrained(assets.BERT)
    vectors = encoder.encode(SENTENCES)
    alike = encoder.similarity(vectors, vectors)
    for index, text in enumerate(SENTENCES):
        nearest = int(np.argsort(alike[index])[-2])  # the last is the sentence itself
        output.print(f"{text}\n  {alike[index, nearest]:.3f}  {SENTENCES[nearest]}")
    return {"sentences": SENTENCES, "cosines": alike.tolist()}


def _write() -> Report:
    """Continues a text and prints it as it is generated."""
    _title("Generate")
    write = minibert.pipeline("text-generation", assets.GPT2)
    output.print(f"[bold]{PROMPT}[/]", end="")
    pieces = []

    def show(piece: str) -> None:
        pieces.append(piece)
        output.print(piece, end="", markup=False)

    write(
        PROMPT,
        max_new_tokens=60,
        callback=show,
        do_sample=True,
        temperature=0.4,
        top_k=20,
        key=jax.random.key(0),
    )
    output.print()
    return {"prompt": PROMPT, "continuation": "".join(pieces)}


def _save(report: Report, bert: PretrainedModel, folder: str) -> None:
    """Writes the report and its figures to an existing folder."""
    with open(os.path.join(folder, REPORT), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2, ensure_ascii=False)
    try:
        from minibert.inspection.demo_pictures import pictures

        for name, figure in zip(PICTURES, pictures(report, bert, BOUND), strict=True):
            figure.savefig(os.path.join(folder, name), dpi=120, bbox_inches="tight")
    except ImportError:
        output.print(
            "No figures, as matplotlib is not installed: pip install 'minibert-jax[plots]'"
        )
