"""What public functions and classes return for fixed small inputs.

The cases are in `outputs_….py`: functions from an empty folder to values by name. A case that
raises an error is recorded with it, so that the others are compared all the same. No callable of a
public name is left out but for a reason (`UNUSED`).
"""

import importlib
import pathlib
import tempfile
import warnings
from typing import Any

import jax

from . import records, surface
from .records import Record, entries

AREAS = "models configs generation inspection texts sentences training objectives data".split()
# Public callables that no case calls, each with the reason.
UNUSED = {
    "minibert.assets": "a module; it is used",
    "minibert.errors": "a module; its classes are in the part signatures",
    "train.keep_memory": "changes how this process's memory is kept, and returns nothing else",
    "pipelines.Pipeline": "a base class; its subclasses are used",
    "pipelines.pipeline": "the same function as minibert.pipeline",
    "capture.Captured": "what captured returns",
    "scratch.Attended": "what attend returns",
    "similarity.similarity": "SentenceEncoder.similarity calls it",
    "similarity.similarity_pairwise": "SentenceEncoder.similarity_pairwise calls it",
    "similarity.semantic_search": "SentenceEncoder.semantic_search calls it",
    **{f"pooling.{name}": "a type" for name in ("Mask", "Pooled", "Tokens")},
    "plots.figure": "every plot calls it",
    "train.Result": "what fit returns",
}

compare = records.compare


def found() -> Record:
    surface.ASKED.clear()
    record: Record = {}
    for area in AREAS:
        module = importlib.import_module(f".outputs_{area}", __package__)
        for case in module.CASES:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                record |= of_case(f"{area}/{case.__name__}", case, pathlib.Path(folder))
        jax.clear_caches()  # the programs of all cases would take gigabytes
    for name in left_out():
        record[f"{name}/raised"] = "no case uses this public name, and UNUSED gives no reason"
    return record


def of_case(name: str, case: Any, folder: pathlib.Path) -> Record:
    try:
        return dict(entries(name, case(folder)))
    except Exception as reason:
        return {f"{name}/raised": f"{type(reason).__name__}: {reason}"}


def left_out() -> list[str]:
    """Returns the public callables that no case used and that have no reason for it."""
    callables = {name for name, value in surface.everything().items() if callable(value)}
    callables = {name for name in callables if not name.startswith("errors.")}
    return sorted(callables - surface.ASKED - UNUSED.keys())
