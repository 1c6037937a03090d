"""The library's public names, all at once; `minibert` asks for them when one is asked for."""

from minibert import assets, errors
from minibert.checkpoint.matching import LoadingInfo
from minibert.data.documents import read_documents
from minibert.embedding.encoder import SentenceEncoder
from minibert.generation.api import generate, stream
from minibert.generation.config import GenerationConfig
from minibert.inspection.capture import captured
from minibert.models.bert.config import BertConfig
from minibert.models.bert.heads import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
)
from minibert.models.bert.modeling import BertModel
from minibert.models.compilation import compiled
from minibert.models.gpt2.config import GPT2Config
from minibert.models.gpt2.heads import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)
from minibert.models.gpt2.modeling import GPT2Model
from minibert.models.registry import load
from minibert.nn.cache import KVCache
from minibert.pipelines import pipeline
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
