"""A language model at its barest, and an agent: embeddings, layers of attention, a head."""

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
        vocab_size: how many words there are.
        hidden_size: features of a token.
        num_hidden_layers: how many layers of attention there are.
        positions: how many places have a vector of their own; 0 for none: then the order of words
            is unknown to the model.
        causal: whether a token sees none behind it.
        num_labels: how many actions `ToyAgent` has.
    """

    vocab_size: int
    hidden_size: int = 64
    num_hidden_layers: int = 2
    positions: int = 0
    causal: bool = True
    num_labels: int = 4
    problem_type: str = "single_label_classification"


class ToyLayer(Module):
    """A transformer at its barest: attention of the states over themselves, and a linear layer."""

    def __init__(self, config: ToyConfig, **options: Any):
        self.causal: bool = config.causal
        self.linear: Linear = projection(
            config.hidden_size, config.hidden_size, bias=True, **options
        )

    def __call__(self, x: Tokens, words: Array | None = None) -> Tokens:
        """New states for old ones; `words` `(batch, tokens)` is 0 where there is padding."""
        mask = causal_mask(x.shape[-2]) if self.causal else None
        if words is not None:
            real = jnp.asarray(words).astype(bool)[:, None, :]
            mask = real if mask is None else mask & real
        return self.linear(attention(x, x, x, scale=x.shape[-1] ** -0.5, mask=mask).context)


class ToyBody(Module):
    """Embeddings and layers: what a language model and an agent have in common."""

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
        """The states `(batch, tokens, hidden)` of ids `(batch, tokens)`, padded on the right."""
        places = self.config.positions
        x = self.embedding(indices("input_ids", input_ids, self.config.vocab_size, "vocab_size"))
        if places and x.shape[1] > places:
            raise InputError(f"input_ids: {x.shape[1]} tokens; expected 1 to {places} (positions)")
        if isinstance(attention_mask, np.ndarray) and not attention_mask[:, :1].all():
            raise InputError("attention_mask: expected padding on the right alone")
        if places:
            x = x + self.positions(jnp.arange(x.shape[1]))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return x


class ToyCausalLM(Module):
    """Words → embeddings → layers of attention → a score for every word.

    A `Trainer` trains it, with `causal_lm` or, if it is not causal, with `continuation`.

    Args:
        config: the shape.
        rngs: random keys for the weights.
        param_dtype: what they are stored in.
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
        """The scores `logits` `(batch, tokens, words)` of ids `(batch, tokens)`."""
        logits = self.vocabulary(self.body(input_ids, attention_mask))
        return CausalLMOutputWithCrossAttentions(logits=logits)


class ToyAgent(Module):
    """The same body with a head of actions in place of the vocabulary: one for a whole text.

    Args:
        config: the shape; of a trained body, the body's.
        body: a trained `ToyCausalLM`'s; None to begin afresh.
        rngs: random keys for the weights.
        param_dtype: what they are stored in.
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
            raise InputError(f"config: expected the body's, {body.config}; found {shown(config)}")
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
        """The scores `logits` `(batch, actions)`, of the mean of a text's states."""
        states = self.body(input_ids, attention_mask)
        words = jnp.ones(states.shape[:2], bool) if attention_mask is None else attention_mask
        pooled = mean(states, jnp.asarray(words).astype(bool))
        return SequenceClassifierOutput(logits=self.actions(pooled))


def continued(model: ToyCausalLM, input_ids: ArrayLike, count: int, *, window: int) -> np.ndarray:
    """The words `(tokens,)` with the likeliest next word behind them, `count` times over.

    Args:
        model: a causal one.
        input_ids: `(tokens,)`.
        count: how many words are added.
        window: how many words the model sees at once, the last ones; no more than it has places.
    """
    words = np.asarray(input_ids)
    if words.ndim != 1 or not words.size:
        raise InputError(f"input_ids: expected (tokens,), found shape {words.shape}")
    seen = whole("window", window, 1, model.config.positions or None)
    for _ in range(whole("count", count, 0)):
        part = words[-seen:]
        ids = np.zeros((1, seen), words.dtype)  # one length, one program; what is behind is unseen
        ids[0, : len(part)] = part
        words = np.append(words, np.asarray(_next_word(model, ids, len(part) - 1), words.dtype))
    return words


@jax.jit
def _next_word(model: ToyCausalLM, ids: Array, last: Array) -> Array:
    return model(ids).logits[0, last].argmax()
