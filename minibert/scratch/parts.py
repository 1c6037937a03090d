"""Attention from dot products to many heads: to be read from top to bottom, and taken apart.

Names follow Raschka's "Build a Large Language Model (From Scratch)" where it has one, so that its
numbers can be compared.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from minibert.core.checks import whole
from minibert.errors import InputError
from minibert.nn.layers import Dropout, Linear, Module

Tokens = Float[Array, "*batch tokens features"]
Context = Float[Array, "*batch tokens outputs"]


def softmax_naive(scores: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Numbers as shares of 1 along the last axis; wrong where `exp` overflows, from about 87 on."""
    return jnp.exp(scores) / jnp.exp(scores).sum(axis=-1, keepdims=True)


def softmax(scores: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """The same shares, whatever the size of the numbers: the largest is taken off first."""
    # the result does not depend on what is subtracted, and neither does its derivative
    return softmax_naive(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))


class Attended(NamedTuple):
    """What attention makes.

    Attributes:
        context: `(…, tokens, features)`, each token's weighted sum of all values.
        weights: `(…, tokens, tokens)`, how much each token (a row) looks at each (a column).
    """

    context: Array
    weights: Array


def causal_mask(tokens: int) -> Bool[Array, "tokens tokens"]:
    """True where a token (a row) may look at another: at those before it and itself."""
    return jnp.tril(jnp.ones((tokens, tokens), bool))


def attention(
    query: Float[Array, "*batch queries features"],
    key: Float[Array, "*batch keys features"],
    value: Float[Array, "*batch keys outputs"],
    *,
    scale: float = 1.0,
    mask: Bool[Array, "*#batch queries keys"] | None = None,
    dropout: Callable[[Array], Array] | None = None,
) -> Attended:
    """Dot products of queries and keys, as shares of 1, weigh the values.

    Args:
        query: `(…, queries, features)`; in self-attention queries, keys and values are the tokens'.
        key, value: `(…, keys, features)`.
        scale: what the dot products are multiplied with.
        mask: True where a token may look; None for everywhere.
        dropout: applied to the weights.
    """
    scores = query @ key.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    weights = softmax(scores)
    if dropout is not None:
        weights = dropout(weights)
    return Attended(weights @ value, weights)


def calculate_attention(embeddings: Tokens) -> Tokens:
    """Attention of embeddings over themselves: query, key and value are copies of them."""
    scale = embeddings.shape[-1] ** -0.5
    return attention(embeddings, embeddings, embeddings, scale=scale).context


def linear(x: Tokens, kernel: Array, bias: Array | None = None) -> Context:
    """Each token's features mixed anew, `x @ kernel + bias`; `kernel` is `(features, outputs)`."""
    mixed = x @ kernel
    return mixed if bias is None else mixed + bias


def relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """What is above 0; the rest is 0."""
    return jnp.where(x <= 0, 0, x)  # the derivative of `jnp.maximum(x, 0)` at 0 would be 1/2


def projection(d_in: int, d_out: int, *, bias: bool, **options: Any) -> Linear:
    """A linear layer with weights of the size that keeps the size of what goes through."""
    return Linear(d_in, d_out, use_bias=bias, stddev=d_in**-0.5, **options)


class SelfAttention(Module):
    """Attention with three learnt projections: what is asked, what answers, what is passed on."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        qkv_bias: bool = False,
        rngs: nnx.Rngs | None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        options: dict[str, Any] = {"rngs": rngs, "dtype": None, "param_dtype": param_dtype}
        self.W_query: Linear = projection(d_in, d_out, bias=qkv_bias, **options)
        self.W_key: Linear = projection(d_in, d_out, bias=qkv_bias, **options)
        self.W_value: Linear = projection(d_in, d_out, bias=qkv_bias, **options)

    def attend(
        self, x: Tokens, mask: Array | None = None, dropout: Callable[[Array], Array] | None = None
    ) -> Attended:
        """The context vectors, and the weights."""
        query, key, value = self.W_query(x), self.W_key(x), self.W_value(x)
        return attention(
            query, key, value, scale=query.shape[-1] ** -0.5, mask=mask, dropout=dropout
        )

    def __call__(self, x: Tokens) -> Context:
        """The context vectors `(…, tokens, d_out)` of tokens `(…, tokens, d_in)`."""
        return self.attend(x).context


class CausalAttention(SelfAttention):
    """Self-attention in which no token sees those behind it, with dropout of weights."""

    def __init__(self, d_in: int, d_out: int, *, dropout: float = 0.0, **options: Any):
        super().__init__(d_in, d_out, **options)
        self.dropout: Dropout = Dropout(dropout)

    def attend(
        self, x: Tokens, mask: Array | None = None, dropout: Callable[[Array], Array] | None = None
    ) -> Attended:
        """The context vectors, and the weights after dropout."""
        return super().attend(x, causal_mask(x.shape[-2]) if mask is None else mask, dropout)

    def __call__(self, x: Tokens, rngs: nnx.Rngs | None = None) -> Context:
        """The context vectors; `rngs` are for dropout, in training."""
        return self.attend(x, dropout=lambda weights: self.dropout(weights, rngs)).context


class MultiHeadAttention(CausalAttention):
    """Several causal attentions side by side, each on its part of the features; then one mixture.

    Args:
        d_in, d_out: features of the tokens and of the context vectors.
        num_heads: how many parts `d_out` is cut into.
        dropout: the share of weights that is dropped in training.
        qkv_bias: whether the projections have a bias.
        rngs: random keys for the weights.
        param_dtype: what they are stored in.

    Raises:
        InputError: `num_heads` does not divide `d_out`.
    """

    def __init__(self, d_in: int, d_out: int, *, num_heads: int, **options: Any):
        if d_out % whole("num_heads", num_heads, 1):
            raise InputError(f"num_heads: expected a divisor of {d_out}, found {num_heads}")
        super().__init__(d_in, d_out, **options)
        self.num_heads = num_heads
        self.out_proj: Linear = projection(
            d_out,
            d_out,
            bias=True,
            rngs=options["rngs"],
            dtype=None,
            param_dtype=options.get("param_dtype", jnp.float32),
        )

    def attend(
        self, x: Tokens, mask: Array | None = None, dropout: Callable[[Array], Array] | None = None
    ) -> Attended:
        """The context vectors, and the weights of every head, `(…, heads, tokens, tokens)`."""
        parts = (self._split(project(x)) for project in (self.W_query, self.W_key, self.W_value))
        query, key, value = parts
        mask = causal_mask(x.shape[-2]) if mask is None else mask
        found = attention(
            query, key, value, scale=query.shape[-1] ** -0.5, mask=mask, dropout=dropout
        )
        joined = found.context.swapaxes(-2, -3)  # (…, tokens, heads, head_dim)
        return Attended(self.out_proj(joined.reshape(*x.shape[:-1], -1)), found.weights)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1).swapaxes(-2, -3)
