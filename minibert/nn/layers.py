"""The layers of which the models are built.

`Embed`, `Linear` and `LayerNorm` are Flax NNX's layers with every default that matters to exactness
written out. Constructors take `rngs=None` to build a tree of shapes (`jax.ShapeDtypeStruct`)
instead of random weights, which `from_pretrained` then fills.
"""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from minibert.core.checks import as_array
from minibert.core.fields import PROBABILITY
from minibert.core.types import AnyArray, Rngs
from minibert.errors import InputError, shown
from minibert.nn.numerics import wide_dtype
from minibert.nn.tree import module_repr

SHAPES_ONLY: Any = SimpleNamespace(params=lambda: None)


def normal(stddev: float) -> Callable[..., Any]:
    """Returns an initializer: normal with mean 0; without a key it returns only the shape."""
    return functools.partial(
        _initialize, lambda key, shape, dtype: stddev * jax.random.normal(key, shape, dtype)
    )


def constant(value: float) -> Callable[..., Any]:
    """Returns an initializer: a constant; without a key it returns only the shape."""
    return functools.partial(_initialize, lambda key, shape, dtype: jnp.full(shape, value, dtype))


def _initialize(
    draw: Callable[..., Array], key: Array | None, shape: tuple[int, ...], dtype: DTypeLike
) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype) if key is None else draw(key, shape, dtype)


AnyModule = TypeVar("AnyModule", bound="Module")


class Module(nnx.Module):
    """An `nnx.Module` that prints like PyTorch's, and whose `train()` and `eval()` return it."""

    printed: str | None = None  # the arguments to show on a leaf module's line of the printed tree

    def train(self: AnyModule, **attributes: bool) -> AnyModule:
        """Switches dropout on, in place, and returns the module."""
        super().train(**attributes)
        return self

    def eval(self: AnyModule, **attributes: bool) -> AnyModule:
        """Switches dropout off, in place, and returns the module."""
        super().eval(**attributes)
        return self

    if not TYPE_CHECKING:  # a type checker would accept the assignment of any attribute

        def __setattr__(self, name: str, value: object) -> None:
            if isinstance(getattr(type(self), name, None), property):
                object.__setattr__(self, name, value)  # nnx would make it part of the tree
            else:
                super().__setattr__(name, value)

    def __repr__(self) -> str:
        return module_repr(self)

    def __str__(self) -> str:
        return module_repr(self)


class Embed(nnx.Embed):
    """An embedding matrix whose lookup never returns a wrong row.

    An index out of range yields NaN (`nnx.Embed` wraps −1 to the last row and 64-bit indices to the
    first ones, and ignores the index if there is one row). The row `padding_idx` receives no
    gradient from a lookup, as in `torch.nn.Embedding`.
    """

    def __init__(
        self,
        num_embeddings: int,
        features: int,
        *,
        padding_idx: int | None = None,
        stddev: float,
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
    ):
        super().__init__(
            num_embeddings,
            features,
            embedding_init=normal(stddev),
            rngs=rngs or SHAPES_ONLY,
            param_dtype=param_dtype,
        )
        self.dtype = dtype  # nnx.Embed would fix the current dtype of the matrix
        self.padding_idx = padding_idx
        if rngs is not None and padding_idx is not None:
            self.embedding[...] = self.embedding[...].at[padding_idx].set(0)

    def __call__(
        self, inputs: AnyArray, out_sharding: jax.sharding.Sharding | None = None
    ) -> Array:
        """Looks up rows: `(…)` integers to `(…, features)`, NaN where an index is out of range.

        Raises:
            InputError: the indices are not integers.
        """
        matrix = self.embedding[...].astype(self.dtype or self.embedding[...].dtype)
        return self.lookup(matrix, inputs, out_sharding)

    def lookup(
        self,
        matrix: Float[Array, "rows columns"],
        inputs: AnyArray,
        out_sharding: Any = None,
    ) -> Array:
        """Looks up rows of a given matrix, as of the embedding matrix."""
        if not isinstance(inputs, jax.Array):
            inputs = as_array("indices", inputs)  # at full width, before JAX narrows it
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise InputError(f"indices: expected integers, found {inputs.dtype}")
        if inputs.dtype.itemsize < 4:  # too narrow to hold the number of rows
            inputs = inputs.astype(jnp.int32)
        valid = (inputs >= 0) & (inputs < self.num_embeddings)
        rows = jnp.where(valid, inputs, self.num_embeddings).astype(jnp.uint32)
        found = matrix.at[rows].get(mode="fill", fill_value=jnp.nan, out_sharding=out_sharding)
        if self.padding_idx is None:
            return found
        padding = (inputs == self.padding_idx)[..., None]
        return jnp.where(padding, jax.lax.stop_gradient(found), found)


class Linear(nnx.Linear):
    """An `nnx.Linear` that rounds once: it adds the bias in float32 or wider, as PyTorch does.

    Attributes:
        sharded: whether the computation is distributed over devices; then batch and sequence, which
            may be split over different mesh axes, are not merged.
    """

    kernel: Any
    bias: Any
    sharded: bool = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        stddev: float,
        use_bias: bool = True,
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
    ):
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=normal(stddev),
            bias_init=constant(0.0),
            rngs=rngs or SHAPES_ONLY,
            dtype=dtype,
            param_dtype=param_dtype,
        )

    def __call__(
        self,
        inputs: Float[Array, "*batch features"],
        out_sharding: jax.sharding.Sharding | None = None,
    ) -> Float[Array, "..."]:
        """Multiplies by the kernel and adds the bias."""
        bias = None if self.bias is None else self.bias[...]
        return self.project(inputs, self.kernel[...], bias, out_sharding)

    def project(
        self,
        inputs: Float[Array, "*batch features"],
        kernel: Float[Array, "features *outputs"],
        bias: Float[Array, "*outputs"] | None,
        out_sharding: jax.sharding.Sharding | None = None,
    ) -> Float[Array, "..."]:
        """Multiplies by a given kernel and adds a given bias, in the dtype of this layer."""
        with jax.numpy_dtype_promotion("standard"):  # NNX asks for the dtype of different ones
            inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        wide = wide_dtype(inputs.dtype)
        # one row dimension: with two, XLA copies the operands of the kernel's gradient on a CPU
        rows = inputs
        if not self.sharded and out_sharding is None:
            rows = inputs.reshape(-1, inputs.shape[-1])
        product = self.dot_general(
            rows,
            kernel,
            (((rows.ndim - 1,), (0,)), ((), ())),
            precision=self.precision,
            preferred_element_type=wide,
            out_sharding=out_sharding,
        )
        product = product.reshape(*inputs.shape[:-1], *kernel.shape[1:])
        if bias is not None:
            product = product + jax.lax.broadcast_to_rank(bias.astype(wide), product.ndim)
        return product.astype(inputs.dtype)


class Conv1D(Linear):
    """A linear layer whose kernel GPT-2's checkpoints store as (in, out)."""


class TiedLinear(Linear):
    """A linear layer whose kernel or bias may be tied to another module's; then its own is None.

    Args:
        tied: whether to make it without a kernel, and without a bias.
        own_bias: whether it has its own bias even if it is tied.
    """

    kernel: Any
    bias: Any

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        tied: bool,
        rngs: Rngs,
        own_bias: bool = False,
        **options: Any,
    ):
        super().__init__(in_features, out_features, rngs=None if tied else rngs, **options)
        if tied:
            self.kernel = self.bias = nnx.data(None)
        if tied and own_bias:
            key = (rngs or SHAPES_ONLY).params()
            self.bias = nnx.Param(constant(0.0)(key, (out_features,), options["param_dtype"]))

    def __call__(  # ty: ignore[incompatible-method-override]
        self,
        inputs: Float[Array, "*batch features"],
        table: Float[Array, "outputs features"],
        bias: Float[Array, " outputs"] | None = None,
    ) -> Float[Array, "*batch outputs"]:
        """Projects with its own kernel and bias, or with `table` transposed and `bias` if tied."""
        kernel = table.T if self.kernel is None else self.kernel[...]
        return self.project(inputs, kernel, bias if self.bias is None else self.bias[...])


class LayerNorm(nnx.LayerNorm):
    """An `nnx.LayerNorm` with an exact variance and statistics in float32 or wider."""

    def __init__(
        self,
        num_features: int,
        *,
        epsilon: float,
        rngs: nnx.Rngs | None,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
    ):
        super().__init__(
            num_features,
            epsilon=epsilon,
            use_fast_variance=False,
            scale_init=constant(1.0),
            bias_init=constant(0.0),
            rngs=rngs or SHAPES_ONLY,
            dtype=dtype,
            param_dtype=param_dtype,
        )

    def __call__(self, x: Float[Array, "*batch features"], **options: Any) -> Array:
        """Normalises the last axis."""
        with jax.numpy_dtype_promotion("standard"):  # NNX widens half precision implicitly
            return super().__call__(x, **options)


class Dropout(Module):
    """Inverted dropout without random state: the keys are arguments of the call."""

    def __init__(self, rate: float):
        self.rate: float = PROBABILITY.check("rate", rate, InputError)
        self.printed: str | None = f"{rate:g}"
        self.deterministic = False

    @property
    def drops(self) -> bool:
        """Whether a call changes anything."""
        return not self.deterministic and self.rate != 0

    def with_keys(self, rngs: Rngs) -> Callable[[Array], Array] | None:
        """Returns the dropout as a function of an array only; None if it drops nothing."""
        return functools.partial(self, rngs=rngs) if self.drops else None

    def __call__(self, x: Array, rngs: Rngs = None) -> Array:
        """Drops each element with probability `rate` in training mode.

        Raises:
            InputError: in training mode, with a positive rate, without `nnx.Rngs`.
        """
        if not self.drops:
            return x
        if not (isinstance(rngs, nnx.Rngs) and ("dropout" in rngs or "default" in rngs)):
            raise InputError(
                "rngs: expected random keys for dropout (training mode), found "
                f"{shown(rngs)}; pass rngs=nnx.Rngs(dropout=key), or call model.eval()"
            )
        if self.rate == 1:
            return jnp.zeros_like(x)
        keep = 1 - self.rate
        # a number of Python would be drawn in float64 in 64-bit mode, with other results
        kept = jax.random.bernoulli(rngs.dropout(), np.float32(keep), x.shape)
        return jnp.where(kept, x / keep, 0)
