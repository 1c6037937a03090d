"""The public surface: where each public module is, which of its names are public, who asked.

Parts import the modules from here and use them as a user does. If a public module gets another
place by decision, its path changes in `HOMES`, and the record stays as it is.
"""

import ast
import functools
import importlib
import inspect
from types import ModuleType
from typing import Any

HOMES = {
    "minibert": "minibert",
    "train": "minibert.train",
    "data": "minibert.train.data",
    "analysis": "minibert.inspection.analysis",
    "assets": "minibert.assets",
    "capture": "minibert.inspection.capture",
    "errors": "minibert.errors",
    "parameters": "minibert.nn.tree",
    "pipelines": "minibert.pipelines",
    "plots": "minibert.inspection.plots",
    "pooling": "minibert.nn.pooling",
    "quantization": "minibert.embedding.quantization",
    "scratch": "minibert.scratch",
    "similarity": "minibert.embedding.similarity",
}
# Of these the notebooks and docstrings name only some.
NAMED = {
    "capture": ("Captured", "submodules"),
    "parameters": ("parameters",),
    "quantization": ("PRECISIONS", "quantize_embeddings"),
    "similarity": ("SIMILARITIES", "semantic_search", "similarity", "similarity_pairwise"),
}
ASKED: set[str] = set()  # every public name that was asked for, such as `train.fit`


class Public:
    """A public module, imported when it is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        ASKED.add(f"{self._name}.{attribute}")
        return getattr(module(self._name), attribute)


minibert: Any = Public("minibert")
train: Any = Public("train")
data: Any = Public("data")
analysis: Any = Public("analysis")
assets: Any = Public("assets")
capture: Any = Public("capture")
errors: Any = Public("errors")
parameters: Any = Public("parameters")
pipelines: Any = Public("pipelines")
plots: Any = Public("plots")
pooling: Any = Public("pooling")
quantization: Any = Public("quantization")
scratch: Any = Public("scratch")
similarity: Any = Public("similarity")


def module(name: str) -> ModuleType:
    return importlib.import_module(HOMES[name])


def names(name: str) -> list[str]:
    """The public names of a public module: `NAMED`, else `__all__`, else what its file defines."""
    if name in NAMED:
        return list(NAMED[name])
    found = module(name)
    if (listed := getattr(found, "__all__", None)) is not None:
        return sorted(listed)
    return sorted(one for one in _defined(found) if not one.startswith("_"))


def _defined(found: ModuleType) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(inspect.getsource(found)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@functools.cache
def everything() -> dict[str, Any]:
    """All public names, such as `train.fit`, with what they stand for."""
    return {
        f"{home}.{name}": getattr(module(home), name)
        for home in HOMES
        for name in names(home)
        if hasattr(module(home), name)
    }
