"""Gradients of a function compared with PyTorch's, compiled and under transformations.

The function is applied to the output of a small layer, because XLA fuses a function with the
operations before it and may compute the same numbers twice, in two kernels that round differently.
It does so most often at the lowest optimisation level, which also compiles fastest.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

BATCH, SEQ = 3, 11
MASK = np.arange(SEQ) < np.array([11, 7, 4])[:, None]
MASK[2] = MASK[2, ::-1]  # the last text is padded on the left

QUICKLY = {"xla_backend_optimization_level": 0}

Arrays = dict[str, Any]


def nothing(draw: np.random.Generator, width: int) -> Arrays:
    return {}


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of a layer's output, in JAX and in PyTorch.

    Attributes:
        ours: a function of hidden states `(batch, seq, width)`, parameters and constants.
        theirs: the same in PyTorch.
        parameters: draws the arrays that are differentiated in addition to the layer's.
        constants: draws the arrays that are not differentiated.
    """

    ours: Callable[[Any, Arrays, Arrays], Any]
    theirs: Callable[[torch.Tensor, Arrays, Arrays], torch.Tensor]
    parameters: Callable[[np.random.Generator, int], Arrays] = nothing
    constants: Callable[[np.random.Generator, int], Arrays] = nothing


def layer(x: Any, kernel: Any, library: Any) -> Any:
    """A linear layer, tanh and a normalisation, in JAX or in PyTorch."""
    hidden = library.tanh(x @ kernel)
    hidden = hidden - hidden.mean(-1)[..., None]
    return hidden / library.sqrt((hidden**2).mean(-1)[..., None] + 1e-5)


@functools.cache
def drawn(case: Case, width: int, seed: int) -> tuple[Arrays, Arrays]:
    """Returns the arguments of a case for a width: arrays to differentiate, and constants."""
    draw = np.random.default_rng([width, seed])
    arrays = {
        "inputs": draw.normal(size=(BATCH, SEQ, width)),
        "projection": draw.normal(size=(width, width)) / width**0.5,
    }
    return arrays | case.parameters(draw, width), case.constants(draw, width)


@functools.cache
def expected(case: Case, width: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns weights for a case's outputs, and PyTorch's gradients of the weighted sum."""
    arrays, constants = drawn(case, width, seed)
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    hidden = layer(tensors["inputs"], tensors["projection"], torch)
    given = {name: torch.tensor(array) for name, array in constants.items()}
    output = case.theirs(hidden, tensors, given)
    weights = np.random.default_rng([width, seed, 1]).normal(size=tuple(output.shape))
    (output * torch.tensor(weights)).sum().backward()
    return weights, {
        name: np.zeros_like(arrays[name]) if tensor.grad is None else tensor.grad.numpy()
        for name, tensor in tensors.items()
    }


def gradient(loss: Callable[..., Any]) -> Callable[..., Arrays]:
    return jax.grad(loss)


def batched(loss: Callable[..., Any]) -> Callable[..., Arrays]:
    """Returns the gradient of a rematerialised function for several draws at once."""
    return jax.vmap(jax.grad(jax.checkpoint(loss)))


def distance(
    case: Case, transform: Any, width: int, dtype: Any, options: Arrays | None = None
) -> float:
    """Returns the largest error of a compiled gradient, relative to its largest entry.

    Args:
        case: the function.
        transform: `gradient` or `batched`.
        width: of the hidden states.
        dtype: what ours is computed in.
        options: XLA's; by default those of `QUICKLY`.
    """

    def loss(arrays: Arrays, constants: Arrays, weights: Any) -> Any:
        hidden = layer(arrays["inputs"], arrays["projection"], jnp)
        return (case.ours(hidden, arrays, constants) * weights).sum()

    def cast(array: np.ndarray) -> Any:
        return jnp.asarray(array, dtype if array.dtype.kind == "f" else None)

    options = QUICKLY if options is None else options
    with jax.enable_x64(dtype == jnp.float64):
        seeds = (0, 1) if transform is batched else (0,)
        given = [(*drawn(case, width, seed), expected(case, width, seed)[0]) for seed in seeds]
        stacked = jax.tree.map(lambda *draws: cast(np.stack(draws)), *given)
        if transform is not batched:
            stacked = jax.tree.map(lambda array: array[0], stacked)
        found = jax.device_get(jax.jit(transform(loss), compiler_options=options)(*stacked))
    if transform is not batched:
        return apart(found, expected(case, width, 0)[1])
    each = [{name: array[seed] for name, array in found.items()} for seed in seeds]
    return max(apart(each[seed], expected(case, width, seed)[1]) for seed in seeds)


def apart(found: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """Returns the largest error of any array, relative to the array's largest entry."""
    assert found.keys() == right.keys()
    return max(
        float(np.abs(np.asarray(found[name], np.float64) - array).max())
        / (float(np.abs(array).max()) or 1.0)
        for name, array in right.items()
    )
