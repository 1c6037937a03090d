"""BERT."""

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
from minibert.models.family import Family

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
        (): BertModel,
        ("bert.pooler",): BertModel,
        ("cls.predictions", "cls.seq_relationship", "bert.pooler"): BertForPreTraining,
        ("cls.predictions",): BertForMaskedLM,
        ("cls.predictions", "bert.pooler"): BertForMaskedLM,
        ("cls.seq_relationship", "bert.pooler"): BertForNextSentencePrediction,
        ("qa_outputs",): BertForQuestionAnswering,
        ("qa_outputs", "bert.pooler"): BertForQuestionAnswering,
        ("classifier",): BertForTokenClassification,
    },
    causal={BertForMaskedLM: BertLMHeadModel},
    flax_names={"BertForCausalLM": BertLMHeadModel},
    tasks={
        "fill-mask": BertForMaskedLM,
        "text-classification": BertForSequenceClassification,
        "token-classification": BertForTokenClassification,
        "question-answering": BertForQuestionAnswering,
        "multiple-choice": BertForMultipleChoice,
        "next-sentence-prediction": BertForNextSentencePrediction,
        "text-generation": BertLMHeadModel,
        "pretraining": BertForPreTraining,
        "continuation": BertForMaskedLM,
    },
)

__all__ = ["FAMILY", "BertConfig", *(model.__name__ for model in FAMILY.models)]
