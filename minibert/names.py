"""The library's public names, all at once; `minibert` asks for them when one is asked for."""

from minibert import assets, errors
from minibert.auto import load
from minibert.bert import BertModel
from minibert.bert_config import BertConfig
from minibert.bert_heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from minibert.bert_lm_heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertLMHeadModel,
)
from minibert.capture import captured
from minibert.checkpoint.report import LoadingInfo
from minibert.compilation import compiled
from minibert.data.documents import read_documents
from minibert.generation import generate, stream
from minibert.generation_config import GenerationConfig
from minibert.gpt2 import GPT2Model
from minibert.gpt2_config import GPT2Config
from minibert.gpt2_heads import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)
from minibert.nn.cache import KVCache
from minibert.pipelines import pipeline
from minibert.sentence import SentenceEncoder
from minibert.sharding.mesh import Sharding
from minibert.sharding.placement import on_host

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
