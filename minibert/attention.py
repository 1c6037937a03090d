"""Scaled dot-product attention and the masks it takes.

Vaswani et al., "Attention Is All You Need", arXiv:1706.03762.

The axes, here and in every signature of the library (einsum letters in brackets):

    batch (b)      rows of a batch
    seq            positions of a sequence
    queries (q)    positions that attend
    keys (k)       positions that are attended to
    heads (h)      attention heads
    head_dim (d)   the width of one head
    hidden         heads × head_dim
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Inexact, Integer


def attention_mask_to_bool(
    attention_mask: Integer[Array, "batch *queries keys"] | Bool[Array, "batch *queries keys"],
) -> Bool[Array, "batch 1 queries keys"]:
    """Makes the mask `attend` takes: True where a query may look at a key.

    Args:
        attention_mask: 1 for a token and 0 for padding, `(batch, keys)`; or one such row for each
            query, `(batch, queries, keys)`.
    """
    mask = attention_mask.astype(bool)
    return mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]


def causal_mask(
    queries: int, keys: int, offset: int | Integer[Array, ""] = 0
) -> Bool[Array, "1 1 queries keys"]:
    """True where a key comes no later than the query; query `i` stands at key `offset + i`."""
    return (jnp.arange(keys) <= offset + jnp.arange(queries)[:, None])[None, None]


def split_heads(
    hidden: Float[Array, "batch seq hidden"], heads: int
) -> Float[Array, "batch heads seq head_dim"]:
    """Cuts the last axis into heads, which become the second axis."""
    batch, seq, width = hidden.shape
    return hidden.reshape(batch, seq, heads, width // heads).swapaxes(1, 2)


def merge_heads(
    hidden: Float[Array, "batch heads seq head_dim"],
) -> Float[Array, "batch seq hidden"]:
    """Joins the heads again: the inverse of `split_heads`."""
    batch, heads, seq, head_dim = hidden.shape
    return hidden.swapaxes(1, 2).reshape(batch, seq, heads * head_dim)


def attend(
    query: Float[Array, "batch heads queries head_dim"],
    key: Float[Array, "batch heads keys head_dim"],
    value: Float[Array, "batch heads keys head_dim"],
    *,
    scale: float | None = None,
    mask: Bool[Array, "#batch 1 #queries keys"] | None = None,
    head_mask: Inexact[Array, " heads"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "batch heads queries head_dim"], Float[Array, "batch heads queries keys"]]:
    """Attention of every query over the keys its mask allows.

    Scores and their softmax are computed in float32 or wider. A query whose mask allows no key
    attends to all of them equally, as in PyTorch, so that a row of padding stays finite.

    Args:
        query, key, value: the projections, already split into heads.
        scale: what the scores are multiplied with; 1/√head_dim when None.
        mask: True where a query may look at a key; None for everywhere.
        head_mask: a factor for each head's weights.
        dropout: applied to the weights.

    Returns:
        The weighted values, and the weights after dropout and head mask.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(wide).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    if head_mask is not None:
        weights = weights * head_mask[:, None, None].astype(weights.dtype)
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value), weights
