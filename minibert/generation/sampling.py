"""Filters of sampled decoding, and the drawing of tokens.

The filters follow Hugging Face's `generation/logits_process.py`, in its order, and keep the same
tokens. Equal scores at the edge of a set that is cut by rank (`top_p`, `typical_p`, `top_h`) are
kept lowest id first; PyTorch leaves open which.

Which filters act is static (a field that is None does not); every number in them is traced.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float32, Int, Integer

# A leaf: an array, or what JAX puts in its place as it rebuilds a tree; None where inactive.
Leaf = Any
Scores = Float32[Array, "rows vocab"]
Kept = Bool[Array, "rows vocab"]
Values = Float32[Array, "rows some"]

TOP_H_CANDIDATES = 100  # the likeliest tokens, all that top-h looks at
RANKED_FIRST = 1024  # the tokens that are sorted before all are


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """The filters that act, in the order in which they do; None for one that does not.

    All numbers are arrays without axes.

    Attributes:
        temperature: scores are divided by it.
        top_h: keeps the likeliest tokens up to this share of the entropy (arXiv:2509.02510).
        top_k: keeps the k likeliest tokens, and any as likely as the last (Fan et al.,
            arXiv:1805.04833). A whole number.
        top_p_rest: drops the least likely tokens whose mass together is at most this: 1 − p,
            rounded once (Holtzman et al., arXiv:1904.09751).
        min_p: drops tokens less likely than this share of the likeliest (arXiv:2407.01082).
        typical_p: keeps the tokens of this mass whose information is nearest to the entropy
            (Meister et al., arXiv:2202.00666).
        epsilon_cutoff: drops tokens less likely than this (Hewitt et al., arXiv:2210.15191).
        eta_cutoff: drops tokens less likely than this or, where the entropy is high, than less
            (the same paper).
        min_tokens_to_keep: the likeliest tokens that none of these drops; 1, or with beams more.
            A whole number, always there.
        renormalize: whether scores are made log-probabilities at the end. Static.
    """

    temperature: Leaf = None
    top_h: Leaf = None
    top_k: Leaf = None
    top_p_rest: Leaf = None
    min_p: Leaf = None
    typical_p: Leaf = None
    epsilon_cutoff: Leaf = None
    eta_cutoff: Leaf = None
    min_tokens_to_keep: Leaf = 1
    renormalize: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, scores: Scores) -> Scores:
        """Divides by the temperature and puts −inf where a token must not be drawn."""
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
    """The likeliest tokens whose entropy terms sum to at most `share` of the entropy."""
    best, tokens = lax.top_k(scores, min(TOP_H_CANDIDATES, scores.shape[1]))
    terms = _entropy_terms(best)
    entropy = terms.sum(axis=1, keepdims=True)
    kept = jnp.isfinite(best) & (_running_sum(terms) <= entropy * share)
    return _at(tokens, kept.at[:, 0].set(True), scores)


def top_k(scores: Scores, count: Array, least: Array) -> Kept:
    """The `count` likeliest tokens, at least `least`, and any as likely as the last of them."""
    k = jnp.minimum(jnp.maximum(count, least), scores.shape[1])
    return scores >= kth_largest(scores, k)


def top_p(scores: Scores, rest: Array, least: Array) -> Kept:
    """All but the least likely tokens that together have at most the mass `rest`."""
    likely = jax.nn.softmax(scores)

    def keep(order: Array) -> Array:
        lower = jnp.put_along_axis(likely, order, 0, axis=1, inplace=False)
        ranked = jnp.take_along_axis(likely, order, axis=1)
        mass = _running_sum(ranked[:, ::-1])[:, ::-1]
        kept = mass + lower.sum(axis=1, keepdims=True) > rest
        return kept | (jnp.arange(order.shape[1]) < least)

    return _keep_ranked(scores, keep)


def min_p(scores: Scores, share: Array, least: Array) -> Kept:
    """The tokens at least `share` times as likely as the likeliest."""
    likely = jax.nn.softmax(scores)
    kept = likely >= share * likely.max(axis=1, keepdims=True)
    return kept | top_k(scores, least, least)


def typical_p(scores: Scores, mass: Array, least: Array) -> Kept:
    """The tokens whose information is nearest to the entropy, until they have `mass`."""
    likely = jax.nn.softmax(scores)
    entropy = _entropy_terms(scores).sum(axis=1, keepdims=True)
    distance = jnp.abs(-jax.nn.log_softmax(scores) - entropy)

    def keep(order: Array) -> Array:
        before = _running_sum(jnp.take_along_axis(likely, order, axis=1)) < mass
        last = jnp.minimum(before.sum(axis=1, keepdims=True), order.shape[1] - 1)
        ranked = jnp.take_along_axis(distance, order, axis=1)
        farthest = jnp.take_along_axis(ranked, last, axis=1)
        return (ranked <= farthest) | (jnp.arange(order.shape[1]) < least)

    return _keep_ranked(-distance, keep)


def epsilon(scores: Scores, cutoff: Array, least: Array) -> Kept:
    """The tokens at least as likely as `cutoff`."""
    return (jax.nn.softmax(scores) >= cutoff) | top_k(scores, least, least)


def eta(scores: Scores, cutoff: Array, least: Array) -> Kept:
    """The tokens at least as likely as `cutoff`, or as √cutoff · exp(−entropy) if that is less."""
    entropy = _entropy_terms(scores).sum(axis=1, keepdims=True)
    return epsilon(scores, jnp.minimum(cutoff, jnp.sqrt(cutoff) * jnp.exp(-entropy)), least)


# By field of `Sampling`, in its order; each is given scores, its number, and how many to keep.
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
    """The k-th largest score of each row, equal ones counted apart; `k` is from 1 to vocab.

    Found bit by bit, by counting. A sort of a large vocabulary takes several times as long, and
    `lax.top_k` needs a static k.
    """
    bits = lax.bitcast_convert_type(scores, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    keys = jnp.where(bits < sign, bits | sign, ~bits)  # unsigned numbers, in the floats' order

    def set_bit(index: Array, found: Array) -> Array:
        higher = found | (sign >> jnp.asarray(index, jnp.uint32))
        return jnp.where(jnp.sum(keys >= higher, axis=1, keepdims=True) >= k, higher, found)

    found = lax.fori_loop(0, 32, set_bit, jnp.zeros_like(keys[:, :1]))
    bits = jnp.where(found < sign, ~found, found ^ sign)
    return lax.bitcast_convert_type(bits, jnp.float32)


def row_keys(key: Array, rows: int) -> Array:
    """A key for each row, which depends on `key` and the row's number only."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def draw(scores: Scores, keys: Array) -> Int[Array, " rows"]:
    """Draws a token for each row, with probabilities softmax(scores).

    Args:
        scores: log-probabilities up to a constant of each row. A row of −inf gives token 0
            (`decoding.faults` finds such rows).
        keys: one for each row, typed or raw.
    """
    return jax.vmap(jax.random.categorical)(keys, scores)


def draw_distinct(scores: Scores, keys: Array, count: int) -> Integer[Array, "rows {count}"]:
    """Draws `count` different tokens for each row, one after the other without replacement.

    Adding Gumbel noise and taking the largest does that (Kool et al., arXiv:1903.06059). Where
    fewer tokens are possible, impossible ones follow them.

    Returns:
        The tokens in the order in which they were drawn.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:], scores.dtype))(keys)
    return lax.top_k(scores + noise, count)[1]


def _keep_ranked(
    values: Scores, keep: Callable[[Integer[Array, "rows some"]], Bool[Array, "rows some"]]
) -> Kept:
    """What `keep` says of the tokens in descending order of `values`, from the first on.

    As sorting a large vocabulary takes longer than all else, `keep` is first asked about a part of
    it, and about all only where the last of that part is kept.
    """

    def ask(count: int) -> tuple[Array, Array]:
        order = lax.top_k(values, count)[1]
        kept = keep(order)
        return _at(order, kept, values), kept[:, -1:]

    vocabulary = values.shape[1]
    few, more = ask(min(RANKED_FIRST, vocabulary))
    if vocabulary <= RANKED_FIRST:
        return few
    # By rows, so that how a row's mass is rounded does not depend on its neighbours.
    return lax.cond(more.any(), lambda: jnp.where(more, ask(vocabulary)[0], few), lambda: few)


def _at(
    tokens: Integer[Array, "rows some"], kept: Bool[Array, "rows some"], scores: Scores
) -> Kept:
    """`kept` at the places of `tokens`, elsewhere False."""
    nowhere = jnp.zeros(scores.shape, bool)
    return jnp.put_along_axis(nowhere, tokens, kept, axis=1, inplace=False)


def _entropy_terms(scores: Values) -> Values:
    """Each token's part of the entropy, −p · log p."""
    logarithms = jax.nn.log_softmax(scores)
    return jnp.where(jnp.isfinite(logarithms), -jnp.exp(logarithms) * logarithms, 0)


def _running_sum(values: Values) -> Values:
    """Cumulative sums along a row, rounded once, as PyTorch's on a CPU are.

    Each is kept as two numbers, the second what the first has lost to rounding (Knuth's TwoSum).
    Every turn adds what stands 1, 2, 4, … places before (Hillis and Steele, 1986).
    """
    places = jnp.arange(values.shape[1])

    def add(level: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        shift = 1 << level
        before = [jnp.where(places >= shift, jnp.roll(part, shift, axis=1), 0) for part in sums]
        total = sums[0] + before[0]
        taken = total - sums[0]
        lost = (sums[0] - (total - taken)) + (before[0] - taken)
        return total, lost + sums[1] + before[1]

    levels = (values.shape[1] - 1).bit_length()
    total, lost = lax.fori_loop(0, levels, add, (values, jnp.zeros_like(values)))
    return total + lost
