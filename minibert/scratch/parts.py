"""Attention from dot products to multiple heads, to be read from top to bottom.

Names follow Raschka's "Build a Large Language Model (From Scratch)" where possible, so that results
can be compared.
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
    """Returns the softmax over the last axis; wrong from about 87 on, where `exp` overflows."""
    return jnp.exp(scores) / jnp.exp(scores).sum(axis=-1, keepdims=True)


def softmax(scores: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Returns the softmax over the last axis; subtracts the max first to avoid overflow."""
    # neither the result nor its derivative depends on the number that is subtracted
    return softmax_naive(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))


class Attended(NamedTuple):
    """The output of attention.

    Attributes:
        context: `(…, tokens, features)`, the weighted sum of all values for each token.
        weights: `(…, tokens, tokens)`, how much each token (row) attends to each other (column).
    """

    context: Array
    weights: Array


def causal_mask(tokens: int) -> Bool[Array, "tokens tokens"]:
    """Returns True where a token (row) attends to another (column): to itself and earlier ones."""
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
    """Computes attention: the softmax of the dot products of queries and keys weights the values.

    Args:
        query: `(…, queries, features)`; in self-attention these are the tokens, as are the keys.
        key, value: `(…, keys, features)`.
        scale: the factor of the dot products.
        mask: True where a query attends to a key; None for everywhere.
        dropout: applied to the weights.
    """
    scores = query @ key.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = jnp.where(jax.lax.broadcast_to_rank(mask, scores.ndim), scores, -jnp.inf)
    weights = softmax(scores)
    if dropout is not None:
        weights = dropout(weights)
    return Attended(weights @ value, weights)


def calculate_attention(embeddings: Tokens) -> Tokens:
    """Computes self-attention of embeddings without projections: they are query, key and value."""
    scale = embeddings.shape[-1] ** -0.5
    return attention(embeddings, embeddings, embeddings, scale=scale).context


def linear(x: Tokens, kernel: Array, bias: Array | None = None) -> Context:
    """Returns `x @ kernel + bias`; `kernel` is `(features, outputs)`."""
    product = x @ kernel
    return product if bias is None else product + jax.lax.broadcast_to_rank(bias, product.ndim)


def relu(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """Returns the max of `x` and 0."""
    return jnp.where(x <= 0, 0, x)  # the derivative of `jnp.maximum(x, 0)` at 0 would be 1/2


def projection(d_in: int, d_out: int, *, bias: bool, **options: Any) -> Linear:
    """Returns a linear layer whose initial weights preserve the variance of its input."""
    return Linear(d_in, d_out, use_bias=bias, stddev=d_in**-0.5, **options)


class SelfAttention(Module):
    """Self-attention with learned projections to queries, keys and values."""

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
        """Returns the context vectors and the weights."""
        query, key, value = self.W_query(x), self.W_key(x), self.W_value(x)
        return attention(
            query, key, value, scale=query.shape[-1] ** -0.5, mask=mask, dropout=dropout
        )

    def __call__(self, x: Tokens) -> Context:
        """Returns context vectors `(…, tokens, d_out)` of tokens `(…, tokens, d_in)`."""
        return self.attend(x).context


class CausalAttention(SelfAttention):
    """Self-attention in which tokens do not attend to later ones, with dropout of the weights."""

    def __init__(self, d_in: int, d_out: int, *, dropout: float = 0.0, **options: Any):
        super().__init__(d_in, d_out, **options)
        self.dropout: Dropout = Dropout(dropout)

    def attend(
        self, x: Tokens, mask: Array | None = None, dropout: Callable[[Array], Array] | None = None
    ) -> Attended:
        """Returns the context vectors and the weights after dropout."""
        return super().attend(x, causal_mask(x.shape[-2]) if mask is None else mask, dropout)

    def __call__(self, x: Tokens, rngs: nnx.Rngs | None = None) -> Context:
        """Returns the context vectors; `rngs` are random keys for dropout in training mode."""
        return self.attend(x, dropout=lambda weights: self.dropout(weights, rngs)).context


class MultiHeadAttention(CausalAttention):
    """Causal attention with several heads, each on its part of the features, and a projection.

    Args:
        d_in, d_out: the number of features of the tokens and of the context vectors.
        num_heads: the number of parts into which `d_out` is split.
        dropout: the fraction of weights that is dropped in training.
        qkv_bias: whether the projections have a bias.
        rngs: random keys to initialise the parameters.
        param_dtype: the dtype of the parameters.

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
        """Returns the context vectors and the weights `(…, heads, tokens, tokens)`."""
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
