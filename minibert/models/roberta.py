"""RoBERTa: BERT with other positions and other heads.

Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", arXiv:1907.11692. Names,
nesting and numbers follow transformers' `modeling_roberta.py`. Every model here is called with
`BertModel`'s arguments, by the same names and in the same order.

Positions count from `pad_token_id + 1`, over the tokens that are not padding by their id; padding
has the position `pad_token_id`. So a text has at most `max_position_embeddings - pad_token_id - 1`
tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer

from minibert.checkpoint.config import Config
from minibert.core.fields import SIZE, field, whole
from minibert.core.types import AnyArray, ArrayLike, Options, Rngs, Size
from minibert.errors import ConfigError
from minibert.models.base import Family, Names, PretrainedModel, Table
from minibert.models.bert.config import LARGE, BertConfig
from minibert.models.bert.heads import (
    NO_POOLER,
    BertForCausalLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertWithHead,
    LMHead,
    VocabLogits,
)
from minibert.models.bert.modeling import BertEmbeddings, BertModel, BertPreTrainedModel, Hidden
from minibert.models.heads import ForMaskedLM, Output, kept, projection
from minibert.models.outputs import (
    AnyTrunkOutput,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from minibert.nn.activations import activation
from minibert.nn.layers import Dropout, LayerNorm, Linear, Module
from minibert.text.batching import numbered


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobertaConfig(BertConfig):
    """The shape and settings of a RoBERTa; field names and defaults are Hugging Face's.

    The defaults are those of Hugging Face's class; `base` has those of the published model.
    """

    model_type = "roberta"

    vocab_size: int = field(SIZE, 50265)
    pad_token_id: int = field(whole(0), 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise ConfigError(
                f"max_position_embeddings: expected at least {self.pad_token_id + 2}, as positions "
                f"begin after pad_token_id ({self.pad_token_id}); found "
                f"{self.max_position_embeddings}"
            )

    @property
    def max_tokens(self) -> int:
        """How many tokens of a text the model takes."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def max_tokens_name(self) -> str:
        """Where `max_tokens` comes from, for messages."""
        return "max_position_embeddings - pad_token_id - 1"

    @property
    def padding_position(self) -> int:
        """The position of padding, whose embedding receives no gradient."""
        return self.pad_token_id

    @classmethod
    def base(cls, **changes: object) -> "RobertaConfig":
        """RoBERTa-base: 12 layers of 768, 125 million parameters, 512 tokens."""
        return cls._sized(changes, **PUBLISHED)

    @classmethod
    def large(cls, **changes: object) -> "RobertaConfig":
        """RoBERTa-large: 24 layers of 1024, 355 million parameters, 512 tokens."""
        return cls._sized(changes, **PUBLISHED, **LARGE)


PUBLISHED: dict[str, Any] = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


class RobertaPreTrainedModel(BertPreTrainedModel):
    """What every RoBERTa class shares: the facts about its checkpoints."""

    config_class: ClassVar[type[Config]] = RobertaConfig
    trunk = "roberta"
    heads: ClassVar[Names] = (
        "lm_head",
        "classifier",
        "classifier.out_proj",
        "qa_outputs",
        "roberta.pooler",
    )
    buffers: ClassVar[Table] = {
        "roberta.embeddings.position_ids": "0, 1, 2, …, which the code counts itself",
        "roberta.embeddings.token_type_ids": "zeros, which the code makes itself",
    }


class RobertaEmbeddings(BertEmbeddings):
    """Token, position and token type embeddings, summed and normalised."""

    def __init__(self, config: RobertaConfig, **options: Unpack[Options]):
        super().__init__(config, **options)
        self.padding_idx: int = config.pad_token_id

    def __call__(
        self,
        input_ids: AnyArray | None = None,
        token_type_ids: AnyArray | None = None,
        position_ids: AnyArray | None = None,
        inputs_embeds: Array | None = None,
        rngs: Rngs = None,
    ) -> Hidden:
        """Embeds token ids, or takes `inputs_embeds`; token types are 0 by default."""
        if position_ids is None and input_ids is not None:
            position_ids = counted(jnp.asarray(input_ids) != self.padding_idx, self.padding_idx)
        elif position_ids is None and inputs_embeds is not None:
            position_ids = self.padding_idx + 1 + jnp.arange(inputs_embeds.shape[1])[None]
        return super().__call__(input_ids, token_type_ids, position_ids, inputs_embeds, rngs)


def counted(
    tokens: Array, pad: int, *, past: int | Array = 0, segments: Array | None = None
) -> Array:
    """The positions of tokens (True) from `pad + 1`, and `pad` for padding."""
    return pad + jnp.where(tokens, numbered(tokens, segments) + past, 0)


class RobertaModel(RobertaPreTrainedModel, BertModel):
    """The bare encoder, with the pooler if its checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys for fresh weights; None builds shapes only, for a loader to fill.
        dtype: what to compute in; None for the parameters' own dtype.
        param_dtype: what to store parameters in.
        add_pooling_layer: whether there is a pooler.
    """

    optional: ClassVar[Names] = ("roberta.pooler",)
    embeddings_class: ClassVar[type[BertEmbeddings]] = RobertaEmbeddings

    def positions(
        self,
        input_ids: AnyArray | None,
        tokens: AnyArray | None = None,
        *,
        seq: Size = 0,
        past: int | Array = 0,
        segments: Array | None = None,
    ) -> Integer[Array, "#batch seq"]:
        """The default `position_ids`: see `PretrainedModel.positions` for the arguments."""
        pad: Any = self.config.pad_token_id
        if input_ids is None:
            plain = super().positions(None, tokens, seq=seq, past=past, segments=segments)
            return pad + 1 + plain
        real = jnp.asarray(input_ids) != pad
        if tokens is not None:
            real &= jnp.asarray(tokens)
        return counted(real, pad, past=past, segments=segments)


class RobertaWithHead(BertWithHead[Output], RobertaPreTrainedModel):
    """A `RobertaModel` under the name `roberta`, and a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = RobertaModel


class RobertaLMHead(LMHead):
    """Scores every token of the vocabulary at every position."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        hidden = config.hidden_size
        self.dense: Linear = projection(config, hidden, **options)
        self.act: Module = activation("gelu", **options)  # whatever the config's is
        self.layer_norm: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self._add_decoder(config, **options)

    def transform(self, hidden: Hidden) -> Hidden:
        """Dense, gelu, LayerNorm: what precedes the decoder."""
        return self.layer_norm(self.act(self.dense(hidden)))


class _RobertaWithLMHead(RobertaWithHead[Output]):
    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER
    tied: ClassVar[Table] = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.lm_head: RobertaLMHead = RobertaLMHead(config, **options)

    def _lm_logits(self, hidden: Hidden) -> VocabLogits:
        return self.lm_head(hidden, self.base_model.embeddings.word_embeddings.embedding[...])


class RobertaForMaskedLM(ForMaskedLM, _RobertaWithLMHead[MaskedLMOutput]):
    """RoBERTa with its masked-token head."""


class RobertaForCausalLM(BertForCausalLM, _RobertaWithLMHead[CausalLMOutputWithCrossAttentions]):
    """RoBERTa as a decoder, with a score for every next token; `config.is_decoder` makes it one."""


class RobertaClassificationHead(Module):
    """Dense, tanh and a classifier over the first token."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        rate = config.classifier_dropout
        self.dense: Linear = projection(config, config.hidden_size, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.out_proj: Linear = projection(config, config.num_labels, **options)

    def __call__(self, hidden: Hidden, rngs: Rngs = None) -> Float[Array, "batch labels"]:
        """Returns a score for every label."""
        first = jnp.tanh(self.dense(self.dropout(hidden[:, 0], rngs)))
        return self.out_proj(self.dropout(first, rngs))


class RobertaForSequenceClassification(RobertaWithHead[SequenceClassifierOutput]):
    """RoBERTa with a classifier over the first token."""

    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.classifier: RobertaClassificationHead = RobertaClassificationHead(config, **options)

    def _output(
        self, outputs: AnyTrunkOutput, input_ids: ArrayLike | None, rngs: Rngs
    ) -> SequenceClassifierOutput:
        logits = self.classifier(outputs.last_hidden_state, rngs)
        return SequenceClassifierOutput(logits=logits, **kept(outputs))


class RobertaForMultipleChoice(RobertaWithHead[MultipleChoiceModelOutput], BertForMultipleChoice):
    """RoBERTa with a score for each of several continuations."""

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        super()._add_head(config, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)  # not classifier_dropout


class RobertaForTokenClassification(
    RobertaWithHead[TokenClassifierOutput], BertForTokenClassification
):
    """RoBERTa with a classifier at every position."""


class RobertaForQuestionAnswering(
    RobertaWithHead[QuestionAnsweringModelOutput], BertForQuestionAnswering
):
    """RoBERTa with a start and an end score at every position."""


FAMILY = Family(
    models=(
        RobertaModel,
        RobertaForMaskedLM,
        RobertaForCausalLM,
        RobertaForSequenceClassification,
        RobertaForMultipleChoice,
        RobertaForTokenClassification,
        RobertaForQuestionAnswering,
    ),
    by_heads={
        (): RobertaModel,
        ("roberta.pooler",): RobertaModel,
        ("lm_head",): RobertaForMaskedLM,
        ("lm_head", "roberta.pooler"): RobertaForMaskedLM,
        ("classifier", "classifier.out_proj"): RobertaForSequenceClassification,
        ("classifier", "classifier.out_proj", "roberta.pooler"): RobertaForSequenceClassification,
        ("classifier",): RobertaForTokenClassification,
        ("qa_outputs",): RobertaForQuestionAnswering,
        ("qa_outputs", "roberta.pooler"): RobertaForQuestionAnswering,
    },
    causal={RobertaForMaskedLM: RobertaForCausalLM},
    tasks={
        "fill-mask": RobertaForMaskedLM,
        "text-classification": RobertaForSequenceClassification,
        "token-classification": RobertaForTokenClassification,
        "question-answering": RobertaForQuestionAnswering,
        "text-generation": RobertaForCausalLM,
        "continuation": RobertaForMaskedLM,
    },
)
