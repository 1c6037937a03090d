"""The oracle: transformers' PyTorch models, run eagerly, every parameter re-randomised.

Hugging Face's own initialisation hides a dropped bias (they are all zero) and a swapped LayerNorm
(they are all one) completely; re-randomising shows both.
"""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.utils import logging as transformers_logging

import minibert
from conftest import GRADIENT
from families import FACTS, OF_CLASS
from minibert.checkpoint.saving import file_leaves

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
torch.set_num_threads(1)  # tiny tensors, and workers that share the processors

CACHES = ("cache", "past_key_values")  # what transformers calls it from 5.24 on, and before
CACHE = next(
    name for name in CACHES if name in inspect.signature(transformers.GPT2Model.forward).parameters
)

BATCH, SEQ = 3, 11
LENGTHS = (11, 7, 4)
ALL = {"output_hidden_states": True, "output_attentions": True}


def family(name: str) -> str:
    """The `model_type` of a class."""
    return OF_CLASS[name].model_type


def torch_model(name: str, seed: int = 0, **config: Any) -> Any:
    """A re-randomised, eager PyTorch model in evaluation mode, in float32."""
    kind = getattr(transformers, name)
    settings = kind.config_class(**OF_CLASS[name].tiny | config)
    settings._attn_implementation = "eager"
    model = kind(settings).eval()
    randomise(model, seed)
    return model


NORMS = tuple(norm for facts in FACTS.values() for norm in facts.norms)


def randomise(model: Any, seed: int, norms: float = 0.3, others: float = 0.2) -> None:
    """Draws every parameter anew, norms around one and everything else around zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float32)
            parameter.copy_(1 + norms * noise if path.endswith(NORMS) else others * noise)


def inputs(
    seed: int = 0, vocab: int = 97, segments: int = 2, padding: str = "right", pad: int = 0
) -> dict[str, np.ndarray]:
    """A ragged batch, padded on one side: ids, padding mask, token types if there are any."""
    draw = np.random.default_rng(seed)
    mask = (np.arange(SEQ) < np.array(LENGTHS)[:, None]).astype(np.int64)
    mask = mask[:, ::-1].copy() if padding == "left" else mask
    ids = np.where(mask == 1, draw.integers(0, vocab, (BATCH, SEQ)), pad)
    given = {"input_ids": ids, "attention_mask": mask}
    if segments:
        given["token_type_ids"] = draw.integers(0, segments, (BATCH, SEQ)) * mask
    return given


def arguments(name: str, **options: Any) -> dict[str, np.ndarray]:
    """Returns `inputs` for a class: with its token types, and for some with an axis of choices."""
    facts = OF_CLASS[name]
    given = inputs(**{"segments": facts.types, "pad": facts.pad} | options)
    given["input_ids"][0, 4] = facts.pad  # a padding token inside a text
    if name in facts.choices:
        return {key: array[None] for key, array in given.items()}
    return given


def run_torch(model: Any, arguments: dict[str, Any], **flags: Any) -> Any:
    """Calls the PyTorch model without gradients."""
    with torch.no_grad():
        return model(**{k: torch.as_tensor(np.asarray(v)) for k, v in arguments.items()}, **flags)


def additive(mask: np.ndarray) -> torch.Tensor:
    """Returns the additive 4-D float64 mask for a 0/1 mask `(batch, queries, keys)`."""
    return torch.tensor(np.where(mask[:, None] == 1, 0.0, np.finfo(np.float64).min))


def scale_heads(model: Any, head_mask: np.ndarray) -> None:
    """Scales the outputs of heads by a `(layers, heads)` head mask, which transformers 5 dropped.

    A block that layers share is called with one row after the other.
    """
    name = type(model).__name__
    trunk = getattr(model, model.base_model_prefix, model)
    blocks = trunk.get_submodule(getattr(minibert, name).blocks)
    for attended in OF_CLASS[name].attended:
        scale = functools.partial(_scaled, itertools.cycle(head_mask))
        for path, layer in blocks.named_modules():
            if path.endswith(f".{attended}"):
                layer.register_forward_pre_hook(scale)


def _scaled(rows: Iterator[np.ndarray], layer: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Scales the merged outputs of heads, `(batch, seq, hidden)`, by the next row of factors."""
    merged, factors = given[0], next(rows)
    factors = np.repeat(factors, merged.shape[-1] // len(factors))
    return (merged * torch.tensor(factors, dtype=merged.dtype), *given[1:])


@contextlib.contextmanager
def float64():
    """Runs JAX in double precision."""
    with jax.enable_x64(True):
        yield


def errors(ours: Any, theirs: Any, mask: np.ndarray | None = None) -> dict[str, float]:
    """Returns the largest absolute difference of every output, at unpadded positions only."""
    found: dict[str, float] = {}
    for name in ours.keys():
        if name in CACHES:
            continue
        one, other = ours[name], theirs[name]
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        for index, (a, b) in enumerate(pairs):
            a, b = np.asarray(a), b.detach().numpy()
            assert a.shape == b.shape, (name, a.shape, b.shape)
            if name == "hidden_states" and b.ndim == 4:  # the last one has an axis of choices
                a, b = (array.reshape(-1, *array.shape[2:]) for array in (a, b))
            assert np.isfinite(a).all(), name
            if mask is not None and a.shape[:2] == mask.shape:
                a, b = a[mask == 1], b[mask == 1]
            elif mask is not None and name.endswith("attentions"):
                kept = np.broadcast_to(mask[:, None, :, None] == 1, a.shape)
                a, b = a[kept], b[kept]
            key = f"{name}[{index}]" if isinstance(one, tuple) else name
            found[key] = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    return found


def worst(
    name: str,
    folder: Any,
    theirs: Any,
    given: dict[str, Any],
    flags: dict[str, Any] = ALL,
    **extra: Any,
) -> float:
    """The largest difference of any output in float64, all of them on.

    Args:
        name: the class.
        folder: where `theirs` was saved.
        theirs: the PyTorch model.
        given: the arguments of both that are arrays.
        flags: the arguments of both that are not.
        extra: arguments of ours alone, which may take the place of some of those.
    """
    expected = run_torch(theirs.double(), given, **flags)
    with float64():
        model = ours(name, folder, param_dtype=jnp.float64)
        found = model(**given | extra, **flags)
        mask = given.get("attention_mask")
        full = mask is None or mask.ndim > 3
        mask = None if full else mask.reshape(-1, mask.shape[-1])
        differences = errors(found, expected, mask)
    hidden = [key for key in differences if key.startswith("hidden_states")]
    assert len(hidden) == len(expected.hidden_states)
    assert len(differences) > len(hidden)
    crossed = expected.get("cross_attentions")
    assert sum(key.startswith("cross") for key in differences) == len(crossed or ())
    return max(differences.values())


def worst_gradient(name: str, folder: Any, theirs: Any, given: dict[str, Any]) -> float:
    """Returns the largest error of any parameter's gradient, in tolerances.

    The gradient is that of a weighted sum of every output at unpadded positions.
    """
    mask = given["attention_mask"].reshape(-1, given["attention_mask"].shape[-1])
    draw = np.random.default_rng(1)
    unused = {"hidden_states", "attentions", "cross_attentions", *CACHES}

    def weighted(outputs: Any, weights: dict[str, np.ndarray], like: Any) -> Any:
        total: Any = 0.0
        for key in sorted(set(outputs.keys()) - unused):
            value = outputs[key]
            if key not in weights:
                weights[key] = draw.normal(size=value.shape)
                if value.shape[:2] == mask.shape:
                    weights[key] *= mask.reshape(mask.shape + (1,) * (value.ndim - 2))
            total = total + (value * like(weights[key])).sum()
        return total

    weights: dict[str, np.ndarray] = {}
    outputs = theirs.double()(**{key: torch.as_tensor(array) for key, array in given.items()})
    weighted(outputs, weights, torch.as_tensor).backward()
    expected = {path: parameter.grad for path, parameter in theirs.named_parameters()}
    with float64():
        model = ours(name, folder, param_dtype=jnp.float64)
        gradient = jax.grad(lambda m: weighted(m(**given), weights, jnp.asarray))(model)
        found = named_arrays(gradient)
    # PyTorch lists a tied parameter under the name that its class assigns first
    used = {
        path if path in found else model.tied[path]: grad.numpy()
        for path, grad in expected.items()
        if grad is not None
    }
    assert used
    assert found.keys() >= used.keys()
    # a key's bias cannot change a softmax: its gradient is zero, and both sides only rounding
    scales = {path: max(np.abs(grad).max(), 1e-3) for path, grad in used.items()}
    return max(
        np.abs(found[path] - grad).max() / (GRADIENT * scales[path]) for path, grad in used.items()
    )


def saved(name: str, folder: Any, **config: Any) -> Any:
    """Returns a folder with a re-randomised PyTorch model, and the model."""
    model = torch_model(name, **config)
    model.save_pretrained(folder)
    return model


def ours(name: str, folder: Any, **options: Any) -> Any:
    """Loads our model of a class from a folder."""
    return getattr(minibert, name).from_pretrained(folder, **options)


def named_arrays(model: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of our model (or its gradient) as the tensors of a checkpoint."""
    return {name: leaf.to_file() for name, leaf in file_leaves(model).items()}
