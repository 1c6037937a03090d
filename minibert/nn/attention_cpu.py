"""Attention on a CPU, in the form for which XLA's CPU compiler generates the fastest code.

The arguments and the axes are those of `attention.attend`.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from minibert.core.checks import known
from minibert.nn.numerics import wide_dtype

# Bytes of scores on a CPU:
KERNEL_HEAD = 1 << 18  # per head, up to which XLA fuses attention into a kernel that stores none
KERNEL_SCORES = 16 << 20  # of all heads computed at a time with that kernel,
CACHED_SCORES = 4 << 20  # and without it: as many as fit into the caches


def context_on_cpu(
    scale: float, query: Array, key: Array, value: Array, mask: Array | None, bias: Array | None
) -> Float[Array, "batch heads queries head_dim"]:
    """Computes attention with one division per query and scores that fit into the caches."""
    wide = wide_dtype(query.dtype)
    if mask is not None:
        # added as in PyTorch: the sum is the lowest number itself, and XLA has a kernel for it
        bias = jnp.where(mask, 0 if bias is None else bias, jnp.finfo(wide).min).astype(wide)

    def weighted(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
        # else XLA broadcasts both to the shape of the scores once and reads that in every layer
        query, bias, factor = jax.lax.optimization_barrier((query, bias, jnp.asarray(scale, wide)))
        scores = factor * jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=wide)
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
    # heads last but one, as in the projections: XLA removes this transpose and its inverse
    query, key, value = (array.swapaxes(1, 2) for array in (query, key, value))

    def add(number: Array, context: Array) -> Array:
        row = number // groups_of_heads * rows_at_once
        head = number % groups_of_heads * heads_at_once
        start = (row, 0, head, 0)

        def cut(array: Array) -> Array:
            sizes = (rows_at_once, array.shape[1], heads_at_once, array.shape[3])
            return jax.lax.dynamic_slice(array, start, sizes).swapaxes(1, 2)

        seen = bias
        for axis, begin, size in ((0, row, rows_at_once), (1, head, heads_at_once)):
            if seen is not None and seen.shape[axis] > 1:
                seen = jax.lax.dynamic_slice_in_dim(seen, begin, size, axis)
        here = weighted(cut(query), cut(key), cut(value), seen)
        return jax.lax.dynamic_update_slice(context, here.swapaxes(1, 2), start)

    groups = batch // rows_at_once * groups_of_heads
    empty = jnp.zeros((batch, queries, heads, value.shape[3]), value.dtype)
    return jax.lax.fori_loop(0, groups, add, empty).swapaxes(1, 2)


def _group(batch: int, heads: int, head_bytes: int) -> tuple[int, int]:
    """Returns the number of rows and of heads to compute at a time."""
    most = KERNEL_SCORES if head_bytes <= KERNEL_HEAD else CACHED_SCORES
    if batch * heads * head_bytes <= most:
        return batch, heads
    fitting = max(1, most // head_bytes)
    heads_at_once = divisor(heads, fitting)
    return divisor(batch, fitting // heads) if heads_at_once == heads else 1, heads_at_once


def divisor(number: int, most: int) -> int:
    """Returns the largest divisor of `number` that is at most `most`, and at least 1."""
    return next((size for size in range(min(number, most), 0, -1) if number % size == 0), 1)
