"""BERT."""

from minibert.models.base import Family
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

FAMILY = Family(
    models=(
        BertModel,
        BertForPreTraining,
        BertForMaskedLM,
        BertLMHeadModel,
        BertForNextSentencePrediction,
        BertForSequenceClassification,
        BertForMultipleChoice,
        BertForTokenClassification,
        BertForQuestionAnswering,
    ),
    by_heads={
        frozenset(): BertModel,
        frozenset({"bert.pooler"}): BertModel,
        frozenset({"cls.predictions", "cls.seq_relationship", "bert.pooler"}): BertForPreTraining,
        frozenset({"cls.predictions"}): BertForMaskedLM,
        frozenset({"cls.predictions", "bert.pooler"}): BertForMaskedLM,
        frozenset({"cls.seq_relationship", "bert.pooler"}): BertForNextSentencePrediction,
        frozenset({"qa_outputs"}): BertForQuestionAnswering,
        frozenset({"qa_outputs", "bert.pooler"}): BertForQuestionAnswering,
        frozenset({"classifier"}): BertForTokenClassification,
    },
    causal={BertForMaskedLM: BertLMHeadModel},
    tasks={
        "fill-mask": BertForMaskedLM,
        "text-classification": BertForSequenceClassification,
        "token-classification": BertForTokenClassification,
        "question-answering": BertForQuestionAnswering,
        "next-sentence-prediction": BertForNextSentencePrediction,
        "text-generation": BertLMHeadModel,
        "pretraining": BertForPreTraining,
        "continuation": BertForMaskedLM,
    },
)

__all__ = ["FAMILY", "BertConfig", *(model.__name__ for model in FAMILY.models)]
