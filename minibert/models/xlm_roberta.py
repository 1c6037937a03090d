"""XLM-RoBERTa: RoBERTa with another vocabulary, under its own names.

Conneau et al., "Unsupervised Cross-lingual Representation Learning at Scale", arXiv:1911.02116.
Names, nesting and numerics follow transformers' `modeling_xlm_roberta.py`, whose classes are
RoBERTa's: one implementation serves both, and the bare model inside a model with a head is
`roberta` here too.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from minibert.checkpoint.config import Config
from minibert.core.fields import SIZE, field
from minibert.models import roberta
from minibert.models.base import PretrainedModel
from minibert.models.bert.config import LARGE
from minibert.models.roberta import (
    PUBLISHED,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    RobertaPreTrainedModel,
)

VOCABULARY = 250_002  # of the published models


@dataclasses.dataclass(frozen=True, kw_only=True)
class XLMRobertaConfig(RobertaConfig):
    """The shape and settings of an XLM-RoBERTa; field names and defaults are Hugging Face's.

    `base` and `large` return the configs of the published models.
    """

    model_type = "xlm-roberta"

    vocab_size: int = field(SIZE, 30522)

    @classmethod
    def base(cls, **changes: object) -> "XLMRobertaConfig":
        """Returns the config of XLM-RoBERTa-base: 12 layers of 768, 278 million parameters."""
        return cls._sized(changes, vocab_size=VOCABULARY, **PUBLISHED)

    @classmethod
    def large(cls, **changes: object) -> "XLMRobertaConfig":
        """Returns the config of XLM-RoBERTa-large: 24 layers of 1024, 560 million parameters."""
        return cls._sized(changes, vocab_size=VOCABULARY, **PUBLISHED, **LARGE)


class XLMRobertaPreTrainedModel(RobertaPreTrainedModel):
    """Base class of all XLM-RoBERTa models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = XLMRobertaConfig


class XLMRobertaModel(XLMRobertaPreTrainedModel, RobertaModel):
    """The bare encoder, with a pooler if the checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
        add_pooling_layer: whether there is a pooler.
    """


class XLMRobertaWithHead(XLMRobertaPreTrainedModel):
    """Base class of models with a head, over an `XLMRobertaModel` in the attribute `roberta`."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = XLMRobertaModel


class XLMRobertaForMaskedLM(XLMRobertaWithHead, RobertaForMaskedLM):
    """XLM-RoBERTa with a masked language model head."""


class XLMRobertaForCausalLM(XLMRobertaWithHead, RobertaForCausalLM):
    """XLM-RoBERTa with a next-token head; a causal decoder if `config.is_decoder` is set."""


class XLMRobertaForSequenceClassification(XLMRobertaWithHead, RobertaForSequenceClassification):
    """XLM-RoBERTa with a classifier over the first token."""


class XLMRobertaForMultipleChoice(XLMRobertaWithHead, RobertaForMultipleChoice):
    """XLM-RoBERTa with a multiple-choice head: a score for each of several continuations."""


class XLMRobertaForTokenClassification(XLMRobertaWithHead, RobertaForTokenClassification):
    """XLM-RoBERTa with a token classification head: scores of labels at each position."""


class XLMRobertaForQuestionAnswering(XLMRobertaWithHead, RobertaForQuestionAnswering):
    """XLM-RoBERTa with a question answering head: a start and an end score at each position."""


FAMILY = roberta.FAMILY.with_models(
    XLMRobertaModel,
    XLMRobertaForMaskedLM,
    XLMRobertaForCausalLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaForMultipleChoice,
    XLMRobertaForTokenClassification,
    XLMRobertaForQuestionAnswering,
)
