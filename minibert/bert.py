"""BERT: the encoder and its blocks.

Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding", arXiv:1810.04805. Names, nesting and numbers follow transformers'
`modeling_bert.py`: a checkpoint's tensor names are this tree's paths.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Inexact

from minibert.activations import activation
from minibert.attention import attend
from minibert.bert_config import BertConfig
from minibert.inputs import encoder_inputs
from minibert.layers import Dropout, Embed, LayerNorm, Linear, Module
from minibert.outputs import BaseModelOutput, BaseModelOutputWithPooling
from minibert.pretrained import PretrainedModel

Hidden = Float[Array, "batch seq hidden"]
Weights = Float[Array, "batch heads seq seq"]
Mask = Bool[Array, "batch 1 #seq seq"] | None
HeadMask = Inexact[Array, " heads"] | None
Rngs = nnx.Rngs | None


class BertEmbeddings(Module):
    """Word, position and segment embeddings, summed and normalised."""

    def __init__(self, config: BertConfig, **options: Any):
        drawn: dict[str, Any] = {"stddev": config.initializer_range, **options}
        vocab, hidden, pad = config.vocab_size, config.hidden_size, config.pad_token_id
        padding_idx = None if pad is None else pad % vocab
        self.word_embeddings = Embed(vocab, hidden, padding_idx=padding_idx, **drawn)
        self.position_embeddings = Embed(config.max_position_embeddings, hidden, **drawn)
        self.token_type_embeddings = Embed(config.type_vocab_size, hidden, **drawn)
        self.LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        rngs: Rngs = None,
    ) -> Hidden:
        """Embeds words, or takes `inputs_embeds`, and adds segments (0) and positions (0, 1, …)."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, words.shape[1]), jnp.int32)
        if position_ids is None:
            position_ids = jnp.arange(words.shape[1])[None]
        hidden = words + self.token_type_embeddings(token_type_ids)
        hidden = hidden + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(hidden), rngs)


class BertSelfAttention(Module):
    """Multi-head self-attention, up to the joined heads."""

    def __init__(self, config: BertConfig, **options: Any):
        hidden = config.hidden_size
        drawn: dict[str, Any] = {"stddev": config.initializer_range, **options}
        self.heads = config.num_attention_heads
        self.query = Linear(hidden, hidden, **drawn)
        self.key = Linear(hidden, hidden, **drawn)
        self.value = Linear(hidden, hidden, **drawn)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def __call__(
        self, hidden: Hidden, mask: Mask = None, head_mask: HeadMask = None, rngs: Rngs = None
    ) -> tuple[Hidden, Weights]:
        """Returns the joined heads and the attention weights."""
        split = (*hidden.shape[:2], self.heads, hidden.shape[2] // self.heads)
        context, weights = attend(
            self.query(hidden).reshape(split),
            self.key(hidden).reshape(split),
            self.value(hidden).reshape(split),
            mask=mask,
            head_mask=head_mask,
            dropout=lambda weights: self.dropout(weights, rngs),
        )
        return context.reshape(hidden.shape), weights


class _Project(Module):
    """A projection to the hidden size, the residual, and their normalisation."""

    def __init__(self, in_features: int, config: BertConfig, **options: Any):
        hidden = config.hidden_size
        self.dense = Linear(in_features, hidden, stddev=config.initializer_range, **options)
        self.LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_eps, **options)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self, hidden: Float[Array, "batch seq features"], residual: Hidden, rngs: Rngs = None
    ) -> Hidden:
        """Projects `hidden`, adds it to the `residual` and normalises the sum."""
        return self.LayerNorm(self.dropout(self.dense(hidden), rngs) + residual)


class BertSelfOutput(_Project):
    """What follows self-attention: projection, residual, normalisation."""

    def __init__(self, config: BertConfig, **options: Any):
        super().__init__(config.hidden_size, config, **options)


class BertAttention(Module):
    """Self-attention and its output projection."""

    def __init__(self, config: BertConfig, **options: Any):
        self.self = BertSelfAttention(config, **options)
        self.output = BertSelfOutput(config, **options)

    def __call__(
        self, hidden: Hidden, mask: Mask = None, head_mask: HeadMask = None, rngs: Rngs = None
    ) -> tuple[Hidden, Weights]:
        """Returns the new hidden states and the attention weights."""
        context, weights = self.self(hidden, mask, head_mask, rngs)
        return self.output(context, hidden, rngs), weights


class BertIntermediate(Module):
    """The widening half of the feed-forward network."""

    def __init__(self, config: BertConfig, **options: Any):
        width, stddev = config.intermediate_size, config.initializer_range
        self.dense = Linear(config.hidden_size, width, stddev=stddev, **options)
        self.intermediate_act_fn = activation(config.hidden_act, **options)

    def __call__(self, hidden: Hidden) -> Float[Array, "batch seq intermediate"]:
        """Widens and applies `config.hidden_act`."""
        return self.intermediate_act_fn(self.dense(hidden))


class BertOutput(_Project):
    """The narrowing half of the feed-forward network: projection, residual, normalisation."""

    def __init__(self, config: BertConfig, **options: Any):
        super().__init__(config.intermediate_size, config, **options)


class BertLayer(Module):
    """One post-norm transformer block."""

    def __init__(self, config: BertConfig, **options: Any):
        self.attention = BertAttention(config, **options)
        self.intermediate = BertIntermediate(config, **options)
        self.output = BertOutput(config, **options)

    def __call__(
        self, hidden: Hidden, mask: Mask = None, head_mask: HeadMask = None, rngs: Rngs = None
    ) -> tuple[Hidden, Weights]:
        """Returns the new hidden states and the attention weights."""
        hidden, weights = self.attention(hidden, mask, head_mask, rngs)
        return self.output(self.intermediate(hidden), hidden, rngs), weights


class BertEncoder(Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig, **options: Any):
        self.layer = nnx.List(BertLayer(config, **options) for _ in range(config.num_hidden_layers))

    def __call__(
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: Inexact[Array, "layers heads"] | None = None,
        rngs: Rngs = None,
    ) -> BaseModelOutput:
        """Applies the layers, keeping every hidden state and every layer's attention weights."""
        states, attentions = [hidden], []
        for index, layer in enumerate(self.layer):
            factors = None if head_mask is None else head_mask[index]
            hidden, weights = layer(hidden, mask, factors, rngs)
            states.append(hidden)
            attentions.append(weights)
        return BaseModelOutput(
            last_hidden_state=hidden, hidden_states=tuple(states), attentions=tuple(attentions)
        )


class BertPooler(Module):
    """The first token's state through a tanh layer: what classifiers look at."""

    def __init__(self, config: BertConfig, **options: Any):
        hidden, stddev = config.hidden_size, config.initializer_range
        self.dense = Linear(hidden, hidden, stddev=stddev, **options)

    def __call__(self, hidden: Hidden) -> Float[Array, "batch hidden"]:
        """Pools `(batch, seq, hidden)` to `(batch, hidden)`."""
        return jnp.tanh(self.dense(hidden[:, 0]))


class BertPreTrainedModel(PretrainedModel):
    """What every BERT class shares: the facts about its checkpoints."""

    config_class = BertConfig
    trunk = "bert"
    rooms = ("embeddings", "encoder", "pooler")
    heads = ("cls.predictions", "cls.seq_relationship", "classifier", "qa_outputs", "bert.pooler")
    buffers = {
        "bert.embeddings.position_ids": "0, 1, 2, …, which the code counts itself",
        "bert.embeddings.token_type_ids": "zeros, which the code makes itself",
    }
    config: BertConfig


class BertModel(BertPreTrainedModel):
    """The bare encoder, with the pooler if its checkpoint has one.

    Args:
        config: the shape and settings.
        rngs: random keys for fresh weights; None builds shapes only, for a loader to fill.
        dtype: what to compute in; None for the parameters' own dtype.
        param_dtype: what to store parameters in.
        add_pooling_layer: whether there is a pooler.
    """

    is_trunk = True
    optional = ("bert.pooler",)

    def __init__(
        self,
        config: BertConfig,
        *,
        rngs: Rngs,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        add_pooling_layer: bool = True,
    ):
        options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config = config
        self.embeddings = BertEmbeddings(config, **options)
        self.encoder = BertEncoder(config, **options)
        self.pooler = nnx.data(BertPooler(config, **options) if add_pooling_layer else None)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPooling:
        """Encodes a batch.

        Args:
            input_ids: `(batch, seq)` word indices; or give `inputs_embeds`.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding; or
                `(batch, seq, seq)`, 1 where a query (second axis) may look at a key (third).
            token_type_ids: `(batch, seq)` segments; zeros by default.
            position_ids: `(batch, seq)` or `(1, seq)` positions; 0, 1, 2, … by default.
            head_mask: `(heads,)` or `(layers, heads)`, a factor for each head's weights.
            inputs_embeds: `(batch, seq, hidden)` in place of the word embeddings.
            output_attentions: whether to return attention weights.
            output_hidden_states: whether to return every hidden state.
            rngs: random keys for dropout, needed in training mode only.

        Raises:
            InputError: an argument is of the wrong shape or type, out of range or contradictory.
        """
        given = encoder_inputs(
            self.config,
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
        )
        hidden = self.embeddings(
            given.input_ids, given.token_type_ids, given.position_ids, given.inputs_embeds, rngs
        )
        encoded = self.encoder(hidden, given.mask, given.head_mask, rngs)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        return BaseModelOutputWithPooling(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(encoded.last_hidden_state),
            hidden_states=encoded.hidden_states if output_hidden_states else None,
            attentions=encoded.attentions if output_attentions else None,
        )
