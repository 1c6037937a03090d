"""GPT-2."""

from minibert.models.family import Family
from minibert.models.gpt2.config import GPT2Config
from minibert.models.gpt2.heads import (
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
)
from minibert.models.gpt2.modeling import GPT2Model

FAMILY = Family(
    models=(
        GPT2Model,
        GPT2LMHeadModel,
        GPT2DoubleHeadsModel,
        GPT2ForSequenceClassification,
        GPT2ForTokenClassification,
        GPT2ForQuestionAnswering,
    ),
    by_heads={
        (): GPT2LMHeadModel,
        ("lm_head",): GPT2LMHeadModel,
        ("lm_head", "multiple_choice_head"): GPT2DoubleHeadsModel,
        ("multiple_choice_head",): GPT2DoubleHeadsModel,
        ("score",): GPT2ForSequenceClassification,
        ("classifier",): GPT2ForTokenClassification,
        ("qa_outputs",): GPT2ForQuestionAnswering,
    },
    tasks={
        "text-classification": GPT2ForSequenceClassification,
        "token-classification": GPT2ForTokenClassification,
        "question-answering": GPT2ForQuestionAnswering,
        "text-generation": GPT2LMHeadModel,
        "continuation": GPT2LMHeadModel,
    },
)

__all__ = ["FAMILY", "GPT2Config", *(model.__name__ for model in FAMILY.models)]
