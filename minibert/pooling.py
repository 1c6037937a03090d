"""From the vectors of tokens to the vector of a text.

The six poolings are sentence-transformers' (`Pooling`; Reimers & Gurevych, arXiv:1908.10084), safe
under left and right padding; the choices of layers are those of Devlin et al., arXiv:1810.04805,
table 7. The axes are those of `attention.py`.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

Tokens = Float[Array, "batch seq hidden"]
Mask = Bool[Array, "batch seq"]
Pooled = Float[Array, "batch hidden"]


def cls(tokens: Tokens, mask: Mask) -> Pooled:
    """The first token that is not padding."""
    return _at(tokens, jnp.argmax(mask, axis=1))


def lasttoken(tokens: Tokens, mask: Mask) -> Pooled:
    """The last token that is not padding."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return _at(tokens, last)


def maximum(tokens: Tokens, mask: Mask) -> Pooled:
    """The largest number of every feature."""
    return jnp.where(mask[:, :, None], tokens, -jnp.inf).max(axis=1)


def mean(tokens: Tokens, mask: Mask) -> Pooled:
    """The mean of every feature."""
    return _sum(tokens, mask) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1e-9)


def mean_sqrt_len_tokens(tokens: Tokens, mask: Mask) -> Pooled:
    """The sum of every feature over the square root of the number of tokens."""
    return _sum(tokens, mask) / jnp.sqrt(jnp.maximum(mask.sum(axis=1, keepdims=True), 1e-9))


def weightedmean(tokens: Tokens, mask: Mask) -> Pooled:
    """The mean of every feature, tokens weighted 1, 2, 3, … (Muennighoff, arXiv:2202.08904).

    Positions are counted from the first column, padding included, as sentence-transformers does.
    """
    weights = (mask * jnp.arange(1, mask.shape[1] + 1)).astype(tokens.dtype)
    summed = jnp.einsum("bs,bsd->bd", weights, jnp.where(mask[:, :, None], tokens, 0))
    return summed / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-9)


# In sentence-transformers' order, in which several are concatenated.
POOLINGS: dict[str, Callable[[Tokens, Mask], Pooled]] = {
    "cls": cls,
    "max": maximum,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len_tokens,
    "weightedmean": weightedmean,
    "lasttoken": lasttoken,
}


def last_layer(states: Sequence[Tokens]) -> Tokens:
    """The last hidden state."""
    return states[-1]


def mean_of_last_four(states: Sequence[Tokens]) -> Tokens:
    """The mean of the last four hidden states."""
    return sum_of_last_four(states) / 4


def sum_of_last_four(states: Sequence[Tokens]) -> Tokens:
    """The sum of the last four hidden states."""
    return jnp.sum(jnp.stack(list(states[-4:])), axis=0)


def last_four_concatenated(states: Sequence[Tokens]) -> Float[Array, "batch seq four_hidden"]:
    """The last four hidden states side by side, in their order."""
    return jnp.concatenate(list(states[-4:]), axis=-1)


LAYERS: dict[str, Callable[[Sequence[Tokens]], Tokens]] = {
    "last": last_layer,
    "mean_of_last_four": mean_of_last_four,
    "sum_of_last_four": sum_of_last_four,
    "last_four_concatenated": last_four_concatenated,
}


def _at(tokens: Tokens, index: Array) -> Pooled:
    return jnp.take_along_axis(tokens, index[:, None, None], axis=1)[:, 0]


def _sum(tokens: Tokens, mask: Mask) -> Pooled:
    # where, and not a product: what padding holds may be infinite
    return jnp.where(mask[:, :, None], tokens, 0).sum(axis=1)
