"""Verification of a model against PyTorch, as data, as a table and as `parity.json`."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import minibert
from minibert.checkpoint.files import ORBAX
from minibert.checkpoint.hub import first_line
from minibert.checkpoint.tensors import Arrays
from minibert.conversion.parity import (
    FLOAT32,
    FLOAT64,
    Progress,
    Row,
    compare,
    ragged_inputs,
    shaped,
)
from minibert.core.terminal import visible
from minibert.errors import MinibertError

PACKAGES = ("minibert-jax", "jax", "flax", "numpy", "safetensors", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Verification:
    """A model's outputs compared with PyTorch's: the certificate.

    Attributes:
        model: the name of the model's class.
        theirs: what PyTorch read: "the source" or "minibert's own copy".
        why: why PyTorch read a copy, or "".
        rows: one `Row` for each output: hidden states in order, then the others by name.
        inputs: the arrays that both models were called with, by argument.
    """

    model: str
    theirs: str
    why: str
    rows: list[Row]
    inputs: Arrays

    @property
    def passed(self) -> bool:
        """Whether every output is within both tolerances."""
        return all(row.passed for row in self.rows)

    @property
    def reference(self) -> str:
        """What PyTorch read, with the reason if it is not the source."""
        return f"{self.theirs} ({self.why})" if self.why else self.theirs

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures, tolerances, inputs and versions, as `parity.json` stores them."""
        return {
            "model": self.model,
            "reference": self.reference,
            "passed": self.passed,
            "tolerances": {"float32": FLOAT32, "float64": FLOAT64, "relative_to": "max(1, scale)"},
            "outputs": [dataclasses.asdict(row) | {"passed": row.passed} for row in self.rows],
            "inputs": {name: _recorded(array) for name, array in self.inputs.items()},
            "versions": {name: _version(name) for name in PACKAGES},
        }

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as capture:
            console.print(table(self))
        return capture.get()


class ParityError(MinibertError):
    """A model's outputs differ from PyTorch's by more than the tolerances.

    Attributes:
        verification: the comparison.
    """

    def __init__(self, message: str, verification: Verification):
        self.verification = verification
        super().__init__(message)


def torch_installed() -> bool:
    """Whether there is a PyTorch to compare with."""
    return importlib.util.find_spec("torch") is not None


def verified(
    model: Any,
    load_ours: Callable[[Any], Any],
    source: str,
    *,
    instead: str,
    progress: Progress,
) -> Verification:
    """Compares a model with PyTorch's reading of its source.

    Where PyTorch cannot read the source (Flax weights, a wrapper's prefix), or the conversion
    changed the numbers (a cast), it reads the model as minibert writes it to a Hugging Face folder.

    Args:
        model: the model, for its class and config.
        load_ours: loads the model to compare, from a param_dtype.
        source: the folder it comes from.
        instead: why PyTorch must not read the source; "" to let it try.
        progress: called with the name of each step.
    """
    name = type(model).__name__
    inputs = shaped(ragged_inputs(model.config, source), model)
    with tempfile.TemporaryDirectory() as scratch:
        theirs, why = source, instead or _unreadable(name, source)
        if why:
            theirs = os.path.join(scratch, "written")
            model.save_pretrained(theirs)
        rows = compare(
            load_ours,
            lambda: _load_torch(name, theirs)[0],
            inputs,
            progress,
            one_by_one=model.needs_padding_id and model.config.pad_token_id is None,
        )
    return Verification(name, "minibert's own copy" if why else "the source", why, rows, inputs)


def _load_torch(name: str, folder: str) -> tuple[Any, dict[str, Any]]:
    import torch
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = getattr(transformers, name).from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
    return model.eval(), info


def _unreadable(name: str, source: str) -> str:
    try:
        _, info = _load_torch(name, source)
    except Exception as reason:  # transformers raises many types for what it cannot read
        return f"transformers cannot read it: {first_line(reason)}"
    missing = [*info["missing_keys"], *info["mismatched_keys"]]
    return f"transformers misses tensors in it: {missing[:3]}" if missing else ""


def table(found: Verification) -> Table:
    """The verification as a table, a row an output."""
    tokens = found.inputs["attention_mask"].sum()
    caption = visible(
        f"Largest absolute differences at unpadded positions; f64 alone is PyTorch's. RMS: errors "
        f"against f64. Bounds: {FLOAT32:g} in f32, {FLOAT64:g} in f64, times the output's largest "
        f"number where that is over 1. PyTorch read {found.reference}."
    )
    result = Table(
        title=f"{found.model}: {tokens:,} tokens, against PyTorch",
        caption=Text(caption),  # not markup, as it may contain a message of transformers
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    result.add_column("output", no_wrap=True)
    for heading in (
        "ours –\ntorch\nf32",
        "ours\nf32 –\nf64",
        "torch\nf32 –\nf64",
        "RMS\nours /\ntorch",
        "ours –\ntorch\nf64",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("verdict", no_wrap=True)
    for row in found.rows:
        result.add_row(
            row.output,
            f"{row.ours_torch:.1e}",
            f"{row.ours_float64:.1e}",
            f"{row.torch_float64:.1e}",
            f"{row.rms_ratio:.2f}",
            f"{row.float64:.1e}",
            "[green]equal[/]" if row.passed else "[bold red]DIFFERS[/]",
        )
    return result


def write_report(found: Verification, folder: str) -> None:
    """Writes `parity.json`: the figures, the inputs, the versions, the weights' checksums."""
    report = found.to_dict() | {"sha256": _checksums(folder)}
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in report.items())
    with open(os.path.join(folder, "parity.json"), "w", encoding="utf-8") as file:
        file.write(f"{{\n{lines}\n}}\n")


def _recorded(array: np.ndarray) -> Any:
    if array.dtype.kind == "f":
        return f"numpy.random.default_rng(0).standard_normal({array.shape}), in float32"
    return array.tolist()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return minibert.__version__ if package == "minibert-jax" else None


def _checksums(folder: str) -> dict[str, str]:
    sums = {}
    for root, _, files in sorted(os.walk(folder)):
        for name in sorted(files):
            path = os.path.relpath(os.path.join(root, name), folder)
            if name.endswith(".safetensors") or path.split(os.sep)[0] == ORBAX:
                with open(os.path.join(root, name), "rb") as file:
                    sums[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
