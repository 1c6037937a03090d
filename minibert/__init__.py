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


def __getattr__(name: str) -> Any:
    """A public name: they are imported when the first is asked for, so that a command can start.

    JAX takes seconds, in which an interrupt would be nobody's to catch.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.names"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
