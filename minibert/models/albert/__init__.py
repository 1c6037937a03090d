"""ALBERT."""

from minibert.models.albert.config import AlbertConfig
from minibert.models.albert.heads import (
    AlbertForMaskedLM,
    AlbertForMultipleChoice,
    AlbertForPreTraining,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
)
from minibert.models.albert.modeling import AlbertModel
from minibert.models.family import Family

FAMILY = Family(
    models=(
        AlbertModel,
        AlbertForPreTraining,
        AlbertForMaskedLM,
        AlbertForSequenceClassification,
        AlbertForMultipleChoice,
        AlbertForTokenClassification,
        AlbertForQuestionAnswering,
    ),
    by_heads={
        (): AlbertModel,
        ("albert.pooler",): AlbertModel,
        ("predictions", "sop_classifier", "albert.pooler"): AlbertForPreTraining,
        ("predictions", "sop_classifier", "classifier", "albert.pooler"): AlbertForPreTraining,
        ("predictions",): AlbertForMaskedLM,
        ("predictions", "albert.pooler"): AlbertForMaskedLM,
        ("classifier",): AlbertForTokenClassification,
        ("qa_outputs",): AlbertForQuestionAnswering,
        ("qa_outputs", "albert.pooler"): AlbertForQuestionAnswering,
    },
    tasks={
        "fill-mask": AlbertForMaskedLM,
        "text-classification": AlbertForSequenceClassification,
        "token-classification": AlbertForTokenClassification,
        "question-answering": AlbertForQuestionAnswering,
        "multiple-choice": AlbertForMultipleChoice,
        "sentence-order-pretraining": AlbertForPreTraining,
        "continuation": AlbertForMaskedLM,
    },
)

__all__ = ["FAMILY", "AlbertConfig", *(model.__name__ for model in FAMILY.models)]
