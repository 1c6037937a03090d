"""BERT and GPT-2 in JAX, exactly: a Flax NNX tree that is the Hugging Face tree."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibert.names import *

__version__ = "0.1.0"

__all__ = [
    "BertConfig",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertLMHeadModel",
    "BertModel",
    "GPT2Config",
    "GPT2DoubleHeadsModel",
    "GPT2ForQuestionAnswering",
    "GPT2ForSequenceClassification",
    "GPT2ForTokenClassification",
    "GPT2LMHeadModel",
    "GPT2Model",
    "GenerationConfig",
    "KVCache",
    "LoadingInfo",
    "SentenceEncoder",
    "Sharding",
    "assets",
    "captured",
    "compiled",
    "errors",
    "generate",
    "load",
    "on_host",
    "pipeline",
    "read_documents",
    "stream",
]

# Attributes that are modules, imported when they are first used.
SUBMODULES = {
    "analysis": "minibert.inspection.analysis",
    "pipelines": "minibert.pipelines",
    "plots": "minibert.inspection.plots",
    "pooling": "minibert.nn.pooling",
    "scratch": "minibert.scratch",
    "train": "minibert.train",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that a command can start.

    Importing JAX takes seconds, and Ctrl-C has to be handled meanwhile.
    """
    if name in SUBMODULES:
        return importlib.import_module(SUBMODULES[name])
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.names"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *SUBMODULES})
