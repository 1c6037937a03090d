"""Sampling filters, and the sampling of tokens.

The filters follow Hugging Face's `generation/logits_process.py`, in its order, and keep the same
tokens. Ties at the boundary of a set selected by rank (`top_p`, `typical_p`, `top_h`) are resolved
by lowest id first; PyTorch does not specify the order.

Which filters are active is static (a field that is None is inactive); every number is traced.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float32, Int, Integer

from minibert.core.checks import undeleted
from minibert.errors import InputError, shown

# A leaf: an array, or the object that JAX puts in its place in a tree; None where inactive.
TreeLeaf = Any
Scores = Float32[Array, "rows vocab"]
Kept = Bool[Array, "rows vocab"]
Values = Float32[Array, "rows some"]

TOP_H_CANDIDATES = 100  # number of most probable tokens that top-h considers
RANKED_FIRST = 1024  # number of tokens that are sorted first; the rest only if needed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling filters, in the order of their application; an inactive one is None.

    All numbers are scalar arrays.

    Attributes:
        temperature: scores are divided by it.
        top_h: keeps the most probable tokens up to this fraction of the entropy
            (arXiv:2509.02510).
        top_k: keeps the k most probable tokens, and ties with the last of them (Fan et al.,
            arXiv:1805.04833). An integer.
        top_p_rest: drops the least probable tokens with a total probability of at most this:
            1 − p, rounded once (Holtzman et al., arXiv:1904.09751).
        min_p: drops tokens less probable than this fraction of the maximum (arXiv:2407.01082).
        typical_p: keeps tokens whose information is closest to the entropy, up to this total
            probability (Meister et al., arXiv:2202.00666).
        epsilon_cutoff: drops tokens less probable than this (Hewitt et al., arXiv:2210.15191).
        eta_cutoff: drops tokens less probable than this, or than a smaller value where the entropy
            is high (same paper).
        min_tokens_to_keep: number of most probable tokens that no filter drops: 1, or more with
            beams. An integer, never None.
        renormalize: whether to convert the result to log-probabilities. Static.
    """

    temperature: TreeLeaf = None
    top_h: TreeLeaf = None
    top_k: TreeLeaf = None
    top_p_rest: TreeLeaf = None
    min_p: TreeLeaf = None
    typical_p: TreeLeaf = None
    epsilon_cutoff: TreeLeaf = None
    eta_cutoff: TreeLeaf = None
    min_tokens_to_keep: TreeLeaf = 1
    renormalize: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, scores: Scores) -> Scores:
        """Divides scores by the temperature and sets those of dropped tokens to −inf."""
        if self.temperature is not None:
            # Without the barrier XLA multiplies by the inverse, which rounds twice.
            divisor = jnp.broadcast_to(self.temperature, scores.shape)
            scores = scores / lax.optimization_barrier(divisor)
        for name, keep in FILTERS.items():
            number = getattr(self, name)
            if number is not None:
                scores = jnp.where(keep(scores, number, self.min_tokens_to_keep), scores, -jnp.inf)
        return jax.nn.log_softmax(scores) if self.renormalize else scores


def top_h(scores: Scores, share: Array, _: Array) -> Kept:
    """Keeps the most probable tokens whose entropy terms sum to at most `share` of the entropy."""
    best, tokens = lax.top_k(scores, min(TOP_H_CANDIDATES, scores.shape[1]))
    terms = _entropy_terms(best)
    entropy = terms.sum(axis=1, keepdims=True)
    kept = jnp.isfinite(best) & (_running_sum(terms) <= entropy * share)
    return _at(tokens, kept.at[:, 0].set(True), scores)


def top_k(scores: Scores, count: Array, least: Array) -> Kept:
    """Keeps the `count` most probable tokens, at least `least`, and ties with the last of them."""
    k = jnp.minimum(jnp.maximum(count, least), scores.shape[1])
    return scores >= kth_largest(scores, k)


def top_p(scores: Scores, rest: Array, least: Array) -> Kept:
    """Drops the least probable tokens with a total probability of at most `rest`."""
    likely = jax.nn.softmax(scores)

    def keep(order: Array) -> Array:
        lower = jnp.put_along_axis(likely, order, 0, axis=1, inplace=False)
        ranked = jnp.take_along_axis(likely, order, axis=1)
        mass = _running_sum(ranked[:, ::-1])[:, ::-1]
        kept = mass + lower.sum(axis=1, keepdims=True) > rest
        return kept | _first(order, least)

    return _keep_ranked(scores, keep)


def min_p(scores: Scores, share: Array, least: Array) -> Kept:
    """Keeps the tokens whose probability is at least `share` of the maximum."""
    likely = jax.nn.softmax(scores)
    kept = likely >= share * likely.max(axis=1, keepdims=True)
    return kept | top_k(scores, least, least)


def typical_p(scores: Scores, mass: Array, least: Array) -> Kept:
    """Keeps the tokens whose information is closest to the entropy, until they reach `mass`."""
    likely = jax.nn.softmax(scores)
    entropy = _entropy_terms(scores).sum(axis=1, keepdims=True)
    distance = jnp.abs(-jax.nn.log_softmax(scores) - entropy)

    def keep(order: Array) -> Array:
        before = _running_sum(jnp.take_along_axis(likely, order, axis=1)) < mass
        last = jnp.minimum(before.sum(axis=1, keepdims=True), order.shape[1] - 1)
        ranked = jnp.take_along_axis(distance, order, axis=1)
        farthest = jnp.take_along_axis(ranked, last, axis=1)
        return (ranked <= farthest) | _first(order, least)

    return _keep_ranked(-distance, keep)


def epsilon(scores: Scores, cutoff: Array, least: Array) -> Kept:
    """Keeps the tokens whose probability is at least `cutoff`."""
    return (jax.nn.softmax(scores) >= cutoff) | top_k(scores, least, least)


def eta(scores: Scores, cutoff: Array, least: Array) -> Kept:
    """Keeps the tokens whose probability is at least min(cutoff, √cutoff · exp(−entropy))."""
    entropy = _entropy_terms(scores).sum(axis=1, keepdims=True)
    return epsilon(scores, jnp.minimum(cutoff, jnp.sqrt(cutoff) * jnp.exp(-entropy)), least)


# By field of `Sampling`, in its order; arguments: scores, the field's number, how many to keep.
FILTERS: Mapping[str, Callable[[Scores, Any, Any], Kept]] = {
    "top_h": top_h,
    "top_k": top_k,
    "top_p_rest": top_p,
    "min_p": min_p,
    "typical_p": typical_p,
    "epsilon_cutoff": epsilon,
    "eta_cutoff": eta,
}


def kth_largest(scores: Scores, k: Array) -> Float32[Array, "rows 1"]:
    """Returns the k-th largest score of each row, with ties counted separately; 1 ≤ k ≤ vocab.

    The score is found bit by bit, by counting: sorting a large vocabulary takes several times as
    long, and `lax.top_k` requires a static k.
    """
    bits = lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    keys = jnp.where(bits < sign, bits | sign, ~bits)  # unsigned numbers, in the floats' order

    def set_bit(index: Array, found: Array) -> Array:
        higher = found | (sign >> jnp.asarray(index, jnp.uint32))
        count = jnp.sum(keys >= higher, axis=1, keepdims=True, dtype=k.dtype)
        return jnp.where(count >= k, higher, found)

    found = lax.fori_loop(0, 32, set_bit, jnp.zeros_like(keys[:, :1]))
    bits = jnp.where(found < sign, ~found, found ^ sign)
    return lax.bitcast_convert_type(bits, jnp.float32)


def checked_key(key: object) -> Any:
    """Returns a random key, typed or raw, unchanged.

    Raises:
        InputError: if it is not one key: None, a seed, several keys, or raw bits of a wrong length.
    """
    known = isinstance(key, jax.Array | np.ndarray)
    typed = known and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0
    raw = known and key.dtype == np.uint32 and key.shape == _raw_key().shape
    if not typed and not raw:
        found = "nothing" if key is None else shown(type(key).__name__)
        if known:
            found = f"{key.dtype} of shape {key.shape}"
        raise InputError(
            f"key: sampling needs a random key: expected key=jax.random.key(0), found {found}"
        ).advising("key=jax.random.key(0)")
    return undeleted("key", key) if isinstance(key, jax.Array) else key


def _raw_key() -> jax.ShapeDtypeStruct:
    """Returns the shape of the bits of a key of JAX's default kind."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))


def row_keys(key: Array, rows: int) -> Array:
    """Returns a key for each row that depends only on `key` and the row's index."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def draw(scores: Scores, keys: Array) -> Int[Array, " rows"]:
    """Samples a token for each row, with probabilities softmax(scores).

    Args:
        scores: unnormalised log-probabilities. A row of −inf returns token 0 (`decoding.faults`
            detects such rows).
        keys: one for each row, typed or raw.
    """
    return jax.vmap(jax.random.categorical)(keys, scores)


def draw_distinct(scores: Scores, keys: Array, count: int) -> Integer[Array, "rows {count}"]:
    """Samples `count` different tokens for each row, without replacement.

    The tokens are the top k after adding Gumbel noise (Kool et al., arXiv:1903.06059). Where fewer
    tokens are possible, impossible ones follow them.

    Returns:
        The tokens in the order in which they were sampled.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:], scores.dtype))(keys)
    return lax.top_k(scores + noise, count)[1]


def _keep_ranked(
    values: Scores, keep: Callable[[Integer[Array, "rows some"]], Bool[Array, "rows some"]]
) -> Kept:
    """Returns which tokens `keep` selects, given the tokens in descending order of `values`.

    Sorting a large vocabulary dominates the cost. Therefore `keep` first receives only the top
    `RANKED_FIRST` tokens, and all tokens only where the last of those is kept.
    """

    def ask(count: int) -> tuple[Array, Array]:
        order = lax.top_k(values, count)[1]
        kept = keep(order)
        return _at(order, kept, values), kept[:, -1:]

    vocabulary = values.shape[1]
    few, more = ask(min(RANKED_FIRST, vocabulary))
    if vocabulary <= RANKED_FIRST:
        return few
    # By row, so that the rounding of a row's sums does not depend on other rows.
    return lax.cond(more.any(), lambda: jnp.where(more, ask(vocabulary)[0], few), lambda: few)


def _first(
    order: Integer[Array, "rows some"], count: int | np.integer | Integer[Array, ""]
) -> Bool[Array, "1 some"]:
    """Returns True for the first `count` columns."""
    return jnp.arange(order.shape[1], dtype=jnp.int32)[None] < count


def _at(
    tokens: Integer[Array, "rows some"], kept: Bool[Array, "rows some"], scores: Scores
) -> Kept:
    """Returns `kept` at the positions of `tokens`, and False elsewhere."""
    nowhere = jnp.zeros(scores.shape, bool)
    return jnp.put_along_axis(nowhere, tokens, kept, axis=1, inplace=False)


def _entropy_terms(scores: Values) -> Values:
    """Returns each token's contribution to the entropy, −p · log p."""
    logarithms = jax.nn.log_softmax(scores)
    return jnp.where(jnp.isfinite(logarithms), -jnp.exp(logarithms) * logarithms, 0)


def _running_sum(values: Values) -> Values:
    """Returns cumulative sums along each row, rounded once, as PyTorch's on a CPU are.

    Each sum is a pair of numbers, the second of which is the rounding error of the first (Knuth's
    TwoSum). Each iteration adds the sums 1, 2, 4, … positions before (Hillis and Steele, 1986).
    """
    positions = jnp.arange(values.shape[1])

    def add(level: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        shift = 1 << level
        there = (positions >= shift)[None]
        before = [jnp.where(there, jnp.roll(part, shift, axis=1), 0) for part in sums]
        total = sums[0] + before[0]
        taken = total - sums[0]
        lost = (sums[0] - (total - taken)) + (before[0] - taken)
        return total, lost + sums[1] + before[1]

    levels = (values.shape[1] - 1).bit_length()
    total, lost = lax.fori_loop(0, levels, add, (values, jnp.zeros_like(values)))
    return total + lost
