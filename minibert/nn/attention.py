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

from minibert.core.checks import Size, known

# Bytes of scores on a CPU:
KERNEL_HEAD = 1 << 18  # of a head, up to which XLA computes attention in one kernel, keeping none
KERNEL_SCORES = 16 << 20  # of the heads computed at a time where it does that,
CACHED_SCORES = 4 << 20  # and where it does not: as many as the caches hold


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
    queries: Size, keys: Size, offset: int | Integer[Array, ""] = 0
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
    sharded: bool = False,
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
        sharded: whether the arrays are split over devices, so that cutting them would gather them.

    Returns:
        The weighted values, and the weights after dropout and head mask.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = _scores(scale, query, key, mask)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    if head_mask is not None:
        weights = weights * head_mask[:, None, None].astype(weights.dtype)
    changed = dropout is not None or head_mask is not None
    if not (changed or sharded) and isinstance(query, Tracer):
        # a program that does not return the weights does not compute them
        return _context(scale, query, key, value, mask), weights
    return _weighted(weights, value), weights


def _scores(scale: float | Array, query: Array, key: Array, mask: Array | None) -> Array:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = scale * jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(wide).min)


def _weighted(weights: Array, value: Array) -> Array:
    return jnp.einsum("bhqk,bhkd->bhqd", weights, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _context(
    scale: float, query: Array, key: Array, value: Array, mask: Array | None
) -> Float[Array, "batch heads queries head_dim"]:
    """The weighted values alone, in the way that suits the platform; its derivative is plain."""
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        mask,
        cpu=functools.partial(_on_cpu, scale),
        default=functools.partial(_plain, scale),
    )


def _plain(scale: float, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    scores = _scores(scale, query, key, mask)
    return _weighted(jax.nn.softmax(scores, axis=-1).astype(value.dtype), value)


_context.defjvp(lambda scale, at, along: jax.jvp(functools.partial(_plain, scale), at, along))


def _on_cpu(scale: float, query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """One division a query, not one a weight; and no more scores at a time than caches hold."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    # added as PyTorch does it: the sum is the lowest number itself, and XLA has a kernel for sums
    bias = None if mask is None else jnp.where(mask, 0, jnp.finfo(wide).min).astype(wide)

    def weighted(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
        # else XLA would spread both over all scores, once for all layers, and read that in each
        query, bias, factor = jax.lax.optimization_barrier((query, bias, jnp.asarray(scale, wide)))
        scores = _scores(factor, query, key, None)
        scores = scores if bias is None else scores + bias
        powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        summed = jnp.einsum(
            "bhqk,bhkd->bhqd", powers.astype(value.dtype), value, preferred_element_type=wide
        )
        return (summed / powers.sum(axis=-1, keepdims=True)).astype(value.dtype)

    batch, heads, queries, _ = query.shape
    if not known((batch, queries, key.shape[2])):
        return weighted(query, key, value, bias)
    rows_at_once, heads_at_once = _group(batch, heads, queries * key.shape[2] * wide.itemsize)
    if (rows_at_once, heads_at_once) == (batch, heads):
        return weighted(query, key, value, bias)
    groups_of_heads = heads // heads_at_once
    # heads last but one, as they come from the projections: XLA drops the exchange and its inverse
    query, key, value = (array.swapaxes(1, 2) for array in (query, key, value))

    def add(number: Array, context: Array) -> Array:
        row = number // groups_of_heads * rows_at_once
        head = number % groups_of_heads * heads_at_once
        start = (row, 0, head, 0)

        def cut(array: Array) -> Array:
            sizes = (rows_at_once, array.shape[1], heads_at_once, array.shape[3])
            return jax.lax.dynamic_slice(array, start, sizes).swapaxes(1, 2)

        seen = bias
        if bias is not None and bias.shape[0] > 1:
            seen = jax.lax.dynamic_slice_in_dim(bias, row, rows_at_once)
        here = weighted(cut(query), cut(key), cut(value), seen)
        return jax.lax.dynamic_update_slice(context, here.swapaxes(1, 2), start)

    groups = batch // rows_at_once * groups_of_heads
    empty = jnp.zeros((batch, queries, heads, value.shape[3]), value.dtype)
    return jax.lax.fori_loop(0, groups, add, empty).swapaxes(1, 2)


def _group(batch: int, heads: int, head_bytes: int) -> tuple[int, int]:
    """How many rows and heads are computed at a time."""
    most = KERNEL_SCORES if head_bytes <= KERNEL_HEAD else CACHED_SCORES
    if batch * heads * head_bytes <= most:
        return batch, heads
    fitting = max(1, most // head_bytes)
    heads_at_once = divisor(heads, fitting)
    return divisor(batch, fitting // heads) if heads_at_once == heads else 1, heads_at_once


def divisor(number: int, most: int) -> int:
    """The largest divisor that is at most `most`, and at least 1."""
    return next((size for size in range(min(number, most), 0, -1) if number % size == 0), 1)
