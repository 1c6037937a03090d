"""CamemBERT: RoBERTa with another vocabulary, under its own names.

Martin et al., "CamemBERT: a Tasty French Language Model", arXiv:1911.03894. Names, nesting and
numerics follow transformers' `modeling_camembert.py`, whose classes are RoBERTa's: one
implementation serves both, and the bare model inside a model with a head is `roberta` here too.
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

VOCABULARY = 32_005  # of the published models


@dataclasses.dataclass(frozen=True, kw_only=True)
class CamembertConfig(RobertaConfig):
    """The shape and settings of a CamemBERT; field names and defaults are Hugging Face's.

    `base` and `large` return the configs of the published models.
    """

    model_type = "camembert"

    vocab_size: int = field(SIZE, 30522)

    @classmethod
    def base(cls, **changes: object) -> "CamembertConfig":
        """Returns the config of CamemBERT-base: 12 layers of 768, 111 million parameters."""
        return cls._sized(changes, vocab_size=VOCABULARY, **PUBLISHED)

    @classmethod
    def large(cls, **changes: object) -> "CamembertConfig":
        """Returns the config of CamemBERT-large: 24 layers of 1024, 337 million parameters."""
        return cls._sized(changes, vocab_size=VOCABULARY, **PUBLISHED, **LARGE)


class CamembertPreTrainedModel(RobertaPreTrainedModel):
    """Base class of all CamemBERT models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = CamembertConfig


class CamembertModel(CamembertPreTrainedModel, RobertaModel):
    """The bare encoder, with a pooler if the checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
        add_pooling_layer: whether there is a pooler.
    """


class CamembertWithHead(CamembertPreTrainedModel):
    """Base class of models with a head, over a `CamembertModel` in the attribute `roberta`."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = CamembertModel


class CamembertForMaskedLM(CamembertWithHead, RobertaForMaskedLM):
    """CamemBERT with a masked language model head."""


class CamembertForCausalLM(CamembertWithHead, RobertaForCausalLM):
    """CamemBERT with a next-token head; a causal decoder if `config.is_decoder` is set."""


class CamembertForSequenceClassification(CamembertWithHead, RobertaForSequenceClassification):
    """CamemBERT with a classifier over the first token."""


class CamembertForMultipleChoice(CamembertWithHead, RobertaForMultipleChoice):
    """CamemBERT with a multiple-choice head: a score for each of several continuations."""


class CamembertForTokenClassification(CamembertWithHead, RobertaForTokenClassification):
    """CamemBERT with a token classification head: scores of labels at each position."""


class CamembertForQuestionAnswering(CamembertWithHead, RobertaForQuestionAnswering):
    """CamemBERT with a question answering head: a start and an end score at each position."""


FAMILY = roberta.FAMILY.with_models(
    CamembertModel,
    CamembertForMaskedLM,
    CamembertForCausalLM,
    CamembertForSequenceClassification,
    CamembertForMultipleChoice,
    CamembertForTokenClassification,
    CamembertForQuestionAnswering,
)
