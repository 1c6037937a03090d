"""RoBERTa: BERT with different positions and different heads.

Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", arXiv:1907.11692. Names,
nesting and numerics follow transformers' `modeling_roberta.py`. Every model takes the arguments of
`BertModel`, with the same names and in the same order.

Positions count from `pad_token_id + 1`, over the tokens whose id is not that of padding; padding
has the position `pad_token_id`. A text therefore has at most
`max_position_embeddings - pad_token_id - 1` tokens.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from minibert.checkpoint.config import Config
from minibert.checkpoint.tensors import Arrays
from minibert.core.fields import SIZE, field, whole
from minibert.core.types import AnyArray, Options, Rngs, Size
from minibert.errors import ConfigError, WeightsFileError, shown
from minibert.models.base import Names, PretrainedModel, Table
from minibert.models.bert.config import LARGE, BertConfig
from minibert.models.bert.heads import (
    NO_POOLER,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertWithCausalLM,
    BertWithHead,
    BertWithMaskedLM,
    LMHead,
    VocabLogits,
)
from minibert.models.bert.modeling import BertEmbeddings, BertModel, BertPreTrainedModel, Hidden
from minibert.models.family import Family
from minibert.models.heads import ForSequenceClassification, Output, projection
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

    `base` and `large` return the configs of the published models.
    """

    model_type = "roberta"

    vocab_size: int = field(SIZE, 50265)
    pad_token_id: int = field(whole(0), 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens < 1:
            raise ConfigError(
                f"max_position_embeddings: expected at least {self.pad_token_id + 2}, as positions "
                f"start after pad_token_id ({self.pad_token_id}), found "
                f"{self.max_position_embeddings}"
            )

    @property
    def max_tokens(self) -> int:
        """The maximum number of tokens in a text."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def max_tokens_name(self) -> str:
        """The formula of `max_tokens`, for messages."""
        return "max_position_embeddings - pad_token_id - 1"

    @property
    def padding_position(self) -> int:
        """The position of padding, whose embedding receives no gradient."""
        return self.pad_token_id

    @classmethod
    def base(cls, **changes: object) -> "RobertaConfig":
        """Returns the config of RoBERTa-base: 12 layers of 768, 125 million parameters."""
        return cls._sized(changes, **PUBLISHED)

    @classmethod
    def large(cls, **changes: object) -> "RobertaConfig":
        """Returns the config of RoBERTa-large: 24 layers of 1024, 355 million parameters."""
        return cls._sized(changes, **PUBLISHED, **LARGE)


PUBLISHED: dict[str, Any] = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
}


class RobertaPreTrainedModel(BertPreTrainedModel):
    """Base class of all RoBERTa models: facts about their checkpoints."""

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
        "roberta.embeddings.position_ids": "0, 1, 2, …, which are computed",
        "roberta.embeddings.token_type_ids": "zeros, which are computed",
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
        """Embeds token ids, or uses `inputs_embeds`; token types are 0 by default."""
        if position_ids is None:
            position_ids = counted_from(self.padding_idx, input_ids, inputs_embeds)
        return super().__call__(input_ids, token_type_ids, position_ids, inputs_embeds, rngs)


def counted_from(pad: int, input_ids: AnyArray | None, inputs_embeds: Any) -> Array:
    """Returns the positions of token ids, or else of embeddings, without a cache; see `counted`."""
    if input_ids is None:
        return pad + 1 + jnp.arange(inputs_embeds.shape[1])[None]
    return counted(jnp.asarray(input_ids) != pad, pad)


def counted(
    tokens: Array, pad: int, *, past: int | Array = 0, segments: Array | None = None
) -> Array:
    """Returns the positions of tokens (True), counted from `pad + 1`, and `pad` for padding."""
    return pad + jnp.where(tokens, numbered(tokens, segments) + past, 0)


class CountedPositions(PretrainedModel):
    """Base class of models that count positions from `config.padding_position + 1`."""

    def positions(
        self,
        input_ids: AnyArray | None,
        tokens: AnyArray | None = None,
        *,
        seq: Size = 0,
        past: int | Array = 0,
        segments: Array | None = None,
    ) -> Integer[Array, "#batch seq"]:
        """Returns the default `position_ids`; see `PretrainedModel.positions` for the arguments."""
        pad: Any = self.config.padding_position
        if input_ids is None:
            plain = super().positions(None, tokens, seq=seq, past=past, segments=segments)
            return pad + 1 + plain
        real = jnp.asarray(input_ids) != pad
        if tokens is not None:
            real &= jnp.asarray(tokens)
        return counted(real, pad, past=past, segments=segments)


class RobertaModel(CountedPositions, RobertaPreTrainedModel, BertModel):
    """The bare encoder, with a pooler if the checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
        add_pooling_layer: whether there is a pooler.
    """

    optional: ClassVar[Names] = ("roberta.pooler",)
    embeddings_class: ClassVar[type[BertEmbeddings]] = RobertaEmbeddings


class RobertaWithHead(BertWithHead[Output], RobertaPreTrainedModel):
    """A `RobertaModel`, in the attribute `roberta`, with a head."""

    base_class: ClassVar[Callable[..., PretrainedModel]] = RobertaModel


class RobertaLMHead(LMHead):
    """The language-model head: scores each token of the vocabulary at each position."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        hidden = config.hidden_size
        self.dense: Linear = projection(config, hidden, **options)
        # GELU whatever `config.hidden_act` is, as in transformers
        self.act: Module = activation("gelu", **options)
        self.layer_norm: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self._add_decoder(config, **options)

    def transform(self, hidden: Hidden) -> Hidden:
        """Applies the layers before the decoder: dense, GELU, LayerNorm."""
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


class RobertaForMaskedLM(BertWithMaskedLM, _RobertaWithLMHead[MaskedLMOutput]):
    """RoBERTa with a masked language model head."""


class RobertaForCausalLM(BertWithCausalLM, _RobertaWithLMHead[CausalLMOutputWithCrossAttentions]):
    """RoBERTa with a next-token head; a causal decoder if `config.is_decoder` is set."""


class RobertaClassificationHead(Module):
    """The sequence classification head: dense, tanh and a classifier over the first token."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        rate = config.classifier_dropout
        self.dense: Linear = projection(config, config.hidden_size, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.out_proj: Linear = projection(config, config.num_labels, **options)

    def __call__(self, hidden: Hidden, rngs: Rngs = None) -> Float[Array, "batch labels"]:
        """Returns a score for each label."""
        first = self.activate(self.dense(self.dropout(hidden[:, 0], rngs)))
        return self.out_proj(self.dropout(first, rngs))

    def activate(self, first: Float[Array, "batch hidden"]) -> Float[Array, "batch hidden"]:
        """Applies the activation between the two layers."""
        return jnp.tanh(first)


class RobertaForSequenceClassification(
    ForSequenceClassification, RobertaWithHead[SequenceClassifierOutput]
):
    """RoBERTa with a classifier over the first token."""

    base_options: ClassVar[Mapping[str, Any]] = NO_POOLER

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        self.classifier: RobertaClassificationHead = RobertaClassificationHead(config, **options)

    def _scores(self, outputs: AnyTrunkOutput, rngs: Rngs) -> Array:
        return self.classifier(outputs.last_hidden_state, rngs)


class RobertaForMultipleChoice(RobertaWithHead[MultipleChoiceModelOutput], BertForMultipleChoice):
    """RoBERTa with a multiple-choice head: a score for each of several continuations."""

    def _add_head(self, config: BertConfig, **options: Unpack[Options]) -> None:
        super()._add_head(config, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)  # not classifier_dropout


class RobertaForTokenClassification(
    RobertaWithHead[TokenClassifierOutput], BertForTokenClassification
):
    """RoBERTa with a token classification head: scores of labels at each position."""


class RobertaForQuestionAnswering(
    RobertaWithHead[QuestionAnsweringModelOutput], BertForQuestionAnswering
):
    """RoBERTa with a question answering head: a start and an end score at each position."""


# Names of fairseq, inside `encoder.` (formerly `decoder.`), and what they are called here.
FAIRSEQ = (
    (r"sentence_encoder\.embed_tokens\.", "roberta.embeddings.word_embeddings."),
    (r"sentence_encoder\.embed_positions\.", "roberta.embeddings.position_embeddings."),
    (
        r"sentence_encoder\.(emb_layer_norm|layernorm_embedding)\.",
        "roberta.embeddings.LayerNorm.",
    ),
    (r"sentence_encoder\.layers\.", "roberta.encoder.layer."),
    (r"\.self_attn_layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.self_attn\.out_proj\.", ".attention.output.dense."),
    (r"\.self_attn\.q_proj\.", ".attention.self.query."),
    (r"\.self_attn\.k_proj\.", ".attention.self.key."),
    (r"\.self_attn\.v_proj\.", ".attention.self.value."),
    (r"\.fc1\.", ".intermediate.dense."),
    (r"\.fc2\.", ".output.dense."),
    (r"\.final_layer_norm\.", ".output.LayerNorm."),
    (r"^lm_head\.weight$", "lm_head.decoder.weight"),
    (r"^classification_heads\.[^.]*\.", "classifier."),
)


def from_fairseq(arrays: Arrays) -> Arrays | None:
    """Returns the tensors of a checkpoint of fairseq under the names of transformers.

    The projections of query, key and value may be one matrix; the embeddings of token types, which
    fairseq does not have, are zeros.

    Returns:
        None if it is not such a checkpoint.

    Raises:
        WeightsFileError: two tensors have the same name there, as of two classification heads.
    """
    if not any(".sentence_encoder.embed_tokens." in name for name in arrays):
        return None
    found: Arrays = {}
    for name, array in arrays.items():
        head, fused, kind = name.partition("in_proj_")
        parts = np.split(array, 3) if fused else [array]
        names = [f"{head}{part}_proj.{kind}" for part in "qkv"] if fused else [name]
        for own, part in zip(names, parts, strict=True):
            new = re.sub(r"^(encoder|decoder)\.", "", own)
            for pattern, replacement in FAIRSEQ:
                new = re.sub(pattern, replacement, new)
            if new in found:
                raise WeightsFileError(
                    f"{shown(name)}: expected the only tensor that is {new!r} in transformers, "
                    "found two, as of several classification heads; leave one in the file"
                )
            found[new] = part
    words = found["roberta.embeddings.word_embeddings.weight"]
    types = np.zeros_like(words[:1])
    return {"roberta.embeddings.token_type_embeddings.weight": types} | found


FAMILY = Family(
    foreign=from_fairseq,
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
        "multiple-choice": RobertaForMultipleChoice,
        "text-generation": RobertaForCausalLM,
        "continuation": RobertaForMaskedLM,
    },
)
