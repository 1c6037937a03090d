"""ELECTRA."""

from minibert.models.electra.config import ElectraConfig
from minibert.models.electra.heads import (
    ElectraForCausalLM,
    ElectraForMaskedLM,
    ElectraForMultipleChoice,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
)
from minibert.models.electra.modeling import ElectraModel
from minibert.models.family import Family

FAMILY = Family(
    models=(
        ElectraModel,
        ElectraForPreTraining,
        ElectraForMaskedLM,
        ElectraForCausalLM,
        ElectraForSequenceClassification,
        ElectraForMultipleChoice,
        ElectraForTokenClassification,
        ElectraForQuestionAnswering,
    ),
    by_heads={
        (): ElectraModel,
        ("discriminator_predictions",): ElectraForPreTraining,
        ("generator_predictions", "generator_lm_head"): ElectraForMaskedLM,
        ("sequence_summary", "classifier"): ElectraForMultipleChoice,
        ("classifier", "classifier.out_proj"): ElectraForSequenceClassification,
        ("classifier",): ElectraForTokenClassification,
        ("qa_outputs",): ElectraForQuestionAnswering,
    },
    causal={ElectraForMaskedLM: ElectraForCausalLM},
    tasks={
        "fill-mask": ElectraForMaskedLM,
        "text-classification": ElectraForSequenceClassification,
        "token-classification": ElectraForTokenClassification,
        "question-answering": ElectraForQuestionAnswering,
        "multiple-choice": ElectraForMultipleChoice,
        "text-generation": ElectraForCausalLM,
        "continuation": ElectraForMaskedLM,
    },
)

__all__ = ["FAMILY", "ElectraConfig", *(model.__name__ for model in FAMILY.models)]
