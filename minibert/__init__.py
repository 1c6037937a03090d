"""Text encoders and GPT-2 in JAX and Flax NNX, with the module tree and results of Hugging Face.

The encoders are BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, MPNet, ELECTRA and ALBERT; see
`docs/guides/models.md`.

The public names are in `__init__.pyi`. Each is imported on first use, so that the command handles
Ctrl-C during the import of JAX, which takes seconds.
"""

import ast
import importlib
import pathlib
from typing import Any

__version__ = "0.1.0"

SUBMODULES = ("analysis", "pipelines", "plots", "pooling", "scratch", "train")
_HOMES: dict[str, str] = {  # the module that each public name is imported from
    alias.name: f"{node.module}"
    for node in ast.parse(pathlib.Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_HOMES.keys() - {*SUBMODULES})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name]) if _HOMES[name] != __name__ else None
    if not hasattr(module, name):
        return importlib.import_module(f"{_HOMES[name]}.{name}")
    globals()[name] = getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
