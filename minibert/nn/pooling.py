"""Pooling of token vectors to the vector of a text.

The six modes are those of sentence-transformers (`Pooling`; Reimers & Gurevych, arXiv:1908.10084)
and support left and right padding; the choices of layers are those of Devlin et al.,
arXiv:1810.04805, table 7. The axes are those of `attention.py`. A text without tokens pools to
zeros.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Integer

from minibert.errors import InputError
from minibert.nn.numerics import widen

Tokens = Float[Array, "batch seq hidden"]
Mask = Bool[Array, "batch seq"]
Pooled = Float[Array, "batch hidden"]


def cls(tokens: Tokens, mask: Mask) -> Pooled:
    """Returns the first token that is not padding."""
    return _at(tokens, mask, jnp.argmax(mask, axis=1))


def lasttoken(tokens: Tokens, mask: Mask) -> Pooled:
    """Returns the last token that is not padding."""
    return _at(tokens, mask, _last(mask))


def maximum(tokens: Tokens, mask: Mask) -> Pooled:
    """Returns the max of each feature; its gradient goes to the first token that attains it."""
    largest = _largest(jnp.where(mask[:, :, None], tokens, -jnp.inf))
    return jnp.where(mask.any(axis=1, keepdims=True), largest, 0)


def mean(tokens: Tokens, mask: Mask) -> Pooled:
    """Returns the mean of each feature."""
    return _over(_sum(tokens, mask), _count(mask), tokens)


def mean_sqrt_len_tokens(tokens: Tokens, mask: Mask) -> Pooled:
    """Returns the sum of each feature divided by the square root of the number of tokens."""
    return _over(_sum(tokens, mask), jnp.sqrt(_count(mask)), tokens)


def weightedmean(
    tokens: Tokens, mask: Mask, numbers: Integer[Array, "batch seq"] | None = None
) -> Pooled:
    """Returns the mean of each feature with weights 1, 2, 3, … of the tokens (arXiv:2202.08904).

    Args:
        tokens: the vectors.
        mask: True for the tokens to include.
        numbers: the weights; by default counted from the first token included.
    """
    weights = jnp.where(mask, positions(mask) + 1 if numbers is None else numbers, 0)
    wide = widen(tokens)
    summed = jnp.einsum("bs,bsh->bh", weights.astype(wide.dtype), _where(mask, wide))
    return _over(summed, jnp.maximum(weights.sum(axis=1, keepdims=True), 1), tokens)


# In the order in which sentence-transformers' older schema concatenates them.
POOLINGS: dict[str, Callable[[Tokens, Mask], Pooled]] = {
    "cls": cls,
    "max": maximum,
    "mean": mean,
    "mean_sqrt_len_tokens": mean_sqrt_len_tokens,
    "weightedmean": weightedmean,
    "lasttoken": lasttoken,
}


def pool(
    tokens: Tokens,
    mask: Mask,
    modes: Sequence[str],
    prompt_length: int | Integer[Array, ""] = 0,
) -> Float[Array, "batch pooled"]:
    """Concatenates several poolings of the tokens after a prompt.

    Args:
        tokens: the vectors.
        mask: True for a token, False for padding.
        modes: names of `POOLINGS`.
        prompt_length: the number of tokens to exclude at the start of each text.
    """
    position = positions(mask)
    kept = mask & (position >= jnp.asarray(prompt_length, position.dtype))
    vectors = [
        weightedmean(tokens, kept, position + 1)  # tokens of the prompt count in the weights
        if mode == "weightedmean"
        else POOLINGS[mode](tokens, kept)
        for mode in modes
    ]
    return jnp.concatenate(vectors, axis=-1)


def positions(mask: Mask) -> Integer[Array, "batch seq"]:
    """Returns the position of each token in its text, from 0; padding before it is negative."""
    return jnp.arange(mask.shape[1])[None] - jnp.argmax(mask, axis=1)[:, None]


def token(tokens: Tokens, mask: Mask, index: int) -> Pooled:
    """Returns a token of each text: 0 the first, -1 the last; NaN if a text has no such token."""
    position = jnp.argmax(mask, axis=1) + index if index >= 0 else _last(mask) + 1 + index
    inside = (position >= 0) & (position < mask.shape[1])
    position = jnp.where(inside, position, 0)
    exists = inside & jnp.take_along_axis(mask, position[:, None], axis=1)[:, 0]
    return jnp.where(exists[:, None], _at(tokens, mask, position), jnp.nan)


def last_layer(states: Sequence[Tokens]) -> Tokens:
    """Returns the last hidden state."""
    return states[-1]


def mean_of_last_four(states: Sequence[Tokens]) -> Tokens:
    """Returns the mean of the last four hidden states."""
    return sum_of_last_four(states) / 4


def sum_of_last_four(states: Sequence[Tokens]) -> Tokens:
    """Returns the sum of the last four hidden states."""
    return jnp.sum(jnp.stack(_last_four(states)), axis=0)


def last_four_concatenated(states: Sequence[Tokens]) -> Float[Array, "batch seq four_hidden"]:
    """Concatenates the last four hidden states, in their order."""
    return jnp.concatenate(_last_four(states), axis=-1)


LAYERS: dict[str, Callable[[Sequence[Tokens]], Tokens]] = {
    "last": last_layer,
    "mean_of_last_four": mean_of_last_four,
    "sum_of_last_four": sum_of_last_four,
    "last_four_concatenated": last_four_concatenated,
}


def _last_four(states: Sequence[Tokens]) -> list[Tokens]:
    if len(states) < 4:
        raise InputError(f"hidden_states: expected at least 4, found {len(states)}")
    return list(states[-4:])


@jax.custom_jvp
def _largest(tokens: Tokens) -> Pooled:
    return tokens.max(axis=1)


@_largest.defjvp
def _largest_jvp(primals: tuple[Tokens], tangents: tuple[Tokens]) -> tuple[Pooled, Pooled]:
    # JAX's rule searches for elements equal to the maximum. A compiled program may compute the two
    # sides of that equality separately, with different last bits, and find none.
    (tokens,), (along,) = primals, tangents
    index = jnp.argmax(tokens, axis=1)[:, None]
    return _largest(tokens), jnp.take_along_axis(along, index, axis=1)[:, 0]


def _last(mask: Mask) -> Integer[Array, " batch"]:
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)


def _at(tokens: Tokens, mask: Mask, position: Array) -> Pooled:
    found = jnp.take_along_axis(tokens, position[:, None, None], axis=1)[:, 0]
    return jnp.where(mask.any(axis=1, keepdims=True), found, 0)


def _sum(tokens: Tokens, mask: Mask) -> Pooled:
    return _where(mask, widen(tokens)).sum(axis=1)


def _where(mask: Mask, tokens: Tokens) -> Tokens:
    return jnp.where(mask[:, :, None], tokens, 0)  # padding may hold NaN, and NaN × 0 is not 0


def _count(mask: Mask) -> Integer[Array, "batch 1"]:
    return jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def _over(summed: Pooled, divisor: Array, tokens: Tokens) -> Pooled:
    return (summed / divisor.astype(summed.dtype)).astype(tokens.dtype)
