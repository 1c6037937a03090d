"""GPT-2: the decoder.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). Names, nesting and
numerics follow transformers' `modeling_gpt2.py`: a checkpoint's tensor names are this tree's paths.
"""

import dataclasses
import math
from typing import ClassVar, Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Inexact, Integer

from minibert.checkpoint.config import Config
from minibert.core.types import ArrayLike, Dtype, Options, Rngs
from minibert.models.base import Dimensions, Names, PretrainedModel, Table
from minibert.models.gpt2.config import GPT2Config
from minibert.models.inputs import model_inputs
from minibert.models.outputs import BaseModelOutputWithPastAndCrossAttentions
from minibert.models.stack import (
    Execution,
    past_and_mask,
    requested_outputs,
    run_blocks,
    state_dtype,
)
from minibert.nn.activations import activation
from minibert.nn.attention import AttentionMask, attend, merge_heads, split_heads
from minibert.nn.cache import BlockOutput, KVCache, LayerCache, encoder_projections
from minibert.nn.layers import Conv1D, Dropout, Embed, LayerNorm, Module
from minibert.nn.numerics import added

Hidden = Float[Array, "batch seq hidden"]
Encoded = Float[Array, "batch encoder_seq hidden"] | None
EncoderMask = Bool[Array, "batch 1 1 encoder_seq"] | None
Weights = Float[Array, "batch heads seq keys"]
Mask = AttentionMask | None
HeadMask = Inexact[Array, " heads"] | None


class _Attention(Module):
    """Base class of self- and cross-attention: fused and output projections, scale of scores."""

    def __init__(self, config: GPT2Config, layer: int, inputs: int, **options: Unpack[Options]):
        hidden, stddev = config.n_embd, config.initializer_range
        narrow = stddev / math.sqrt(2 * config.n_layer)  # the residual stream sums 2 × n_layer
        self.heads: int = config.n_head
        self.scale = (hidden // self.heads) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn: Conv1D = Conv1D(hidden, inputs * hidden, stddev=stddev, **options)
        self.inputs = inputs
        self.c_proj: Conv1D = Conv1D(hidden, hidden, stddev=narrow, **options)
        self.attn_dropout: Dropout = Dropout(config.attn_pdrop)
        self.resid_dropout: Dropout = Dropout(config.resid_pdrop)

    def _project(self, hidden: Hidden) -> list[Array]:
        """Returns the parts of the fused projection, each `(batch, heads, seq, head_dim)`.

        On several devices its kernel is `(in, inputs, hidden)`: see `dimensions`.
        """
        fused = self.c_attn(hidden).reshape(*hidden.shape[:2], self.inputs, hidden.shape[2])
        return [split_heads(fused[:, :, part], self.heads) for part in range(self.inputs)]

    def _attend(
        self, query: Array, key: Array, value: Array, mask: Mask, head_mask: HeadMask, rngs: Rngs
    ) -> tuple[Hidden, Weights]:
        context, weights = attend(
            query,
            key,
            value,
            scale=self.scale,
            mask=mask,
            head_mask=head_mask,
            dropout=self.attn_dropout.with_keys(rngs),
            sharded=self.c_proj.sharded,
        )
        return self.resid_dropout(self.c_proj(merge_heads(context)), rngs), weights


class GPT2Attention(_Attention):
    """Multi-head self-attention; query, key and value come from one projection, in that order."""

    def __init__(self, config: GPT2Config, layer: int, **options: Unpack[Options]):
        super().__init__(config, layer, 3, **options)

    def __call__(
        self,
        hidden: Hidden,
        mask: Mask = None,
        head_mask: HeadMask = None,
        past: LayerCache | None = None,
        rngs: Rngs = None,
    ) -> tuple[Hidden, Weights, LayerCache | None]:
        """Returns the new hidden states, the attention weights and the cache, if there is one."""
        query, key, value = self._project(hidden)
        if past is not None:
            past = past.append(key, value)
            key, value = past.key, past.value
        return *self._attend(query, key, value, mask, head_mask, rngs), past


class GPT2CrossAttention(_Attention):
    """Attention over an encoder's states; key and value come from one projection, in that order."""

    def __init__(self, config: GPT2Config, layer: int, **options: Unpack[Options]):
        super().__init__(config, layer, 2, **options)
        hidden, stddev = config.n_embd, config.initializer_range
        self.q_attn: Conv1D = Conv1D(hidden, hidden, stddev=stddev, **options)

    def project(self, encoded: Float[Array, "batch encoder_seq hidden"]) -> tuple[Array, Array]:
        """Returns the keys and values of an encoder's states."""
        key, value = self._project(encoded)
        return key, value

    def __call__(
        self,
        hidden: Hidden,
        key: Array,
        value: Array,
        mask: Mask = None,
        head_mask: HeadMask = None,
        rngs: Rngs = None,
    ) -> tuple[Hidden, Weights]:
        """Returns the new hidden states and the attention weights."""
        query = split_heads(self.q_attn(hidden), self.heads)
        return self._attend(query, key, value, mask, head_mask, rngs)


class GPT2MLP(Module):
    """The feed-forward network."""

    def __init__(self, config: GPT2Config, **options: Unpack[Options]):
        hidden, stddev = config.n_embd, config.initializer_range
        inner = 4 * hidden if config.n_inner is None else config.n_inner
        narrow = stddev / math.sqrt(2 * config.n_layer)
        self.c_fc: Conv1D = Conv1D(hidden, inner, stddev=stddev, **options)
        self.c_proj: Conv1D = Conv1D(inner, hidden, stddev=narrow, **options)
        self.act: Module = activation(config.activation_function, **options)
        self.dropout: Dropout = Dropout(config.resid_pdrop)

    def __call__(self, hidden: Hidden, rngs: Rngs = None) -> Hidden:
        """Projects to the inner size, applies `config.activation_function` and projects back."""
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden))), rngs)


class GPT2Block(Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPT2Config, layer: int, **options: Unpack[Options]):
        epsilon = config.layer_norm_epsilon
        self.ln_1: LayerNorm = LayerNorm(config.n_embd, epsilon=epsilon, **options)
        self.attn: GPT2Attention = GPT2Attention(config, layer, **options)
        self.ln_2: LayerNorm = LayerNorm(config.n_embd, epsilon=epsilon, **options)
        crossed = config.add_cross_attention
        self.crossattention: GPT2CrossAttention | None = nnx.data(
            GPT2CrossAttention(config, layer, **options) if crossed else None
        )
        self.ln_cross_attn: LayerNorm | None = nnx.data(
            LayerNorm(config.n_embd, epsilon=epsilon, **options) if crossed else None
        )
        self.mlp: GPT2MLP = GPT2MLP(config, **options)

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
        """Adds self-attention, cross-attention if there is any, and the MLP to the residual."""
        attended, weights, past = self.attn(self.ln_1(hidden), mask, head_mask, past, rngs)
        hidden = added(hidden, attended)
        cross_weights = None
        if self.crossattention is not None and self.ln_cross_attn is not None:
            key, value, past = encoder_projections(self.crossattention.project, encoded, past)
            if key is not None and value is not None:
                attended, cross_weights = self.crossattention(
                    self.ln_cross_attn(hidden), key, value, encoder_mask, head_mask, rngs
                )
                hidden = added(hidden, attended)
        hidden = added(hidden, self.mlp(self.ln_2(hidden), rngs))
        return BlockOutput(hidden, weights, cross_weights, past)


class GPT2PreTrainedModel(PretrainedModel):
    """Base class of all GPT-2 models: facts about their checkpoints."""

    config_class: ClassVar[type[Config]] = GPT2Config
    trunk = "transformer"
    submodules: ClassVar[Names] = ("wte", "wpe", "h", "ln_f")
    heads: ClassVar[Names] = (
        "lm_head",
        "score",
        "classifier",
        "qa_outputs",
        "multiple_choice_head",
    )
    lora_targets: ClassVar[Names] = ("c_attn",)
    buffers: ClassVar[Table] = {
        f"transformer.h.#.{name}": why
        for attention in ("attn", "crossattention")
        for name, why in (
            (f"{attention}.bias", "the causal mask, which is computed"),
            (f"{attention}.masked_bias", "the score of a masked key, which is a constant"),
        )
    }
    blocks = "h"
    dimensions: ClassVar[Dimensions] = {
        "*attn.c_attn.kernel": (None, 3, "heads"),  # query, key and value
        "*attn.c_attn.bias": (3, "heads"),
        "*crossattention.c_attn.kernel": (None, 2, "heads"),  # key and value
        "*crossattention.c_attn.bias": (2, "heads"),
        "*crossattention.q_attn.kernel": (None, "heads"),
        "*crossattention.q_attn.bias": ("heads",),
        "*attn.c_proj.kernel": ("heads", None),
        "*crossattention.c_proj.kernel": ("heads", None),
        "*mlp.c_fc.kernel": (None, "features"),
        "*mlp.c_fc.bias": ("features",),
        "*mlp.c_proj.kernel": ("features", None),
    }
    segments = "vocab_size"
    token_embeddings = "wte"
    config: GPT2Config


class GPT2Model(GPT2PreTrainedModel):
    """The bare decoder.

    Args:
        config: the shape and settings.
        rngs: random keys to initialise weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computations; None for the dtype of the parameters.
        param_dtype: the dtype of the parameters.
    """

    config: GPT2Config
    is_trunk = True

    execution: Execution

    def __init__(
        self,
        config: GPT2Config,
        *,
        rngs: Rngs,
        dtype: Dtype = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options: Options = {"rngs": rngs, "dtype": dtype, "param_dtype": param_dtype}
        hidden, stddev = config.n_embd, config.initializer_range
        self.config, self.execution = config, Execution()
        self.wte: Embed = Embed(config.vocab_size, hidden, stddev=stddev, **options)
        self.wpe: Embed = Embed(config.n_positions, hidden, stddev=stddev, **options)
        self.drop: Dropout = Dropout(config.embd_pdrop)
        self.h: nnx.List[GPT2Block] = nnx.List(
            GPT2Block(config, layer, **options) for layer in range(config.n_layer)
        )
        self.ln_f: LayerNorm = LayerNorm(hidden, epsilon=config.layer_norm_epsilon, **options)

    def init_cache(self, batch_size: int, max_length: int) -> KVCache:
        """Returns an empty cache for `batch_size` rows of up to `max_length` tokens, with padding.

        Keys and values are stored in the dtype of the hidden states.

        Raises:
            InputError: an argument is not a positive integer.
        """
        dtype = state_dtype(self.wte, self.h[0].attn.c_attn)
        return KVCache.empty(self.config, batch_size, max_length, dtype)

    def __call__(
        self,
        input_ids: ArrayLike | None = None,
        past_key_values: KVCache | None = None,
        attention_mask: ArrayLike | None = None,
        token_type_ids: ArrayLike | None = None,
        position_ids: ArrayLike | None = None,
        head_mask: ArrayLike | None = None,
        inputs_embeds: ArrayLike | None = None,
        encoder_hidden_states: ArrayLike | None = None,
        encoder_attention_mask: ArrayLike | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        rngs: Rngs = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Applies the decoder; each token attends only to itself and to earlier ones.

        Args:
            input_ids: `(batch, seq)` token ids; alternatively pass `inputs_embeds`.
            past_key_values: the cache of earlier calls (`init_cache` returns an empty one), to
                which the new tokens are appended.
            attention_mask: `(batch, seq)`, 1 for a token and 0 for padding, for the new tokens
                only: a cache stores the mask of earlier ones. Or a mask that is used unchanged,
                without the causal one: `(batch, seq, keys)`, 1 where a query (second axis) attends
                to a key (third), also by head, `(batch, heads, seq, keys)`, where one row or head
                stands for all; floating-point numbers with four axes are added to the scores. With
                a cache, the keys are those in it and the new ones.
            token_type_ids: `(batch, seq)` ids, embedded by the token embedding matrix and added.
            position_ids: `(batch, seq)` or `(1, seq)`; by default 0, 1, 2, …, continuing those in
                the cache and counting padding. Without a mask and a cache, and with
                `use_cache=False` here or in the config, a position that is not its predecessor's
                plus one starts a new text, whose tokens do not attend to earlier texts, as in
                transformers.
            head_mask: `(heads,)` or `(layers, heads)`, factors for the heads' attention weights.
            inputs_embeds: `(batch, seq, hidden)` token embeddings, used instead of `input_ids`.
            encoder_hidden_states: `(batch, encoder_seq, hidden)` for cross-attention; the cache
                stores their keys and values, so that later calls need not pass them.
            encoder_attention_mask: `(batch, encoder_seq)`, 0 at the encoder's padding.
            use_cache: whether to make a cache of `n_positions` tokens if none is passed; by
                default none is made. It also affects how `position_ids` are interpreted, for which
                it defaults to `config.use_cache`.
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
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
        )
        config = self.config
        mask, past = past_and_mask(
            given,
            lambda: self.init_cache(given.batch, config.max_tokens),
            use_cache,
            config.causal,
        )
        cached = config.use_cache if use_cache is None else use_cache
        unmasked = given.mask is None and given.tokens is None
        if position_ids is not None and unmasked and not cached and past is None:
            mask = mask if mask is None else mask & same_text(given.position_ids)
        tokens = given.inputs_embeds if input_ids is None else self.wte(given.input_ids)
        hidden = added(tokens, self.wpe(given.position_ids))
        if given.token_type_ids is not None:
            hidden = added(hidden, self.wte(given.token_type_ids))
        done = run_blocks(
            self.h,
            self.drop(hidden, rngs),
            masks=[mask] * len(self.h),
            head_mask=given.head_mask,
            encoded=given.encoder_hidden_states,
            encoder_mask=given.encoder_mask,
            past=past,
            rngs=rngs,
            execution=self.execution,
        )
        last = self.ln_f(done.last_hidden_state)
        states = (*(done.hidden_states or ())[:-1], last)
        done = dataclasses.replace(done, last_hidden_state=last, hidden_states=states)
        outputs = requested_outputs(done, self.config, output_hidden_states, output_attentions)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=last, **outputs)


def same_text(
    position_ids: Integer[Array, "batch seq"],
) -> Bool[Array, "batch 1 seq seq"]:
    """Returns True where two tokens of a row belong to one text; see `GPT2Model.__call__`."""
    starts = jnp.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
    text = jnp.cumsum(starts, axis=1)
    return (text[:, :, None] == text[:, None, :])[:, None]
