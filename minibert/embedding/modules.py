"""The modules that turn token vectors into a text's vector: Pooling, Dense and Normalize.

They are those of sentence-transformers (Reimers & Gurevych, arXiv:1908.10084). `SentenceModel` is a
transformer followed by a chain of them.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Integer

from minibert.core.checks import check_choice
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.nn.activations import ACTIVATIONS, Activation
from minibert.nn.layers import Linear, Module
from minibert.nn.numerics import unit, widen
from minibert.nn.pooling import LAYERS, POOLINGS, pool
from minibert.text.batching import own_text, slots_of


def pooling_modes(name: str, pooling: object) -> tuple[str, ...]:
    """Returns the argument `name`, one or more names of `POOLINGS`, as a tuple.

    Raises:
        InputError: if there is no name, or one that is not in `POOLINGS`.
    """
    modes = (pooling,) if isinstance(pooling, str) else pooling
    listed = isinstance(modes, list | tuple) and all(mode in tuple(POOLINGS) for mode in modes)
    if not listed or not modes:
        raise InputError(
            f"{name}: expected one or more of {', '.join(POOLINGS)}; found {shown(pooling)}"
        )
    return tuple(modes)


class Pooling(Module):
    """Pools the vectors of a text's tokens to one vector.

    Args:
        modes: names of `pooling.POOLINGS`; the vectors of several are concatenated.
        in_features: the width of a token's vector.
        include_prompt: whether to pool a prompt's tokens too.
    """

    modes: tuple[str, ...]
    include_prompt: bool
    in_features: int
    out_features: int

    def __init__(self, modes: str | Sequence[str], in_features: int, include_prompt: bool = True):
        modes = pooling_modes("pooling", modes)
        self.modes, self.include_prompt = modes, include_prompt
        self.in_features, self.out_features = in_features, len(modes) * in_features
        self.printed: str | None = ", ".join(
            [*modes, *([] if include_prompt else ["include_prompt=False"])]
        )

    def __call__(
        self,
        tokens: Float[Array, "batch seq hidden"],
        mask: Bool[Array, "batch seq"],
        prompt_length: int | Integer[Array, ""] = 0,
    ) -> Float[Array, "batch pooled"]:
        """Pools the tokens where the mask is True."""
        return pool(tokens, mask, self.modes, 0 if self.include_prompt else prompt_length)


class Dense(Module):
    """A linear layer with an activation.

    Args:
        in_features, out_features: the input and output widths.
        bias: whether to add a bias.
        activation: a name of `ACTIVATIONS`; `linear` for none.
        rngs: random keys for new weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computation; None for the parameters' dtype.
        param_dtype: the dtype of parameters.
    """

    tensor_prefix: ClassVar[str] = ""

    in_features: int
    out_features: int
    use_bias: bool

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "tanh",
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if activation not in tuple(ACTIVATIONS):
            raise InputError(f"activation: expected a name of ACTIVATIONS, found {activation!r}")
        self.in_features, self.out_features, self.use_bias = in_features, out_features, bias
        self.linear: Linear = Linear(
            in_features,
            out_features,
            use_bias=bias,
            stddev=in_features**-0.5,
            rngs=rngs,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        self.activation_function: Activation = Activation(activation)

    def __call__(self, vectors: Float[Array, "batch features"]) -> Float[Array, "batch outputs"]:
        """Applies the layer to each vector."""
        return self.activation_function(self.linear(vectors))


class Normalize(Module):
    """Divides each vector by its length."""

    printed: str | None = ""

    def __call__(self, vectors: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        """Returns vectors of length 1; a vector of zeros stays zero. See `numerics.unit`."""
        return unit(widen(vectors)).astype(vectors.dtype)


class SentenceModel(Module):
    """A transformer, followed by the modules that compute a text's vector.

    Args:
        transformer: a bare model, such as a `BertModel`.
        modules: a `Pooling`, then any number of `Dense` and `Normalize`, in order.
        layers: the hidden states from which token vectors are computed, a name of `pooling.LAYERS`.

    Attributes:
        config: the transformer's config.
        out_features: the width of a text's vector.

    Raises:
        InputError: if the modules do not fit each other.
    """

    config: Any
    transformer: PretrainedModel
    layers: str

    def __init__(
        self, transformer: PretrainedModel, modules: Sequence[Module], layers: str = "last"
    ):
        check_choice("layers", layers, LAYERS)
        features = token_features(transformer.config, layers)
        names = [type(module).__name__ for module in modules]
        if not modules or not isinstance(modules[0], Pooling):
            raise InputError(
                f"modules: expected a Pooling first, found {', '.join(names) or 'nothing'}"
            )
        for name, module in zip(names, modules, strict=True):
            if module is not modules[0] and not isinstance(module, Dense | Normalize):
                raise InputError(
                    f"modules: expected only Dense and Normalize after the Pooling, found {name}"
                )
            taken = getattr(module, "in_features", features)
            if taken != features:
                raise InputError(f"{name}: expected in_features={features}, found {taken}")
            features = getattr(module, "out_features", features)
        self.out_features = features
        self.config, self.transformer, self.layers = transformer.config, transformer, layers
        self.chain: nnx.List[Module] = nnx.List(modules)

    def tokens(
        self, input_ids: Array, mask: Array, position_ids: Array | None = None
    ) -> Float[Array, "batch seq hidden"]:
        """Returns the vectors of tokens."""
        last = self.layers == "last"
        run = self.transformer(
            input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            output_hidden_states=not last,
        )
        return run.last_hidden_state if last else LAYERS[self.layers](run.hidden_states)

    def __call__(
        self, input_ids: Array, mask: Array, prompt_length: int | Array = 0
    ) -> tuple[Array, Array]:
        """Returns token vectors `(batch, seq, hidden)` and text vectors `(batch, features)`.

        Args:
            input_ids: `(batch, seq)`.
            mask: `(batch, seq)` booleans, False for padding.
            prompt_length: the number of prompt tokens at the start of each text.
        """
        tokens = self.tokens(input_ids, mask)
        return tokens, self.pooled(tokens, mask, prompt_length)

    def pooled(
        self, tokens: Array, mask: Array, prompt_length: int | Array = 0
    ) -> Float[Array, "batch features"]:
        """Returns the vectors of texts, given their tokens' vectors."""
        pooling, *others = self.chain
        vectors = pooling(tokens, mask, prompt_length)
        for module in others:
            vectors = module(vectors)
        return vectors

    def packed(
        self, input_ids: Array, segments: Array, prompt_length: int | Array = 0
    ) -> Float[Array, "batch slots features"]:
        """Returns the vectors of texts that share rows; see `text.batching`."""
        # own_text must be causal for a decoder, which uses a mask of queries and keys as it is
        positions = self.transformer.positions(input_ids, segments=segments)
        tokens = self.tokens(input_ids, own_text(segments, self.config.causal), positions)
        slots = jnp.arange(1, 1 + slots_of(segments.shape[1]), dtype=segments.dtype)
        of_slots = jax.lax.map(
            lambda slot: self.pooled(tokens, segments == slot, prompt_length), slots
        )
        return of_slots.swapaxes(0, 1)


def token_features(config: Any, layers: str) -> int:
    """Returns the width of a token's vector."""
    return config.hidden_size * (4 if layers == "last_four_concatenated" else 1)
