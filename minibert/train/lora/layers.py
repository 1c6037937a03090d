"""Layers with an adapter beside them, whose outputs are the layer's plus those of the adapter.

They are used where a kernel with an added update is not the same: with dropout of an adapter's
inputs, for an embedding matrix that is also the output matrix, and in models whose adapters are not
merged.
"""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from minibert.core.types import AnyArray, Rngs
from minibert.nn.layers import AnyModule, Dropout, Embed, Linear
from minibert.nn.numerics import common_dtype
from minibert.nn.tree import submodules

Factors = Mapping[str, Array]
MAGNITUDES = "lora_magnitude_vector"


def updated_kernel(
    kernel: Float[Array, "features *outputs"], factors: Factors, scaling: float
) -> Float[Array, "features *outputs"]:
    """Returns a kernel to which the product of an adapter's factors is added.

    With magnitudes (DoRA, arXiv:2402.09353) each output's column then gets its own norm. As in the
    paper, norms are constants in the backward pass.

    Args:
        kernel: the kernel, or an embedding matrix, `(vocabulary, features)`.
        factors: `lora_A` `(features, r)` and `lora_B` `(r, outputs)`, or those of an embedding
            matrix, and `lora_magnitude_vector` `(outputs,)`, if there are any.
        scaling: the factor of the product.
    """
    before, after = (factors[name] for name in pair(factors))
    after = after.reshape(len(after), *kernel.shape[1:])  # a sharded kernel may be 3-D
    # on a TPU, the default precision of products is lower
    product = jnp.tensordot(before, after, 1, precision=jax.lax.Precision.HIGHEST)
    added = jnp.asarray(scaling, product.dtype) * product
    dtype = common_dtype(kernel.dtype, added.dtype)
    whole = kernel.astype(dtype) + added.astype(dtype)
    if MAGNITUDES not in factors:
        return whole
    norms = jax.lax.stop_gradient(jnp.sqrt(jnp.sum(whole * whole, axis=0)))
    return (factors[MAGNITUDES].reshape(norms.shape) / norms)[None] * whole


def pair(factors: Factors) -> tuple[str, str]:
    """Returns the names of the two factors."""
    kind = "lora_embedding" if "lora_embedding_A" in factors else "lora"
    return f"{kind}_A", f"{kind}_B"


class AdaptedLinear(Linear):
    """A linear layer with an adapter.

    Args:
        layer: the layer, whose arrays are shared.
        factors: the adapter's arrays: those of `updated_kernel`, and `lora_bias` `(outputs,)`, if
            there is one.
        scaling: the factor of the adapter's outputs.
        rate: the dropout rate of the adapter's inputs in training mode.
    """

    def __init__(self, layer: Linear, factors: Factors, scaling: float, rate: float):
        super().__init__(
            layer.in_features,
            layer.out_features,
            use_bias=layer.bias is not None,
            stddev=0.0,
            rngs=None,
            dtype=layer.dtype,
            param_dtype=layer.param_dtype,
        )
        self.kernel, self.bias, self.sharded = layer.kernel, layer.bias, layer.sharded
        self.names: tuple[str, ...] = _with_factors(self, factors)
        self.scaling, self.lora_dropout, self.key = scaling, Dropout(rate), nnx.data(None)

    def __call__(
        self,
        inputs: Float[Array, "*batch features"],
        out_sharding: jax.sharding.Sharding | None = None,
    ) -> Float[Array, "..."]:
        """Returns the layer's outputs plus those of the adapter."""
        result = super().__call__(inputs, out_sharding)
        factors = _factors(self)
        given = inputs.astype(factors["lora_A"].dtype)
        given = self.lora_dropout(given, None if self.key is None else nnx.Rngs(dropout=self.key))
        if MAGNITUDES in factors:
            kernel = self.kernel[...].astype(given.dtype)
            change = updated_kernel(kernel, factors, self.scaling) - kernel
            update = jnp.tensordot(given, change.reshape(len(change), -1), 1)
        else:
            update = given @ factors["lora_A"] @ factors["lora_B"]
            if "lora_bias" in factors:
                update = update + factors["lora_bias"]
            update = jnp.asarray(self.scaling, update.dtype) * update
        return (result + update.reshape(result.shape)).astype(result.dtype)


class AdaptedEmbed(Embed):
    """An embedding matrix with an adapter, which only lookups use.

    Args:
        layer: the layer, whose array is shared.
        factors: the adapter's arrays: those of `updated_kernel`.
        scaling: the factor of the adapter's outputs.
    """

    def __init__(self, layer: Embed, factors: Factors, scaling: float):
        super().__init__(
            layer.num_embeddings,
            layer.features,
            padding_idx=layer.padding_idx,
            stddev=0.0,
            rngs=None,
            dtype=layer.dtype,
            param_dtype=layer.param_dtype,
        )
        self.embedding = layer.embedding
        self.names: tuple[str, ...] = _with_factors(self, factors)
        self.scaling = scaling

    def __call__(
        self, inputs: AnyArray, out_sharding: jax.sharding.Sharding | None = None
    ) -> Array:
        """Looks up rows of the matrix plus the product of the adapter's factors."""
        result = super().__call__(inputs, out_sharding)
        factors = _factors(self)
        if MAGNITUDES in factors:
            matrix = self.embedding[...].astype(factors["lora_embedding_A"].dtype)
            found = self.lookup(updated_kernel(matrix, factors, self.scaling), inputs)
            return found.astype(result.dtype)
        update = self.lookup(factors["lora_embedding_A"], inputs) @ factors["lora_embedding_B"]
        return (result + jnp.asarray(self.scaling, update.dtype) * update).astype(result.dtype)


def with_keys(model: AnyModule, rngs: Rngs) -> AnyModule:
    """Returns a model whose adapters drop their inputs with keys of their own, for one call."""
    layers = [(path, m) for path, m in submodules(model) if isinstance(m, AdaptedLinear)]
    if rngs is None or not any(layer.lora_dropout.drops for _, layer in layers):
        return model
    key = rngs.dropout()
    copy = jax.tree.map(lambda leaf: leaf, model)
    for path, layer in submodules(copy):
        if isinstance(layer, AdaptedLinear):
            layer.key = nnx.data(jax.random.fold_in(key, zlib.crc32(path.encode())))
    return copy


def _with_factors(layer: nnx.Module, factors: Factors) -> tuple[str, ...]:
    for name, array in factors.items():
        setattr(layer, name, nnx.Param(array))
    return tuple(factors)


def _factors(layer: AdaptedLinear | AdaptedEmbed) -> dict[str, Array]:
    return {name: getattr(layer, name)[...] for name in layer.names}
