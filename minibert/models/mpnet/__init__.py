"""MPNet."""

from minibert.models.family import Family
from minibert.models.mpnet.config import MPNetConfig
from minibert.models.mpnet.heads import (
    MPNetForMaskedLM,
    MPNetForMultipleChoice,
    MPNetForQuestionAnswering,
    MPNetForSequenceClassification,
    MPNetForTokenClassification,
)
from minibert.models.mpnet.modeling import MPNetModel

FAMILY = Family(
    models=(
        MPNetModel,
        MPNetForMaskedLM,
        MPNetForSequenceClassification,
        MPNetForMultipleChoice,
        MPNetForTokenClassification,
        MPNetForQuestionAnswering,
    ),
    by_heads={
        (): MPNetModel,
        ("mpnet.pooler",): MPNetModel,
        ("lm_head",): MPNetForMaskedLM,
        ("lm_head", "mpnet.pooler"): MPNetForMaskedLM,
        ("classifier", "classifier.out_proj"): MPNetForSequenceClassification,
        ("classifier", "classifier.out_proj", "mpnet.pooler"): MPNetForSequenceClassification,
        ("classifier",): MPNetForTokenClassification,
        ("qa_outputs",): MPNetForQuestionAnswering,
        ("qa_outputs", "mpnet.pooler"): MPNetForQuestionAnswering,
    },
    tasks={
        "fill-mask": MPNetForMaskedLM,
        "text-classification": MPNetForSequenceClassification,
        "token-classification": MPNetForTokenClassification,
        "question-answering": MPNetForQuestionAnswering,
        "multiple-choice": MPNetForMultipleChoice,
        "continuation": MPNetForMaskedLM,
    },
)

__all__ = ["FAMILY", "MPNetConfig", *(model.__name__ for model in FAMILY.models)]
