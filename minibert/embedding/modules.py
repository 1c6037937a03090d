"""The modules that turn hidden states into a text's vector: a Pooling, and others around it.

They are those of sentence-transformers (Reimers & Gurevych, arXiv:1908.10084). `SentenceModel` is a
transformer followed by a chain of them. Those before the Pooling change the vectors of tokens,
those after it the vector of the text; `Dropout` is that of `nn.layers`.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Integer

from minibert.core.checks import check_choice, flag, whole
from minibert.errors import InputError, shown
from minibert.models.base import PretrainedModel
from minibert.nn import layers as nn_layers
from minibert.nn.activations import ACTIVATIONS, TORCH_ONLY
from minibert.nn.activations import activation as activation_module
from minibert.nn.layers import SHAPES_ONLY, Dropout, Linear, Module, constant
from minibert.nn.numerics import common_dtype, unit, widen
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
        self.modes, self.include_prompt = modes, flag("include_prompt", include_prompt)
        self.in_features = whole("in_features", in_features, 1)
        self.out_features = len(modes) * self.in_features
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
        activation: a name of `ACTIVATIONS` or `TORCH_ONLY`, or `prelu`; `linear` for none.
        use_residual: whether to add the input to the output; if the widths differ, after a linear
            layer of its own without a bias.
        rngs: random keys for new weights; None builds shapes only, for a loader to fill.
        dtype: the dtype of computation; None for the parameters' dtype.
        param_dtype: the dtype of parameters.
    """

    tensor_prefix: ClassVar[str] = ""

    in_features: int
    out_features: int
    use_bias: bool
    use_residual: bool

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        activation: str = "tanh",
        use_residual: bool = False,
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if activation not in (*ACTIVATIONS, *TORCH_ONLY, "prelu"):
            raise InputError(
                "activation: expected a name of ACTIVATIONS or TORCH_ONLY, or 'prelu'; found "
                f"{shown(activation)}"
            )
        self.in_features = whole("in_features", in_features, 1)
        self.out_features = whole("out_features", out_features, 1)
        self.use_bias = flag("bias", bias)
        self.use_residual = flag("use_residual", use_residual)

        def linear(use_bias: bool) -> Linear:
            return Linear(
                in_features,
                out_features,
                use_bias=use_bias,
                stddev=in_features**-0.5,
                rngs=rngs,
                dtype=dtype,
                param_dtype=param_dtype,
            )

        self.linear: Linear = linear(bias)
        self.activation_function: Module = activation_module(
            activation, rngs=rngs, param_dtype=param_dtype
        )
        if use_residual and in_features != out_features:
            self.residual: Linear = linear(False)

    def __call__(self, vectors: Float[Array, "*batch features"]) -> Float[Array, "*batch outputs"]:
        """Applies the layer to each vector."""
        outputs = self.activation_function(self.linear(vectors))
        if not self.use_residual:
            return outputs
        same = self.in_features == self.out_features
        return outputs + (vectors if same else self.residual(vectors)).astype(outputs.dtype)


class Normalize(Module):
    """Divides each vector by its length."""

    printed: str | None = ""

    def __call__(self, vectors: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        """Returns vectors of length 1; a vector of zeros stays zero. See `numerics.unit`."""
        return unit(widen(vectors)).astype(vectors.dtype)


class LayerNorm(Module):
    """A layer normalisation of texts' vectors, with PyTorch's epsilon.

    Args:
        in_features: the width of the vectors.
        rngs: any random keys for new weights, which are constants; None builds shapes only.
        dtype: the dtype of computation; None for the parameters' dtype.
        param_dtype: the dtype of parameters.
    """

    tensor_prefix: ClassVar[str] = ""

    in_features: int

    def __init__(
        self,
        in_features: int,
        *,
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.in_features = whole("in_features", in_features, 1)
        self.norm: nn_layers.LayerNorm = nn_layers.LayerNorm(
            in_features, epsilon=1e-5, rngs=rngs, dtype=dtype, param_dtype=param_dtype
        )

    def __call__(self, vectors: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
        """Normalises each vector."""
        return self.norm(vectors)


class WeightedLayerPooling(Module):
    """The mean of hidden states with a learned weight for each of the last layers.

    Args:
        in_features: the width of a hidden state.
        num_hidden_layers: the transformer's number of layers.
        layer_start: the first hidden state to include; 0 is that of the embeddings.
        rngs: any random keys for new weights, which are 1; None builds shapes only.
        param_dtype: the dtype of the weights.
    """

    tensor_prefix: ClassVar[str] = ""

    in_features: int
    num_hidden_layers: int
    layer_start: int
    printed: str | None

    def __init__(
        self,
        in_features: int,
        num_hidden_layers: int = 12,
        layer_start: int = 4,
        *,
        rngs: nnx.Rngs | None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        self.in_features = whole("in_features", in_features, 1)
        self.num_hidden_layers = whole("num_hidden_layers", num_hidden_layers, 1)
        self.layer_start = whole("layer_start", layer_start, 0, num_hidden_layers)
        self.printed = f"layers {layer_start} to {num_hidden_layers}"
        key, count = (rngs or SHAPES_ONLY).params(), num_hidden_layers + 1 - layer_start
        self.layer_weights: nnx.Param[Any] = nnx.Param(constant(1.0)(key, (count,), param_dtype))

    def __call__(self, states: Sequence[Array]) -> Float[Array, "batch seq hidden"]:
        """Returns the vectors of tokens, in the dtype of the hidden states."""
        chosen = [widen(state) for state in states[self.layer_start :]]
        weights = self.layer_weights[...]
        dtype = common_dtype(chosen[0].dtype, weights.dtype)
        weights = weights.astype(dtype)
        pairs = zip(weights, chosen, strict=True)
        summed = sum(weight * state.astype(dtype) for weight, state in pairs)
        return (summed / weights.sum()).astype(states[-1].dtype)


BEFORE = (WeightedLayerPooling, Dense, Normalize)  # the modules that may stand before the Pooling
AFTER = (Dense, LayerNorm, Dropout, Normalize)


def names_of(kinds: Sequence[type]) -> str:
    """Returns the names of classes, for messages."""
    return ", ".join(kind.__name__ for kind in kinds)


class SentenceModel(Module):
    """A transformer, followed by the modules that compute a text's vector.

    Args:
        transformer: a bare model, such as a `BertModel`.
        modules: one `Pooling`, in order with any number of other modules: before it those of
            `BEFORE`, of which `WeightedLayerPooling` can only be the first, and after it `AFTER`.
        layers: the hidden states from which token vectors are computed, a name of `pooling.LAYERS`;
            `last` with a `WeightedLayerPooling`.

    Attributes:
        config: the transformer's config.
        out_features: the width of a text's vector.

    Raises:
        InputError: if the modules do not fit each other.
    """

    config: Any
    transformer: PretrainedModel
    layers: str
    pooling_place: int

    def __init__(
        self, transformer: PretrainedModel, modules: Sequence[Module], layers: str = "last"
    ):
        check_choice("layers", layers, LAYERS)
        names = [type(module).__name__ for module in modules]
        poolings = [place for place, module in enumerate(modules) if isinstance(module, Pooling)]
        if len(poolings) != 1:
            found = ", ".join(names) or "nothing"
            raise InputError(f"modules: expected one Pooling, found {found}")
        self.pooling_place = poolings[0]
        features = token_features(transformer.config, layers)
        for place, (name, module) in enumerate(zip(names, modules, strict=True)):
            before = place < self.pooling_place
            if place != self.pooling_place and not isinstance(module, BEFORE if before else AFTER):
                side, kinds = ("before", BEFORE) if before else ("after", AFTER)
                raise InputError(
                    f"modules: expected only {names_of(kinds)} {side} the Pooling, found {name}"
                )
            if isinstance(module, WeightedLayerPooling):
                _check_layers(module, place, transformer.config, layers)
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
        """Returns the vectors of tokens, of which the Pooling makes one."""
        last = self.layers == "last" and not isinstance(self.chain[0], WeightedLayerPooling)
        run = self.transformer(
            input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            output_hidden_states=not last,
        )
        return self.combined([run.last_hidden_state] if last else run.hidden_states)

    def combined(self, states: Sequence[Array]) -> Float[Array, "batch seq hidden"]:
        """Returns the vectors of tokens, given hidden states of which the last is used at least."""
        modules = list(self.chain)[: self.pooling_place]
        combine: Callable[[Sequence[Array]], Array] = LAYERS[self.layers]
        if modules and isinstance(modules[0], WeightedLayerPooling):
            combine = modules.pop(0)
        vectors = combine(states)
        for module in modules:
            vectors = module(vectors)
        return vectors

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
        pooling, *others = list(self.chain)[self.pooling_place :]
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


def _check_layers(module: WeightedLayerPooling, place: int, config: Any, layers: str) -> None:
    if place or layers != "last":
        raise InputError(
            "WeightedLayerPooling: expected as the first module, with layers='last'; found as "
            f"module {place}, with layers={layers!r}"
        )
    count = len(config.layer_paths)
    if module.num_hidden_layers != count:
        raise InputError(
            f"WeightedLayerPooling: expected num_hidden_layers={count}, the transformer's; found "
            f"{module.num_hidden_layers}"
        )


def token_features(config: Any, layers: str) -> int:
    """Returns the width of a token's vector."""
    return config.hidden_size * (4 if layers == "last_four_concatenated" else 1)
