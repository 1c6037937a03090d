"""DistilBERT: BERT without token types and pooler, distilled to half of its layers.

Sanh et al., "DistilBERT, a distilled version of BERT", arXiv:1910.01108. Names, nesting and
numerics follow transformers' `modeling_distilbert.py`. The epsilon of every LayerNorm is 1e-12, and
the output projection of attention has no dropout.
"""

from typing import Any, ClassVar, Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from minibert.checkpoint.config import Config
from minibert.core.types import AnyArray, ArrayLike, Dtype, Options, Rngs
from minibert.models.base import Dimensions, Names, PretrainedModel, Table
from minibert.models.bert.modeling import HeadMask, Hidden, Mask, Weights
from minibert.models.distilbert.config import DistilBertConfig
from minibert.models.heads import projection
from minibert.models.inputs import model_inputs
from minibert.models.outputs import BaseModelOutputWithPastAndCrossAttentions
from minibert.models.resizing import NewRows
from minibert.models.stack import Execution, requested_outputs, run_blocks
from minibert.nn.activations import activation
from minibert.nn.attention import attend, merge_heads, split_heads
from minibert.nn.cache import BlockOutput
from minibert.nn.layers import Dropout, Embed, LayerNorm, Linear, Module

EPSILON = 1e-12


def sinusoidal(positions: int, features: int) -> np.ndarray:
    """Returns sines (even columns) and cosines (odd ones) of positions, `(positions, features)`."""
    column = np.arange(features)
    angles = np.arange(positions)[:, None] / np.power(10000, 2 * (column // 2) / features)
    return np.where(column % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


class Embeddings(Module):
    """Token and position embeddings, summed and normalised."""

    def __init__(self, config: DistilBertConfig, **options: Unpack[Options]):
        vocab, pad = config.vocab_size, config.pad_token_id
        stddev, positions = config.initializer_range, config.max_position_embeddings
        padding_idx = None if pad is None else pad % vocab
        self.word_embeddings: Embed = Embed(
            vocab, config.dim, padding_idx=padding_idx, stddev=stddev, **options
        )
        self.position_embeddings: Embed = Embed(positions, config.dim, stddev=stddev, **options)
        if config.sinusoidal_pos_embds and options["rngs"] is not None:
            matrix = jnp.asarray(sinusoidal(positions, config.dim), options["param_dtype"])
            self.position_embeddings.embedding[...] = matrix
        self.LayerNorm: LayerNorm = LayerNorm(config.dim, epsilon=EPSILON, **options)
        self.dropout: Dropout = Dropout(config.dropout)

    def __call__(
        self,
        input_ids: Any = None,
        inputs_embeds: Array | None = None,
        position_ids: AnyArray | None = None,
        rngs: Rngs = None,
    ) -> Hidden:
        """Embeds token ids, or uses `inputs_embeds`; positions default to 0, 1, …."""
        tokens = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = jnp.arange(tokens.shape[1])[None]
        return self.dropout(self.LayerNorm(tokens + self.position_embeddings(position_ids)), rngs)


class DistilBertSelfAttention(Module):
    """Multi-head self-attention with its output projection."""

    def __init__(self, config: DistilBertConfig, **options: Unpack[Options]):
        self.heads: int = config.n_heads
        self.q_lin: Linear = projection(config, config.dim, **options)
        self.k_lin: Linear = projection(config, config.dim, **options)
        self.v_lin: Linear = projection(config, config.dim, **options)
        self.out_lin: Linear = projection(config, config.dim, **options)
        self.dropout: Dropout = Dropout(config.attention_dropout)

    def __call__(
        self, hidden: Hidden, mask: Mask = None, head_mask: HeadMask = None, rngs: Rngs = None
    ) -> tuple[Hidden, Weights]:
        """Returns the projected heads and the attention weights."""
        query, key, value = (
            split_heads(layer(hidden), self.heads) for layer in (self.q_lin, self.k_lin, self.v_lin)
        )
        context, weights = attend(
            query,
            key,
            value,
            mask=mask,
            head_mask=head_mask,
            dropout=self.dropout.with_keys(rngs),
            sharded=self.q_lin.sharded,
        )
        return self.out_lin(merge_heads(context)), weights


class FFN(Module):
    """The feed-forward network."""

    def __init__(self, config: DistilBertConfig, **options: Unpack[Options]):
        width, stddev = config.hidden_dim, config.initializer_range
        self.lin1: Linear = projection(config, width, **options)
        self.activation: Module = activation(config.activation, **options)
        self.lin2: Linear = Linear(width, config.dim, stddev=stddev, **options)
        self.dropout: Dropout = Dropout(config.dropout)

    def __call__(self, hidden: Hidden, rngs: Rngs = None) -> Hidden:
        """Applies both layers, with `config.activation` between them, and dropout."""
        return self.dropout(self.lin2(self.activation(self.lin1(hidden))), rngs)


class TransformerBlock(Module):
    """One post-norm transformer block."""

    def __init__(self, config: DistilBertConfig, **options: Unpack[Options]):
        self.attention: DistilBertSelfAttention = DistilBertSelfAttention(config, **options)
        self.sa_layer_norm: LayerNorm = LayerNorm(config.dim, epsilon=EPSILON, **options)
        self.ffn: FFN = FFN(config, **options)
        self.output_layer_norm: LayerNorm = LayerNorm(config.dim, epsilon=EPSILON, **options)

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
        """Applies self-attention and the feed-forward network; there is no encoder and no cache."""
        context, weights = self.attention(hidden, mask, head_mask, rngs=rngs)
        hidden = self.sa_layer_norm(context + hidden)
        hidden = self.output_layer_norm(self.ffn(hidden, rngs) + hidden)
        return BlockOutput(hidden, weights, None, None)


class Transformer(Module):
    """The stack of layers."""

    def __init__(self, config: DistilBertConfig, **options: Unpack[Options]):
        self.layer: nnx.List[TransformerBlock] = nnx.List(
            TransformerBlock(config, **options) for _ in range(config.n_layers)
        )

    def __call__(
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: Array | None = None,
        rngs: Rngs = None,
        *,
        execution: Execution,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Applies the layers, all with the same mask."""
        return run_blocks(
            self.layer,
            hidden,
            masks=[mask] * len(self.layer),
            head_mask=head_mask,
            rngs=rngs,
            execution=execution,
        )


class DistilBertPreTrainedModel(PretrainedModel):
    """Base class of all DistilBERT models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = DistilBertConfig
    trunk = "distilbert"
    submodules: ClassVar[Names] = ("embeddings", "transformer")
    heads: ClassVar[Names] = (
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
        "activation",  # which has a parameter if it is PReLU or xIELU
        "pre_classifier",
        "classifier",
        "qa_outputs",
    )
    lora_targets: ClassVar[Names] = ("q_lin", "v_lin")
    buffers: ClassVar[Table] = {
        "distilbert.embeddings.position_ids": "0, 1, 2, …, which are computed"
    }
    blocks = "transformer.layer"
    dimensions: ClassVar[Dimensions] = {
        "*attention.[qkv]_lin.kernel": (None, "heads"),
        "*attention.[qkv]_lin.bias": ("heads",),
        "*attention.out_lin.kernel": ("heads", None),
        "*ffn.lin1.kernel": (None, "features"),
        "*ffn.lin1.bias": ("features",),
        "*ffn.lin2.kernel": ("features", None),
    }
    token_embeddings = "embeddings.word_embeddings"
    config: DistilBertConfig

    def _new_positions(self, rngs: Rngs) -> NewRows:
        """Returns sines where the config says that they are the initial embeddings."""
        if not self.config.sinusoidal_pos_embds:
            return super()._new_positions(rngs)

        def sines(rows: Array, count: int) -> Array:
            old, features = rows.shape
            return jnp.asarray(sinusoidal(old + count, features)[old:], rows.dtype)

        return sines


class DistilBertModel(DistilBertPreTrainedModel):
    """The bare encoder.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
    """

    is_trunk = True
    execution: Execution

    def __init__(
        self,
        config: DistilBertConfig,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options: Options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        self.config, self.execution = config, Execution()
        self.embeddings: Embeddings = Embeddings(config, **options)
        self.transformer: Transformer = Transformer(config, **options)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        attention_mask: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Encodes a batch.

        Args:
            input_ids: `(batch, seq)` token ids; alternatively pass `inputs_embeds`.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding. Or a mask that is used
                unchanged, `(batch, seq, seq)`, 1 where a query (second axis) attends to a key
                (third), also by head, `(batch, heads, seq, seq)`, where one row or head stands for
                all; floating-point numbers with four axes are added to the scores.
            head_mask: `(heads,)` or `(layers, heads)`, factors for the heads' attention weights.
            inputs_embeds: `(batch, seq, hidden)` token embeddings, used instead of `input_ids`.
            position_ids: `(batch, seq)` or `(1, seq)` positions; 0, 1, 2, … by default.
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
        ids, words, positions = given.input_ids, given.inputs_embeds, given.position_ids
        hidden = self.embeddings(ids, words, positions, rngs)
        heads, mask = given.head_mask, given.bidirectional
        done = self.transformer(hidden, mask, heads, rngs, execution=self.execution)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=done.last_hidden_state,
            **requested_outputs(done, self.config, output_hidden_states, output_attentions),
        )
