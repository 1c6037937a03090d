"""The key-value cache of a decoder, with static shapes: one compiled step serves every token.

Keys and values of each layer are stored in arrays of a fixed length; `index` is the number of slots
written. Slots that are not yet written, or that hold padding, are never attended to.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from minibert.core.checks import Size, unmasked, whole
from minibert.errors import InputError
from minibert.nn.attention import AttentionMask, attention_mask_to_bool, causal_mask

# A leaf: an array, or the placeholder that JAX uses when it rebuilds a tree.
Leaf = Array
Projected = Float[Array, "batch heads length head_dim"]


class LayerCache(NamedTuple):
    """One layer of a `KVCache`.

    Attributes:
        key, value: the projections of earlier tokens, `(batch, heads, length, head_dim)`.
        index: the number of slots written, a scalar.
        cross_key, cross_value: the projections of the encoder's states, `(batch, heads,
            encoder_seq, head_dim)`; None before they are computed, or without an encoder.
    """

    key: Array
    value: Array
    index: Array
    cross_key: Array | None = None
    cross_value: Array | None = None

    def append(self, key: Projected, value: Projected) -> "LayerCache":
        """Appends projections; writes NaN if they exceed the capacity."""
        fits = self.index + key.shape[2] <= self.key.shape[2]

        def written(old: Array, new: Array) -> Array:
            # dynamic_update_slice would clamp the start index and overwrite earlier slots
            new = jnp.where(fits, new, jnp.nan).astype(old.dtype)
            return jax.lax.dynamic_update_slice_in_dim(old, new, self.index, axis=2)

        return self._replace(key=written(self.key, key), value=written(self.value, value))


class BlockOutput(NamedTuple):
    """The output of a transformer block.

    Attributes:
        hidden: the new hidden states, `(batch, seq, hidden)`.
        weights: the attention weights, `(batch, heads, seq, keys)`.
        cross_weights: the weights over the encoder's states; None without an encoder.
        past: the updated layer of the cache; None without a cache.
    """

    hidden: Array
    weights: Array
    cross_weights: Array | None
    past: LayerCache | None


def encoder_projections(
    project: Callable[[Array], tuple[Array, Array]], encoded: Array | None, past: LayerCache | None
) -> tuple[Array | None, Array | None, LayerCache | None]:
    """Returns keys and values of an encoder's states: projected if these are passed, else cached.

    Returns:
        The keys and values, None without an encoder; and the cache, which now contains them.
    """
    if encoded is None:
        return (None, None, None) if past is None else (past.cross_key, past.cross_value, past)
    key, value = project(encoded)
    if past is not None:
        past = past._replace(cross_key=key, cross_value=value)
    return key, value, past


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class KVCache:
    """The keys and values of a decoder's earlier tokens; a JAX pytree.

    Attributes:
        keys, values: for each layer `(batch, heads, length, head_dim)`.
        mask: `(batch, length)`, True where a slot holds a token that is not padding.
        index: the number of slots written, a scalar; the same for every row.
        cross_keys, cross_values: those of the encoder's states; None without an encoder.
        cross_mask: `(batch, 1, 1, encoder_seq)`, True where the encoder's states are not padding;
            None if none of them is padding.
    """

    keys: tuple[Leaf, ...]
    values: tuple[Leaf, ...]
    mask: Leaf
    index: Leaf
    cross_keys: tuple[Leaf, ...] | None = None
    cross_values: tuple[Leaf, ...] | None = None
    cross_mask: Leaf | None = None

    @classmethod
    def empty(cls, config: Any, batch: int, length: int, dtype: DTypeLike) -> "KVCache":
        """Returns an empty cache for `batch` rows of at most `length` tokens.

        Raises:
            InputError: `batch` or `length` is not an integer of at least 1.
        """
        batch, length = whole("batch_size", batch, 1), whole("max_length", length, 1)
        heads = config.num_attention_heads
        shape = (batch, heads, length, config.hidden_size // heads)
        layers = range(config.num_hidden_layers)
        return cls(
            keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
            values=tuple(jnp.zeros(shape, dtype) for _ in layers),
            mask=jnp.zeros((batch, length), bool),
            index=jnp.zeros((), jnp.int32),
        )

    @property
    def batch(self) -> int:
        """The number of rows."""
        return self.mask.shape[0]

    @property
    def length(self) -> int:
        """The capacity: the maximum number of tokens in each row."""
        return self.mask.shape[1]

    def extended(self, tokens: Bool[Array, "batch seq"]) -> "KVCache":
        """Marks the next slots as tokens (True) or padding; `with_layers` advances the index."""
        mask = jax.lax.dynamic_update_slice_in_dim(self.mask, tokens, self.index, axis=1)
        return dataclasses.replace(self, mask=mask)

    def attention_mask(
        self, queries: int, causal: bool = True
    ) -> Bool[Array, "batch 1 #queries length"]:
        """Returns the mask of the next `queries` tokens over all slots, without padding.

        The tokens must be marked already (`extended`). If `causal`, each of them attends only to
        itself and to earlier ones.
        """
        tokens = self.mask[:, None, None]
        return causal_mask(queries, self.length, self.index) & tokens if causal else tokens

    def layer(self, number: int) -> LayerCache:
        """Returns layer `number` of the cache."""
        cross = (None, None)
        if self.cross_keys is not None and self.cross_values is not None:
            cross = (self.cross_keys[number], self.cross_values[number])
        return LayerCache(self.keys[number], self.values[number], self.index, *cross)

    def with_layers(
        self,
        layers: list[LayerCache],
        seq: int,
        cross_mask: Bool[Array, "batch 1 1 encoder_seq"] | None,
    ) -> "KVCache":
        """Returns the cache after every layer has appended `seq` tokens."""
        encoded = layers[0].cross_key is not None
        return dataclasses.replace(
            self,
            keys=tuple(layer.key for layer in layers),
            values=tuple(layer.value for layer in layers),
            index=self.index + seq,
            cross_keys=tuple(layer.cross_key for layer in layers) if encoded else None,
            cross_values=tuple(layer.cross_value for layer in layers) if encoded else None,
            cross_mask=cross_mask,
        )

    def rows(self, indices: Int[Array, " rows"]) -> "KVCache":
        """Returns the rows at some indices, in that order; beam search reorders its beams by it.

        Raises:
            InputError: an index is concrete and out of range.
        """
        if not isinstance(indices, jax.core.Tracer):
            for index in np.asarray(jax.device_get(unmasked("indices", indices))).tolist():
                if not 0 <= index < self.batch:
                    raise InputError(
                        f"indices: expected rows from 0 to {self.batch - 1}, found {index}"
                    )
        rest = dataclasses.replace(self, index=None)
        taken = jax.tree.map(lambda array: array[indices], rest)
        return dataclasses.replace(taken, index=self.index)


def decoder_mask(
    batch: Size,
    seq: Size,
    tokens: Bool[Array, "batch seq"] | None,
    mask: Bool[Array, "#batch #heads #queries _"] | Float[Array, "#batch #heads #queries _"] | None,
    past: KVCache | None,
    causal: bool,
) -> tuple[AttentionMask | None, KVCache | None]:
    """Returns the attention mask of a decoder, which excludes padding, and the cache.

    Args:
        batch, seq: the number of rows and of new tokens in each.
        tokens: True at tokens and False at padding; None if there is no padding.
        mask: a mask that is used unchanged, but for slots of the cache that it does not cover.
        past: the cache, if there is one; the keys are then its slots.
        causal: whether a token attends only to itself and to those before it.

    Returns:
        The mask, None for everywhere; and the cache with the new tokens marked.
    """
    if past is not None:
        past = past.extended(jnp.ones((batch, seq), bool) if tokens is None else tokens)
        if mask is None:
            return past.attention_mask(seq, causal), past
        further = ((0, 0), (0, 0), (0, 0), (0, past.length - mask.shape[3]))
        lowest = False if mask.dtype == bool else jnp.finfo(mask.dtype).min
        return jnp.pad(mask, further, constant_values=lowest), past
    if mask is not None:
        return mask, None
    before = causal_mask(seq, seq) if causal else None
    if tokens is None:
        return before, None
    padding = attention_mask_to_bool(tokens)
    return padding if before is None else padding & before, None
