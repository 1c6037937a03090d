"""DistilBERT."""

from minibert.models.distilbert.config import DistilBertConfig
from minibert.models.distilbert.heads import (
    DistilBertForMaskedLM,
    DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
)
from minibert.models.distilbert.modeling import DistilBertModel
from minibert.models.family import Family

MASKED = ("vocab_transform", "vocab_layer_norm", "vocab_projector")

FAMILY = Family(
    models=(
        DistilBertModel,
        DistilBertForMaskedLM,
        DistilBertForSequenceClassification,
        DistilBertForMultipleChoice,
        DistilBertForTokenClassification,
        DistilBertForQuestionAnswering,
    ),
    by_heads={
        (): DistilBertModel,
        MASKED: DistilBertForMaskedLM,
        (*MASKED, "activation"): DistilBertForMaskedLM,
        ("pre_classifier", "classifier"): DistilBertForSequenceClassification,
        ("classifier",): DistilBertForTokenClassification,
        ("qa_outputs",): DistilBertForQuestionAnswering,
    },
    tasks={
        "fill-mask": DistilBertForMaskedLM,
        "text-classification": DistilBertForSequenceClassification,
        "token-classification": DistilBertForTokenClassification,
        "question-answering": DistilBertForQuestionAnswering,
        "multiple-choice": DistilBertForMultipleChoice,
        "continuation": DistilBertForMaskedLM,
    },
)

__all__ = ["FAMILY", "DistilBertConfig", *(model.__name__ for model in FAMILY.models)]
