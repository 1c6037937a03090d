"""GPT-2's blocks: attention with one fused projection, the MLP, and the pre-norm block of both.

Radford et al., "Language Models are Unsupervised Multitask Learners" (2019). Names, nesting and
numbers follow transformers' `modeling_gpt2.py`.
"""

import math
from typing import Any

from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Inexact

from minibert.models.gpt2.config import GPT2Config
from minibert.nn.activations import activation
from minibert.nn.attention import attend, merge_heads, split_heads
from minibert.nn.cache import BlockOutput, LayerCache, encoder_projections
from minibert.nn.layers import Conv1D, Dropout, LayerNorm, Module

Hidden = Float[Array, "batch seq hidden"]
Encoded = Float[Array, "batch encoder_seq hidden"] | None
EncoderMask = Bool[Array, "batch 1 1 encoder_seq"] | None
Weights = Float[Array, "batch heads seq keys"]
Mask = Bool[Array, "#batch 1 #seq keys"] | None
HeadMask = Inexact[Array, " heads"] | None
Rngs = nnx.Rngs | None


class _Attention(Module):
    """What self- and cross-attention share: the output projection and how scores are scaled."""

    def __init__(self, config: GPT2Config, layer: int, inputs: int, **options: Any):
        hidden, stddev = config.n_embd, config.initializer_range
        narrow = stddev / math.sqrt(2 * config.n_layer)  # the residual stream sums 2 × n_layer
        self.heads = config.n_head
        self.scale = (hidden // self.heads) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.c_attn = Conv1D(hidden, inputs * hidden, stddev=stddev, **options)
        self.inputs = inputs
        self.c_proj = Conv1D(hidden, hidden, stddev=narrow, **options)
        self.attn_dropout = Dropout(config.attn_pdrop)
        self.resid_dropout = Dropout(config.resid_pdrop)

    def _project(self, hidden: Hidden) -> list[Array]:
        """What the fused projection holds, each `(batch, heads, seq, head_dim)`.

        Over several devices its kernel is (in, inputs, hidden): see `dimensions`.
        """
        fused = self.c_attn(hidden).reshape(*hidden.shape[:2], self.inputs, -1)
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
            sharded=self.c_proj.sharding is not None,
        )
        return self.resid_dropout(self.c_proj(merge_heads(context)), rngs), weights


class GPT2Attention(_Attention):
    """Multi-head self-attention; query, key and value come from one projection, in that order."""

    def __init__(self, config: GPT2Config, layer: int, **options: Any):
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

    def __init__(self, config: GPT2Config, layer: int, **options: Any):
        super().__init__(config, layer, 2, **options)
        hidden, stddev = config.n_embd, config.initializer_range
        self.q_attn = Conv1D(hidden, hidden, stddev=stddev, **options)

    def project(self, encoded: Float[Array, "batch encoder_seq hidden"]) -> tuple[Array, Array]:
        """The keys and values of an encoder's states."""
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

    def __init__(self, config: GPT2Config, **options: Any):
        hidden, stddev = config.n_embd, config.initializer_range
        inner = 4 * hidden if config.n_inner is None else config.n_inner
        narrow = stddev / math.sqrt(2 * config.n_layer)
        self.c_fc = Conv1D(hidden, inner, stddev=stddev, **options)
        self.c_proj = Conv1D(inner, hidden, stddev=narrow, **options)
        self.act = activation(config.activation_function, **options)
        self.dropout = Dropout(config.resid_pdrop)

    def __call__(self, hidden: Hidden, rngs: Rngs = None) -> Hidden:
        """Widens, applies `config.activation_function`, narrows."""
        return self.dropout(self.c_proj(self.act(self.c_fc(hidden))), rngs)


class GPT2Block(Module):
    """One pre-norm transformer block."""

    def __init__(self, config: GPT2Config, layer: int, **options: Any):
        norm: dict[str, Any] = {"epsilon": config.layer_norm_epsilon, **options}
        self.ln_1 = LayerNorm(config.n_embd, **norm)
        self.attn = GPT2Attention(config, layer, **options)
        self.ln_2 = LayerNorm(config.n_embd, **norm)
        crossed = config.add_cross_attention
        self.crossattention = nnx.data(
            GPT2CrossAttention(config, layer, **options) if crossed else None
        )
        self.ln_cross_attn = nnx.data(LayerNorm(config.n_embd, **norm) if crossed else None)
        self.mlp = GPT2MLP(config, **options)

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
        """Adds attention, attention to the encoder if there is one, and the MLP to the residual."""
        added, weights, past = self.attn(self.ln_1(hidden), mask, head_mask, past, rngs)
        hidden = hidden + added
        cross_weights = None
        if self.crossattention is not None and self.ln_cross_attn is not None:
            key, value, past = encoder_projections(self.crossattention.project, encoded, past)
            if key is not None and value is not None:
                added, cross_weights = self.crossattention(
                    self.ln_cross_attn(hidden), key, value, encoder_mask, head_mask, rngs
                )
                hidden = hidden + added
        hidden = hidden + self.mlp(self.ln_2(hidden), rngs)
        return BlockOutput(hidden, weights, cross_weights, past)
