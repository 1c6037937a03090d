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

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jaxtyping import Bool, Float, Inexact, Integer

from minibert.core.checks import Size
from minibert.nn.attention_cpu import context_on_cpu
from minibert.nn.numerics import wide_dtype

AttentionMask = (
    Bool[Array, "#batch #heads #queries keys"] | Float[Array, "#batch #heads #queries keys"]
)


def attention_mask_to_bool(
    attention_mask: Integer[Array, "batch *queries keys"] | Bool[Array, "batch *queries keys"],
) -> Bool[Array, "batch 1 queries keys"]:
    """Returns the mask that `attend` takes: True where a query attends to a key.

    Args:
        attention_mask: 1 for a token and 0 for padding, `(batch, keys)`; or one such row for each
            query, `(batch, queries, keys)`.
    """
    mask = attention_mask.astype(bool)
    return mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]


def causal_mask(
    queries: Size, keys: Size, offset: int | Integer[Array, ""] = 0
) -> Bool[Array, "1 1 queries keys"]:
    """Returns True where a key is not after the query; query `i` is at position `offset + i`."""
    queried = offset + jnp.arange(queries, dtype=jnp.int32)[:, None]
    return (jnp.arange(keys, dtype=jnp.int32)[None] <= queried)[None, None]


def split_heads(
    hidden: Float[Array, "batch seq hidden"], heads: int
) -> Float[Array, "batch heads seq head_dim"]:
    """Splits the last axis into heads, which become the second axis."""
    batch, seq, width = hidden.shape
    return hidden.reshape(batch, seq, heads, width // heads).swapaxes(1, 2)


def merge_heads(
    hidden: Float[Array, "batch heads seq head_dim"],
) -> Float[Array, "batch seq hidden"]:
    """Merges the heads; the inverse of `split_heads`."""
    batch, heads, seq, head_dim = hidden.shape
    return hidden.swapaxes(1, 2).reshape(batch, seq, heads * head_dim)


def attend(
    query: Float[Array, "batch heads queries head_dim"],
    key: Float[Array, "batch heads keys head_dim"],
    value: Float[Array, "batch heads keys head_dim"],
    *,
    scale: float | None = None,
    mask: AttentionMask | None = None,
    bias: Float[Array, "#batch #heads queries keys"] | None = None,
    head_mask: Inexact[Array, " heads"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
    sharded: bool = False,
) -> tuple[Float[Array, "batch heads queries head_dim"], Float[Array, "batch heads queries keys"]]:
    """Computes scaled dot-product attention of each query over the keys that its mask allows.

    Scores and their softmax are computed in float32 or wider. A query whose mask allows no key
    attends to all of them equally, as in PyTorch, so that rows of padding stay finite.

    Args:
        query, key, value: the projections, already split into heads.
        scale: the factor of the scores; None for 1/√head_dim.
        mask: True where a query attends to a key; or numbers that are added to the scaled scores,
            of which -inf counts as the lowest finite one; None for everywhere.
        bias: added to the scaled scores, for example a relative position bias.
        head_mask: a factor for each head's weights.
        dropout: applied to the weights.
        sharded: whether the arrays are split over devices, so that slicing would gather them.

    Returns:
        The weighted values, and the weights after dropout and head mask.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if mask is not None and mask.dtype != bool:
        wide = jnp.promote_types(query.dtype, jnp.float32)
        added = jnp.maximum(mask.astype(wide), jnp.finfo(wide).min)
        mask, bias = None, added if bias is None else bias + added
    scores = _scores(scale, query, key, mask, bias)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    if head_mask is not None:
        weights = weights * head_mask[None, :, None, None].astype(weights.dtype)
    changed = dropout is not None or head_mask is not None
    if not (changed or sharded) and isinstance(query, Tracer):
        # a program that does not return the weights need not compute them
        return _context(scale, query, key, value, mask, bias), weights
    return _weighted(weights, value), weights


def _scores(
    scale: float, query: Array, key: Array, mask: Array | None, bias: Array | None
) -> Array:
    wide = wide_dtype(query.dtype)
    scores = scale * jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide)
    scores = scores if bias is None else scores + bias
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(wide).min)


def _weighted(weights: Array, value: Array) -> Array:
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _context(
    scale: float, query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None
) -> Float[Array, "batch heads queries head_dim"]:
    """Returns the weighted values only, by platform-specific code; its JVP is that of `_plain`."""
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        mask,
        bias,
        cpu=functools.partial(context_on_cpu, scale),
        default=functools.partial(_plain, scale),
    )


def _plain(
    scale: float, query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None
) -> Array:
    scores = _scores(scale, query, key, mask, bias)
    return _weighted(jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)


_context.defjvp(lambda scale, at, along: jax.jvp(functools.partial(_plain, scale), at, along))
