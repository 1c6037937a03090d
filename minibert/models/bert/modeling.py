"""BERT: the encoder, which can also be a decoder.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv:1810.04805. Names, nesting and numerics follow transformers'
`modeling_bert.py`: a checkpoint's tensor names are this tree's paths.
"""

from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Inexact

from minibert.checkpoint.config import Config
from minibert.core.types import AnyArray, ArrayLike, Dtype, Options, Rngs
from minibert.errors import InputError
from minibert.models.base import Dimensions, Names, PretrainedModel, Table
from minibert.models.bert.config import BertConfig
from minibert.models.inputs import ModelInputs, model_inputs
from minibert.models.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
)
from minibert.models.stack import (
    Execution,
    past_and_mask,
    requested_outputs,
    run_blocks,
    state_dtype,
)
from minibert.nn.activations import activation
from minibert.nn.attention import (
    AttentionMask,
    attend,
    merge_heads,
    split_heads,
)
from minibert.nn.cache import BlockOutput, KVCache, LayerCache, encoder_projections
from minibert.nn.layers import Dropout, Embed, LayerNorm, Linear, Module
from minibert.nn.numerics import added

Hidden = Float[Array, "batch seq hidden"]
Weights = Float[Array, "batch heads seq keys"]
Mask = AttentionMask | None
HeadMask = Inexact[Array, " heads"] | None
Encoded = Float[Array, "batch encoder_seq hidden"] | None
EncoderMask = Bool[Array, "batch 1 1 encoder_seq"] | None


class BertEmbeddings(Module):
    """Token, position and token type embeddings, summed and normalised."""

    def __init__(self, config: Any, **options: Unpack[Options]):
        stddev = config.initializer_range
        vocab, hidden, pad = config.vocab_size, config.embedding_size, config.pad_token_id
        padding_idx = None if pad is None else pad % vocab
        self.word_embeddings: Embed = Embed(
            vocab, hidden, padding_idx=padding_idx, stddev=stddev, **options
        )
        self.position_embeddings: Embed = Embed(
            config.max_position_embeddings,
            hidden,
            padding_idx=config.padding_position,
            stddev=stddev,
            **options,
        )
        self.token_type_embeddings: Embed = Embed(
            config.type_vocab_size, hidden, stddev=stddev, **options
        )
        self.LayerNorm: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Any = None,
        token_type_ids: AnyArray | None = None,
        position_ids: AnyArray | None = None,
        inputs_embeds: Array | None = None,
        rngs: Rngs = None,
    ) -> Hidden:
        """Embeds token ids, or uses `inputs_embeds`; types default to 0, positions to 0, 1, …."""
        tokens = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, tokens.shape[1]), jnp.int32)
        if position_ids is None:
            position_ids = jnp.arange(tokens.shape[1])[None]
        hidden = added(tokens, self.token_type_embeddings(token_type_ids))
        hidden = added(hidden, self.position_embeddings(position_ids))
        return self.dropout(self.LayerNorm(hidden), rngs)


class _Attention(Module):
    """Base class of self- and cross-attention: query, key and value projections."""

    def __init__(self, config: Any, **options: Unpack[Options]):
        hidden = config.hidden_size
        stddev = config.initializer_range
        self.heads: int = config.num_attention_heads
        self.query: Linear = Linear(hidden, hidden, stddev=stddev, **options)
        self.key: Linear = Linear(hidden, hidden, stddev=stddev, **options)
        self.value: Linear = Linear(hidden, hidden, stddev=stddev, **options)
        self.dropout: Dropout = Dropout(config.attention_probs_dropout_prob)

    def project(self, hidden: Hidden) -> tuple[Array, Array]:
        """Returns keys and values, each `(batch, heads, seq, head_dim)`."""
        return split_heads(self.key(hidden), self.heads), split_heads(
            self.value(hidden), self.heads
        )

    def _attend(
        self, hidden: Hidden, key: Array, value: Array, mask: Mask, head_mask: HeadMask, rngs: Rngs
    ) -> tuple[Hidden, Weights]:
        context, weights = attend(
            split_heads(self.query(hidden), self.heads),
            key,
            value,
            mask=mask,
            head_mask=head_mask,
            dropout=self.dropout.with_keys(rngs),
            sharded=self.query.sharded,
        )
        return merge_heads(context), weights


class BertSelfAttention(_Attention):
    """Multi-head self-attention without the output projection."""

    def __call__(
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: HeadMask = None,
        past: LayerCache | None = None,
        rngs: Rngs = None,
    ) -> tuple[Hidden, Weights, LayerCache | None]:
        """Returns the merged heads, the attention weights and the cache, if there is one."""
        key, value = self.project(hidden)
        if past is not None:
            past = past.append(key, value)
            key, value = past.key, past.value
        return *self._attend(hidden, key, value, mask, head_mask, rngs), past


class BertCrossAttention(_Attention):
    """Multi-head attention over an encoder's keys and values, without the output projection."""

    def __call__(
        self,
        hidden: Hidden,
        key: Array,
        value: Array,
        mask: Mask = None,
        head_mask: HeadMask = None,
        rngs: Rngs = None,
    ) -> tuple[Hidden, Weights]:
        """Returns the merged heads and the attention weights."""
        return self._attend(hidden, key, value, mask, head_mask, rngs)


class _Project(Module):
    """A projection to the hidden size, the residual connection and LayerNorm."""

    def __init__(self, in_features: int, config: BertConfig, **options: Unpack[Options]):
        hidden = config.hidden_size
        self.dense: Linear = Linear(in_features, hidden, stddev=config.initializer_range, **options)
        self.LayerNorm: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self.dropout: Dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, hidden: Float[Array, "batch seq features"], residual: Hidden, rngs: Rngs = None
    ) -> Hidden:
        """Projects `hidden`, adds it to the `residual` and normalises the sum."""
        return self.LayerNorm(added(self.dropout(self.dense(hidden), rngs), residual))


class BertSelfOutput(_Project):
    """The layers after attention: projection, residual connection, LayerNorm."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        super().__init__(config.hidden_size, config, **options)


class BertAttention(Module):
    """Self- or cross-attention with its output projection."""

    def __init__(self, config: BertConfig, attention: type[_Attention], **options: Unpack[Options]):
        self.self: _Attention = attention(config, **options)
        self.output: BertSelfOutput = BertSelfOutput(config, **options)

    def __call__(self, hidden: Hidden, *given: Any, rngs: Rngs = None) -> tuple[Any, ...]:
        """Applies attention and its projection; takes and returns what the attention does."""
        context, *rest = self.self(hidden, *given, rngs=rngs)
        return self.output(context, hidden, rngs), *rest


class BertIntermediate(Module):
    """The first layer of the feed-forward network, with its activation."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        width, stddev = config.intermediate_size, config.initializer_range
        self.dense: Linear = Linear(config.hidden_size, width, stddev=stddev, **options)
        self.intermediate_act_fn: Module = activation(config.hidden_act, **options)

    def __call__(self, hidden: Hidden) -> Float[Array, "batch seq intermediate"]:
        """Projects to the intermediate size and applies `config.hidden_act`."""
        return self.intermediate_act_fn(self.dense(hidden))


class BertOutput(_Project):
    """The second layer of the feed-forward network: projection, residual connection, LayerNorm."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        super().__init__(config.intermediate_size, config, **options)


class BertLayer(Module):
    """One post-norm transformer block."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        self.attention: BertAttention = BertAttention(config, BertSelfAttention, **options)
        crossed = config.add_cross_attention
        self.crossattention: BertAttention | None = nnx.data(
            BertAttention(config, BertCrossAttention, **options) if crossed else None
        )
        self.intermediate: BertIntermediate = BertIntermediate(config, **options)
        self.output: BertOutput = BertOutput(config, **options)

    def __call__(
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: HeadMask = None,
        encoded: Encoded = None,
        encoder_mask: EncoderMask = None,
        past: LayerCache | None = None,
        rngs: Rngs = None,
    ) -> BlockOutput:
        """Applies self-attention, cross-attention if there is any, and the feed-forward network."""
        hidden, weights, past = self.attention(hidden, mask, head_mask, past, rngs=rngs)
        cross_weights = None
        if self.crossattention is not None:
            project = self.crossattention.self.project
            key, value, past = encoder_projections(project, encoded, past)
            if key is not None and value is not None:
                given = (key, value, encoder_mask, head_mask)
                hidden, cross_weights = self.crossattention(hidden, *given, rngs=rngs)
        hidden = self.output(self.intermediate(hidden), hidden, rngs)
        return BlockOutput(hidden, weights, cross_weights, past)


class BertEncoder(Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        self.layer: nnx.List[BertLayer] = nnx.List(
            BertLayer(config, **options) for _ in range(config.num_hidden_layers)
        )

    def __call__(self, hidden: Hidden, **given: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        """Applies the layers; takes the arguments of `run_blocks`."""
        return run_blocks(self.layer, hidden, **given)


class BertPooler(Module):
    """A tanh layer over the hidden state of the first token, the input of classifiers."""

    def __init__(self, config: BertConfig, **options: Unpack[Options]):
        hidden, stddev = config.hidden_size, config.initializer_range
        self.dense: Linear = Linear(hidden, hidden, stddev=stddev, **options)

    def __call__(self, hidden: Hidden) -> Float[Array, "batch hidden"]:
        """Pools `(batch, seq, hidden)` to `(batch, hidden)`."""
        return jnp.tanh(self.dense(hidden[:, 0]))


class BertPreTrainedModel(PretrainedModel):
    """Base class of all BERT models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = BertConfig
    trunk = "bert"
    submodules: ClassVar[Names] = ("embeddings", "encoder", "pooler")
    heads: ClassVar[Names] = (
        "cls.predictions",
        "cls.seq_relationship",
        "classifier",
        "qa_outputs",
        "bert.pooler",
    )
    lora_targets: ClassVar[Names] = ("query", "value")
    buffers: ClassVar[Table] = {
        "bert.embeddings.position_ids": "0, 1, 2, …, which are computed",
        "bert.embeddings.token_type_ids": "zeros, which are computed",
    }
    blocks = "encoder.layer"
    dimensions: ClassVar[Dimensions] = {
        "*attention.self.*.kernel": (None, "heads"),
        "*attention.self.*.bias": ("heads",),
        "*attention.output.dense.kernel": ("heads", None),
        "*intermediate.dense.kernel": (None, "features"),
        "*intermediate.dense.bias": ("features",),
        "*output.dense.kernel": ("features", None),
    }
    segments = "type_vocab_size"
    token_embeddings = "embeddings.word_embeddings"
    config: BertConfig


class BertModel(BertPreTrainedModel):
    """The bare encoder, with a pooler if the checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
        add_pooling_layer: whether there is a pooler.
    """

    config: BertConfig
    is_trunk = True
    optional: ClassVar[Names] = ("bert.pooler",)
    embeddings_class: ClassVar[type[BertEmbeddings]] = BertEmbeddings

    execution: Execution

    def __init__(
        self,
        config: BertConfig,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
        add_pooling_layer: bool = True,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config, self.execution = config, Execution()
        self.embeddings: BertEmbeddings = self.embeddings_class(config, **options)
        self.encoder: BertEncoder = BertEncoder(config, **options)
        self.pooler: BertPooler | None = nnx.data(
            BertPooler(config, **options) if add_pooling_layer else None
        )

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Returns an empty cache for `batch_size` rows of up to `max_length` tokens, with padding.

        Keys and values are stored in the dtype of the hidden states.

        Raises:
            InputError: the model is not a decoder, or an argument is not a positive integer.
        """
        if not self.config.is_decoder:
            raise InputError(
                "init_cache: only a decoder has a cache, and config.is_decoder is false"
            )
        parts = self.embeddings.word_embeddings, self.encoder.layer[0].output.dense
        return KVCache.empty(self.config, batch_size, max_length, state_dtype(*parts))

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Encodes a batch; in a decoder each token attends only to itself and to earlier ones.

        Args:
            input_ids: `(batch, seq)` token ids; alternatively pass `inputs_embeds`.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding, for the new tokens
                only: a cache stores the mask of earlier ones. Or a mask that is used unchanged,
                `(batch, seq, keys)`, 1 where a query (second axis) attends to a key (third), also
                by head, `(batch, heads, seq, keys)`, where one row or head stands for all;
                floating-point numbers with four axes are added to the scores. With a cache, the
                keys are those in it and the new ones.
            token_type_ids: `(batch, seq)` token types (segments); zeros by default.
            position_ids: `(batch, seq)` or `(1, seq)` positions; by default those of `positions`,
                continuing those in the cache.
            head_mask: `(heads,)` or `(layers, heads)`, factors for the heads' attention weights.
            inputs_embeds: `(batch, seq, hidden)` token embeddings, used instead of `input_ids`.
            encoder_hidden_states: `(batch, encoder_seq, hidden)` for cross-attention; the cache
                stores their keys and values, so that later calls need not pass them.
            encoder_attention_mask: `(batch, encoder_seq)`, 0 at the encoder's padding.
            past_key_values: the cache of a decoder (`init_cache` returns an empty one).
            use_cache: whether a decoder makes a cache of `config.max_tokens` tokens if none is
                passed.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return the hidden states of all layers.
            rngs: random keys for dropout, needed in training mode only.

        Raises:
            InputError: an argument is of the wrong shape or type, out of range or contradictory.
        """
        done = self._encoded(
            use_cache,
            rngs,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
        )
        last = done.last_hidden_state
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=last,
            pooler_output=None if self.pooler is None else self.pooler(last),
            **requested_outputs(done, self.config, output_hidden_states, output_attentions),
        )

    def _encoded(
        self, use_cache: bool | None, rngs: Rngs, **arguments: Any
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Returns the output of the encoder; takes the arguments of `model_inputs`."""
        config, given, past = self.config, model_inputs(self, **arguments), None
        mask = given.bidirectional
        if config.is_decoder:
            mask, past = past_and_mask(
                given,
                lambda: self.init_cache(given.batch, config.max_tokens),
                use_cache,
                config.causal,
            )
        return self.encoder(
            self._embedded(given, rngs),
            masks=[mask] * len(self.encoder.layer),
            head_mask=given.head_mask,
            encoded=given.encoder_hidden_states,
            encoder_mask=given.encoder_mask,
            past=past,
            rngs=rngs,
            execution=self.execution,
        )

    def _embedded(self, given: ModelInputs, rngs: Rngs) -> Hidden:
        return self.embeddings(
            given.input_ids, given.token_type_ids, given.position_ids, given.inputs_embeds, rngs
        )
