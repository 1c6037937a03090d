"""A minimal language model and a minimal agent: embeddings, layers of attention, a head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from minibert.core.checks import indices, whole
from minibert.core.types import ArrayLike
from minibert.errors import InputError, shown
from minibert.models.outputs import CausalLMOutputWithCrossAttentions, SequenceClassifierOutput
from minibert.nn.layers import Embed, Linear, Module
from minibert.nn.pooling import mean
from minibert.scratch.parts import Tokens, attention, causal_mask, projection


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig:
    """The shape of a `ToyCausalLM`.

    Attributes:
        vocab_size: the number of tokens in the vocabulary.
        hidden_size: the number of features of a token.
        num_hidden_layers: the number of layers of attention.
        positions: the number of positions that have an embedding; 0 for none: then the model
            ignores the order of tokens, except for its causal mask.
        causal: whether a token attends only to itself and to earlier ones.
        num_labels: the number of actions of `ToyAgent`.
    """

    vocab_size: int
    hidden_size: int = 64
    num_hidden_layers: int = 2
    positions: int = 0
    causal: bool = True
    num_labels: int = 4
    problem_type: str = "single_label_classification"


class ToyLayer(Module):
    """A minimal transformer layer: self-attention without projections, and a linear layer."""

    def __init__(self, config: ToyConfig, **options: Any):
        self.causal: bool = config.causal
        self.linear: Linear = projection(
            config.hidden_size, config.hidden_size, bias=True, **options
        )

    def __call__(self, x: Tokens, words: Array | None = None) -> Tokens:
        """Returns new hidden states; `words` `(batch, tokens)` is a mask, 0 at padding."""
        mask = causal_mask(x.shape[-2]) if self.causal else None
        if words is not None:
            real = jnp.asarray(words).astype(bool)[:, None, :]
            mask = real if mask is None else mask[None] & real
        return self.linear(attention(x, x, x, scale=x.shape[-1] ** -0.5, mask=mask).context)


class ToyBody(Module):
    """Embeddings and layers, shared by the language model and the agent."""

    def __init__(self, config: ToyConfig, **options: Any):
        self.config = config
        self.embedding: Embed = Embed(config.vocab_size, config.hidden_size, stddev=1.0, **options)
        if config.positions:
            self.positions: Embed = Embed(
                config.positions, config.hidden_size, stddev=1.0, **options
            )
        self.layers: nnx.List[ToyLayer] = nnx.List(
            ToyLayer(config, **options) for _ in range(config.num_hidden_layers)
        )

    def __call__(
        self, input_ids: ArrayLike, attention_mask: Any = None
    ) -> Float[Array, "batch tokens hidden"]:
        """Returns hidden states of ids `(batch, tokens)`, which may be padded on the right."""
        limit = self.config.positions
        x = self.embedding(indices("input_ids", input_ids, self.config.vocab_size, "vocab_size"))
        if limit and x.shape[1] > limit:
            raise InputError(f"input_ids: {x.shape[1]} tokens; expected 1 to {limit} (positions)")
        if isinstance(attention_mask, np.ndarray) and not attention_mask[:, :1].all():
            raise InputError("attention_mask: expected padding on the right only")
        if limit:
            x = x + self.positions(jnp.arange(x.shape[1]))[None]
        for layer in self.layers:
            x = layer(x, attention_mask)
        return x


class ToyCausalLM(Module):
    """A language model: embeddings, layers of attention, and a score for each token.

    `Trainer` trains it with `causal_lm` or, if it is not causal, with `continuation`.

    Args:
        config: the shape.
        rngs: random keys to initialise the parameters.
        param_dtype: the dtype of the parameters.
    """

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs, param_dtype: DTypeLike = jnp.float32):
        options: dict[str, Any] = {"rngs": rngs, "dtype": None, "param_dtype": param_dtype}
        self.config = config
        self.body: ToyBody = ToyBody(config, **options)
        self.vocabulary: Linear = projection(
            config.hidden_size, config.vocab_size, bias=True, **options
        )

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> CausalLMOutputWithCrossAttentions:
        """Returns `logits` `(batch, tokens, vocab)` of ids `(batch, tokens)`."""
        logits = self.vocabulary(self.body(input_ids, attention_mask))
        return CausalLMOutputWithCrossAttentions(logits=logits)


class ToyAgent(Module):
    """The body of a language model with a head that scores actions for a whole text.

    Args:
        config: the shape, which must be that of `body` if it is passed.
        body: the body of a trained `ToyCausalLM`; None for a newly initialised one.
        rngs: random keys to initialise the parameters.
        param_dtype: the dtype of the parameters.
    """

    def __init__(
        self,
        config: ToyConfig,
        *,
        body: ToyBody | None = None,
        rngs: nnx.Rngs,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if body is not None and body.config != config:
            raise InputError(
                f"config: expected the config of body, {body.config}, found {shown(config)}"
            )
        options: dict[str, Any] = {"rngs": rngs, "dtype": None, "param_dtype": param_dtype}
        self.config = config
        self.body: ToyBody = ToyBody(config, **options) if body is None else body
        self.actions: Linear = projection(
            config.hidden_size, config.num_labels, bias=True, **options
        )

    def __call__(
        self,
        input_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> SequenceClassifierOutput:
        """Returns `logits` `(batch, actions)`, scores of the mean of a text's hidden states."""
        states = self.body(input_ids, attention_mask)
        mask = jnp.ones(states.shape[:2], bool) if attention_mask is None else attention_mask
        pooled = mean(states, jnp.asarray(mask).astype(bool))
        return SequenceClassifierOutput(logits=self.actions(pooled))


def continued(model: ToyCausalLM, input_ids: ArrayLike, count: int, *, window: int) -> np.ndarray:
    """Returns token ids followed by `count` tokens, each the most probable next one.

    Args:
        model: a causal language model.
        input_ids: `(tokens,)`.
        count: the number of tokens to append.
        window: the number of last tokens that the model is given, at most its `positions`.
    """
    tokens = np.asarray(input_ids)
    if tokens.ndim != 1 or not tokens.size:
        raise InputError(f"input_ids: expected shape (tokens,), found {tokens.shape}")
    size = whole("window", window, 1, model.config.positions or None)
    for _ in range(whole("count", count, 0)):
        part = tokens[-size:]
        ids = np.zeros((1, size), tokens.dtype)  # one length, one program; the mask hides the rest
        ids[0, : len(part)] = part
        tokens = np.append(tokens, np.asarray(_next_token(model, ids, len(part) - 1), tokens.dtype))
    return tokens


@jax.jit
def _next_token(model: ToyCausalLM, ids: Array, last: Array) -> Array:
    return model(ids).logits[0, last].argmax()
