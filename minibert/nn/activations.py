"""The activations of transformers, under their names there.

Source: `ACT2CLS` in transformers' `activations.py`. `gelu` is the exact form (Hendrycks & Gimpel,
arXiv:1606.08415); `gelu_new`, `gelu_pytorch_tanh`, `gelu_python_tanh` and `gelu_accurate` are the
tanh approximation. `prelu` and `xielu` have parameters, which are stored in the checkpoint.
`TORCH_ONLY` are activations of PyTorch that no config of transformers can name.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from minibert.nn.layers import SHAPES_ONLY, Module, constant
from minibert.nn.numerics import common_dtype, widen


def _gelu(x: Array) -> Array:
    # PyTorch's formula; erfc is more accurate for negative x, and takes twice the time
    wide = widen(x)
    return (0.5 * wide * (1 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _softplus(x: Array) -> Array:
    # torch's softplus is the identity above 20, where the other branch must not overflow
    return jnp.where(x > 20, x, jnp.log1p(jnp.exp(jnp.where(x > 20, 0, x))))


def _sqrt_softplus(x: Array) -> Array:
    # softplus(x) equals exp(x) to the last bit below -40; further down it underflows to 0, where
    # the square root has no derivative
    low = x < -40
    root = jnp.sqrt(_softplus(jnp.where(low, 0, x)))
    return jnp.where(low, jnp.exp(jnp.where(low, x, 0) / 2), root)


def _gelu_10(x: Array) -> Array:
    # `jnp.clip` halves the derivative at the bounds; no value of GELU is as low as -10
    y = _gelu(x)
    return jnp.where(y > 10, 10, y)


def _alike(wide: Array, *params: Array) -> list[Array]:
    """Returns an array and parameters in one dtype and rank, so that they can be combined."""
    arrays = (wide, *params)
    dtype = common_dtype(*(array.dtype for array in arrays))
    return [jax.lax.broadcast_to_rank(array.astype(dtype), wide.ndim) for array in arrays]


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_10": _gelu_10,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": lambda x: 0.5 * x * (1 + jnp.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "hardswish": jax.nn.hard_swish,
    "laplace": lambda x: 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.01 * x),  # the slope at 0 is torch's
    "linear": lambda x: x,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "sqrtsoftplus": _sqrt_softplus,
    "tanh": jnp.tanh,
}

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def _elu(x: Array) -> Array:
    return jnp.where(x > 0, x, jnp.expm1(jnp.where(x > 0, 0, x)))


def _log_sigmoid(x: Array) -> Array:
    below = x < 0
    negative, positive = jnp.where(below, x, 0), jnp.where(below, 0, x)
    return jnp.where(below, x - jnp.log1p(jnp.exp(negative)), -jnp.log1p(jnp.exp(-positive)))


# Elementwise, with the default arguments of torch.nn's classes. Bounds are conditions because
# `jnp.clip` and `jnp.minimum` halve the derivative at them.
TORCH_ONLY: dict[str, Callable[[Array], Array]] = {
    "elu": _elu,  # CELU is the same
    "hardshrink": lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0),
    "hardsigmoid": lambda x: jnp.where(x > -3, jnp.where(x < 3, x / 6 + 0.5, 1), 0),
    "hardtanh": lambda x: jnp.where(x > -1, jnp.where(x < 1, x, 1), -1),
    "logsigmoid": _log_sigmoid,
    "selu": lambda x: _SELU_SCALE * jnp.where(x > 0, x, _SELU_ALPHA * _elu(x)),
    "softplus": _softplus,
    "softshrink": lambda x: jnp.where(x > 0.5, x - 0.5, jnp.where(x < -0.5, x + 0.5, 0)),
    "softsign": lambda x: x / (1 + jnp.abs(x)),
    "tanhshrink": lambda x: x - jnp.tanh(x),
}


def function_of(name: str) -> Callable[[Array], Array]:
    """Returns the function of a name in `ACTIVATIONS` or `TORCH_ONLY`."""
    return ACTIVATIONS[name] if name in ACTIVATIONS else TORCH_ONLY[name]


class Activation(Module):
    """An activation without parameters, computed in float32 or wider."""

    printed: str | None

    def __init__(self, name: str):
        self.name = self.printed = name

    def __call__(self, x: Array) -> Array:
        """Applies the activation elementwise; keeps shape and dtype."""
        return function_of(self.name)(widen(x)).astype(x.dtype)


class PReLU(Module):
    """`torch.nn.PReLU`: negative values times a learned weight (He et al., arXiv:1502.01852)."""

    printed: str | None = "1"

    def __init__(self, *, rngs: nnx.Rngs | None, param_dtype: DTypeLike):
        key = (rngs or SHAPES_ONLY).params()
        self.weight: nnx.Param[Any] = nnx.Param(constant(0.25)(key, (1,), param_dtype))

    def __call__(self, x: Array) -> Array:
        """Applies the activation elementwise; keeps shape and dtype."""
        wide = widen(x)
        wide, weight = _alike(wide, self.weight[...])
        return jnp.where(wide > 0, wide, weight * wide).astype(x.dtype)


class Buffer(nnx.Variable):
    """A constant that Hugging Face stores in the checkpoint; it is not trained."""


class XIELU(Module):
    """The xIELU of transformers (Huang, arXiv:2411.13010): two parameters and two constants."""

    printed: str | None = ""

    def __init__(self, *, rngs: nnx.Rngs | None, param_dtype: DTypeLike):
        key = (rngs or SHAPES_ONLY).params()
        self.alpha_p: nnx.Param[Any] = nnx.Param(
            constant(math.log(math.expm1(0.8)))(key, (1,), param_dtype)
        )
        self.alpha_n: nnx.Param[Any] = nnx.Param(
            constant(math.log(math.expm1(0.3)))(key, (1,), param_dtype)
        )
        self.beta: Buffer = Buffer(constant(0.5)(key, (), param_dtype))
        self.eps: Buffer = Buffer(constant(-1e-6)(key, (), param_dtype))

    def __call__(self, x: Array) -> Array:
        """Applies the activation elementwise; keeps shape and dtype."""
        wide = widen(x)
        beta, eps = jax.lax.stop_gradient((self.beta[...], self.eps[...]))
        alpha_p = _softplus(self.alpha_p[...])
        alpha_n = beta + _softplus(self.alpha_n[...])
        wide, beta, eps, alpha_p, alpha_n = _alike(wide, beta, eps, alpha_p, alpha_n)
        above = alpha_p * wide * wide + beta * wide
        below = (jnp.expm1(jnp.minimum(wide, eps)) - wide) * alpha_n + beta * wide
        return jnp.where(wide > 0, above, below).astype(x.dtype)


LEARNED: dict[str, Any] = {"prelu": PReLU, "xielu": XIELU}
ACTIVATION_NAMES = (*ACTIVATIONS, *LEARNED)


def activation(
    name: str, *, rngs: nnx.Rngs | None, param_dtype: DTypeLike, dtype: DTypeLike | None = None
) -> Module:
    """Returns the activation module of a name; `dtype` is ignored."""
    if name in LEARNED:
        return LEARNED[name](rngs=rngs, param_dtype=param_dtype)
    return Activation(name)
