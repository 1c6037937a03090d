"""MPNet: an encoder whose attention scores have a bias by the distance of two tokens.

Song et al., "MPNet: Masked and Permuted Pre-training for Language Understanding", arXiv:2004.09297.
Names, nesting and numerics follow transformers' `modeling_mpnet.py`. Every model takes the
arguments of `MPNetModel`, with the same names and in the same order.

There are no token types. The bias is one for all layers. Positions count from 2, over the tokens
whose id is not 1; padding has the position 1. As in transformers, this does not depend on the
config's `pad_token_id`. A text therefore has at most `max_position_embeddings - 2` tokens.
"""

import math
from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Integer

from minibert.checkpoint.config import Config
from minibert.core.types import AnyArray, ArrayLike, Dtype, Options, Rngs, Size
from minibert.models.base import Dimensions, Names, PretrainedModel, Table
from minibert.models.bert.modeling import (
    BertIntermediate,
    BertOutput,
    BertPooler,
    HeadMask,
    Hidden,
    Mask,
    Weights,
)
from minibert.models.heads import projection
from minibert.models.inputs import model_inputs
from minibert.models.mpnet.config import BUCKETS, PAD, MPNetConfig
from minibert.models.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from minibert.models.roberta import CountedPositions, counted_from
from minibert.models.stack import Execution, requested_outputs, run_blocks
from minibert.nn.attention import attend, merge_heads, split_heads
from minibert.nn.cache import BlockOutput
from minibert.nn.layers import Dropout, Embed, LayerNorm, Linear, Module
from minibert.nn.numerics import wide_dtype

EXACT = 8  # distances up to this have a bucket each
FURTHEST = 128  # the distance from which all have the same bucket, nearly

Bias = Float[Array, "1 heads seq seq"]


class MPNetEmbeddings(Module):
    """Token and position embeddings, summed and normalised."""

    def __init__(self, config: MPNetConfig, **options: Unpack[Options]):
        hidden, positions = config.hidden_size, config.max_position_embeddings
        stddev = config.initializer_range
        self.word_embeddings: Embed = Embed(
            config.vocab_size, hidden, padding_idx=PAD, stddev=stddev, **options
        )
        self.position_embeddings: Embed = Embed(
            positions, hidden, padding_idx=PAD, stddev=stddev, **options
        )
        self.LayerNorm: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Any = None,
        position_ids: AnyArray | None = None,
        inputs_embeds: Array | None = None,
        rngs: Rngs = None,
    ) -> Hidden:
        """Embeds token ids, or uses `inputs_embeds`."""
        tokens = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = counted_from(PAD, input_ids, inputs_embeds)
        hidden = tokens + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(hidden), rngs)


class MPNetSelfAttention(Module):
    """Multi-head self-attention with its output projection."""

    def __init__(self, config: MPNetConfig, **options: Unpack[Options]):
        hidden = config.hidden_size
        self.heads: int = config.num_attention_heads
        self.q: Linear = projection(config, hidden, **options)
        self.k: Linear = projection(config, hidden, **options)
        self.v: Linear = projection(config, hidden, **options)
        self.o: Linear = projection(config, hidden, **options)
        self.dropout: Dropout = Dropout(config.attention_probs_dropout_prob)

    def __call__(
        self, hidden: Hidden, mask: Mask = None, head_mask: HeadMask = None, rngs: Rngs = None
    ) -> tuple[Hidden, Weights]:
        """Returns the projected context and the attention weights."""
        query, key, value = (split_heads(p(hidden), self.heads) for p in (self.q, self.k, self.v))
        context, weights = attend(
            query,
            key,
            value,
            mask=mask,
            head_mask=head_mask,
            dropout=self.dropout.with_keys(rngs),
            sharded=self.q.sharded,
        )
        return self.o(merge_heads(context)), weights


class MPNetAttention(Module):
    """Self-attention, the residual connection and LayerNorm."""

    def __init__(self, config: MPNetConfig, **options: Unpack[Options]):
        hidden = config.hidden_size
        self.attn: MPNetSelfAttention = MPNetSelfAttention(config, **options)
        self.LayerNorm: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, hidden: Hidden, mask: Mask = None, head_mask: HeadMask = None, rngs: Rngs = None
    ) -> tuple[Hidden, Weights]:
        """Returns the hidden states and the attention weights."""
        context, weights = self.attn(hidden, mask, head_mask, rngs)
        return self.LayerNorm(self.dropout(context, rngs) + hidden), weights


class MPNetLayer(Module):
    """One post-norm transformer block."""

    def __init__(self, config: MPNetConfig, **options: Unpack[Options]):
        shared: Any = config
        self.attention: MPNetAttention = MPNetAttention(config, **options)
        self.intermediate: BertIntermediate = BertIntermediate(shared, **options)
        self.output: BertOutput = BertOutput(shared, **options)

    def __call__(
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: HeadMask = None,
        encoded: None = None,
        encoder_mask: None = None,
        past: None = None,
        rngs: Rngs = None,
    ) -> BlockOutput:
        """Applies self-attention and the feed-forward network."""
        hidden, weights = self.attention(hidden, mask, head_mask, rngs)
        hidden = self.output(self.intermediate(hidden), hidden, rngs)
        return BlockOutput(hidden, weights, None, None)


def bucket(distance: Integer[Array, "*shape"]) -> Integer[Array, "*shape"]:
    """Returns the bucket of the distance from a query to a key, which is positive for later keys.

    Half of the buckets are for later keys. Of each half, half are for one distance each, and the
    others for ranges up to `FURTHEST` whose bounds are spaced evenly on a logarithmic scale.
    """
    half = BUCKETS // 2
    ranges, ratio = half - EXACT, FURTHEST / EXACT
    bounds = [math.ceil(EXACT * ratio ** (number / ranges)) for number in range(ranges)]
    # comparisons are exact on every device; a logarithm may be rounded below a bound
    starts = jnp.array([*range(1, EXACT), *bounds], distance.dtype)
    number = (jnp.abs(distance)[..., None] >= starts).sum(axis=-1, dtype=distance.dtype)
    return number + jnp.where(distance > 0, half, 0).astype(distance.dtype)


def position_bias(embedding: Embed, seq: Size) -> Bias:
    """Returns the bias of attention scores: an embedding of the distance's bucket."""
    positions = jnp.arange(seq, dtype=jnp.int32)
    return embedding(bucket(positions[None, :] - positions[:, None])).transpose(2, 0, 1)[None]


def biased(mask: Mask, bias: Bias) -> Mask:
    """Returns numbers to add to attention scores, for both a mask and a bias."""
    if mask is None:
        return bias
    if mask.dtype != bool:
        return mask + bias
    wide = wide_dtype(bias.dtype)
    return jnp.where(mask, bias.astype(wide), jnp.finfo(wide).min)


class MPNetEncoder(Module):
    """The stack of layers, and the embedding of distances that they share."""

    def __init__(self, config: MPNetConfig, **options: Unpack[Options]):
        self.layer: nnx.List[MPNetLayer] = nnx.List(
            MPNetLayer(config, **options) for _ in range(config.num_hidden_layers)
        )
        self.relative_attention_bias: Embed = Embed(
            config.relative_attention_num_buckets,
            config.num_attention_heads,
            stddev=config.initializer_range,
            **options,
        )

    def __call__(
        self, hidden: Hidden, mask: Mask = None, **given: Any
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Applies the layers; takes a mask for all of them and other arguments of `run_blocks`."""
        mask = biased(mask, position_bias(self.relative_attention_bias, hidden.shape[1]))
        return run_blocks(self.layer, hidden, masks=[mask] * len(self.layer), **given)


class MPNetPreTrainedModel(PretrainedModel):
    """Base class of all MPNet models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = MPNetConfig
    trunk = "mpnet"
    submodules: ClassVar[Names] = ("embeddings", "encoder", "pooler")
    heads: ClassVar[Names] = (
        "lm_head",
        "classifier",
        "classifier.out_proj",
        "qa_outputs",
        "mpnet.pooler",
    )
    lora_targets: ClassVar[Names] = ("q", "v")
    buffers: ClassVar[Table] = {"mpnet.embeddings.position_ids": "0, 1, 2, …, which are computed"}
    blocks = "encoder.layer"
    dimensions: ClassVar[Dimensions] = {
        "*attention.attn.[qkv].kernel": (None, "heads"),
        "*attention.attn.[qkv].bias": ("heads",),
        "*attention.attn.o.kernel": ("heads", None),
        "*relative_attention_bias.embedding": (None, "heads"),
        "*intermediate.dense.kernel": (None, "features"),
        "*intermediate.dense.bias": ("features",),
        "*output.dense.kernel": ("features", None),
    }
    token_embeddings = "embeddings.word_embeddings"
    config: MPNetConfig


class MPNetModel(CountedPositions, MPNetPreTrainedModel):
    """The bare encoder, with a pooler if the checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
        add_pooling_layer: whether there is a pooler.
    """

    is_trunk = True
    optional: ClassVar[Names] = ("mpnet.pooler",)

    execution: Execution

    def __init__(
        self,
        config: MPNetConfig,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
        add_pooling_layer: bool = True,
    ):
        options: Options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config, self.execution = config, Execution()
        self.embeddings: MPNetEmbeddings = MPNetEmbeddings(config, **options)
        self.encoder: MPNetEncoder = MPNetEncoder(config, **options)
        shared: Any = config
        self.pooler: BertPooler | None = nnx.data(
            BertPooler(shared, **options) if add_pooling_layer else None
        )

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes a batch.

        Args:
            input_ids: `(batch, seq)` token ids; alternatively pass `inputs_embeds`.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding; or a mask for each
                query, as `BertModel` takes it.
            position_ids: `(batch, seq)` or `(1, seq)` positions; by default those of `positions`.
                The bias is that of the distances in the row, whatever these are.
            head_mask: `(heads,)` or `(layers, heads)`, factors for the heads' attention weights.
            inputs_embeds: `(batch, seq, hidden)` token embeddings, used instead of `input_ids`.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the hidden states of all layers.
            rngs: random keys for dropout, needed in training mode only.

        Raises:
            InputError: an argument is of the wrong shape or type, out of range or contradictory.
        """
        given = model_inputs(
            self,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            head_mask=head_mask,
        )
        hidden = self.embeddings(given.input_ids, given.position_ids, given.inputs_embeds, rngs)
        done = self.encoder(
            hidden,
            given.bidirectional,
            head_mask=given.head_mask,
            rngs=rngs,
            execution=self.execution,
        )
        last = done.last_hidden_state
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last),
            **requested_outputs(done, self.config, output_hidden_states, output_attentions),
        )
