"""Losses and gradients beside PyTorch's: batches, both models, and how far they are apart."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch

import oracle
from minibert.train import Objective

VOCAB = 97
IGNORED = -100
QUICKLY = "xla_backend_optimization_level"  # what runs once need not run fast


def some_ignored(labels: np.ndarray, mask: np.ndarray, seed: int = 5) -> np.ndarray:
    """Labels of which two thirds, and all padding, are ignored; at least one per text remains."""
    kept = (np.random.default_rng(seed).random(labels.shape) < 0.34) & (mask == 1)
    kept[..., 1] = True
    return np.where(kept, labels, IGNORED)


def words(name: str, rows: int = 3, seed: int = 0, choices: int = 0) -> dict[str, np.ndarray]:
    """Ragged texts as a class takes them: `rows` of them, or as many with several choices each."""
    draw = np.random.default_rng(seed)
    shape = (rows, choices) if choices else (rows,)
    lengths = draw.integers(7, oracle.SEQ + 1, shape)
    lengths.flat[0] = oracle.SEQ
    mask = (np.arange(oracle.SEQ) < lengths[..., None]).astype(np.int64)
    ids = draw.integers(1, VOCAB, mask.shape) * mask  # 0 is padding
    types = draw.integers(0, VOCAB if oracle.family(name) == "gpt2" else 2, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@contextlib.contextmanager
def wide_losses() -> Iterator[None]:
    """Removes transformers' cast of logits to float32 before some losses."""
    with mock.patch.object(torch.Tensor, "float", lambda tensor: tensor):
        yield


def tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(array) for name, array in batch.items()}


def value_and_gradients(
    model: Any, objective: Objective, batch: dict[str, np.ndarray]
) -> tuple[float, dict[str, np.ndarray]]:
    """Returns our loss of a batch, and the gradients of all parameters by tensor name."""

    def loss(model: Any) -> Any:
        return objective(objective.apply(model, batch, None), batch)

    both = jax.jit(jax.value_and_grad(loss), compiler_options={QUICKLY: 0})
    value, gradient = both(model)
    return float(value), oracle.named_arrays(gradient)


def torch_gradients(theirs: Any, loss: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns PyTorch's gradients; zeros for parameters that the loss does not depend on."""
    theirs.zero_grad()
    loss.backward()
    return {
        path: (torch.zeros_like(p) if p.grad is None else p.grad).numpy().copy()
        for path, p in theirs.named_parameters()
    }


def distance(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """The largest error of any array, relative to its largest number."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    # a key's bias cannot change a softmax: its gradient is zero, and both sides only rounding
    return max(
        float(np.abs(found[path] - array).max() / max(np.abs(array).max(), 1e-6))
        for path, array in expected.items()
    )


def pair(name: str, folder: Any, **config: Any) -> tuple[Any, Any]:
    """PyTorch's model of one layer in float64, and ours with its weights; needs 64-bit mode."""
    layers = {"n_layer" if oracle.family(name) == "gpt2" else "num_hidden_layers": 1}
    theirs = oracle.saved(name, folder, **layers | config)
    return theirs.double(), oracle.ours(name, folder, param_dtype=jnp.float64)
