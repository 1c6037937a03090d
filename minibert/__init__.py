"""BERT in JAX, exactly: a Flax NNX tree that is the Hugging Face tree."""

from minibert.auto import load
from minibert.bert import BertModel
from minibert.bert_config import BertConfig
from minibert.bert_heads import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from minibert.report import LoadingInfo

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
    "BertModel",
    "LoadingInfo",
    "load",
]
