"""The oracle: transformers' PyTorch models, run eagerly, every parameter re-randomised.

Hugging Face's own initialisation hides a dropped bias (they are all zero) and a swapped LayerNorm
(they are all one) completely; re-randomising shows both.
"""

import contextlib
from typing import Any

import jax
import numpy as np
import torch
import transformers
from transformers.utils import logging as transformers_logging

import minibert
from minibert.saving import file_leaves

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()

TINY = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
}
BATCH, SEQ = 3, 11
LENGTHS = (11, 7, 4)


def torch_model(name: str, seed: int = 0, **config: Any) -> Any:
    """A re-randomised, eager PyTorch model in evaluation mode, in float32."""
    settings = transformers.BertConfig(**TINY | config)
    settings._attn_implementation = "eager"
    model = getattr(transformers, name)(settings).eval()
    randomise(model, seed)
    return model


def randomise(model: Any, seed: int) -> None:
    """Draws every parameter anew, norms around one and everything else around zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float32)
            norm = path.endswith("LayerNorm.weight")
            parameter.copy_(1 + 0.3 * noise if norm else 0.2 * noise)


def inputs(seed: int = 0, vocab: int = 97, segments: int = 2) -> dict[str, np.ndarray]:
    """A ragged batch: ids, padding mask, segments."""
    draw = np.random.default_rng(seed)
    mask = (np.arange(SEQ) < np.array(LENGTHS)[:, None]).astype(np.int64)
    ids = draw.integers(0, vocab, (BATCH, SEQ)) * mask
    types = draw.integers(0, segments, (BATCH, SEQ)) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def run_torch(model: Any, arguments: dict[str, Any], **flags: Any) -> Any:
    """Calls the PyTorch model without gradients."""
    with torch.no_grad():
        return model(**{k: torch.as_tensor(np.asarray(v)) for k, v in arguments.items()}, **flags)


def additive(mask: np.ndarray) -> torch.Tensor:
    """The additive 4-D float64 mask that a 0/1 mask `(batch, queries, keys)` stands for."""
    return torch.tensor(np.where(mask[:, None] == 1, 0.0, np.finfo(np.float64).min))


def scale_heads(model: Any, head_mask: np.ndarray) -> None:
    """Does in the weights what a `(layers, heads)` head mask does, which transformers 5 dropped."""
    encoder = getattr(model, "bert", model).encoder
    for layer, factors in zip(encoder.layer, head_mask, strict=True):
        weight = layer.attention.output.dense.weight
        with torch.no_grad():
            weight *= torch.tensor(np.repeat(factors, weight.shape[1] // len(factors)))


@contextlib.contextmanager
def float64():
    """Runs JAX in double precision."""
    with jax.enable_x64(True):
        yield


def errors(ours: Any, theirs: Any, mask: np.ndarray | None = None) -> dict[str, float]:
    """The largest absolute difference of every output, at unpadded positions only."""
    found: dict[str, float] = {}
    for name in ours.keys():
        one, other = ours[name], theirs[name]
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        for index, (a, b) in enumerate(pairs):
            a, b = np.asarray(a), b.detach().numpy()
            assert a.shape == b.shape, (name, a.shape, b.shape)
            assert np.isfinite(a).all(), name
            if mask is not None and a.shape[:2] == mask.shape:
                a, b = a[mask == 1], b[mask == 1]
            elif mask is not None and name == "attentions":
                kept = np.broadcast_to(mask[:, None, :, None] == 1, a.shape)
                a, b = a[kept], b[kept]
            key = f"{name}[{index}]" if isinstance(one, tuple) else name
            found[key] = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max())
    return found


def saved(name: str, folder: Any, **config: Any) -> Any:
    """A re-randomised PyTorch model, saved into a folder, and itself."""
    model = torch_model(name, **config)
    model.save_pretrained(folder)
    return model


def ours(name: str, folder: Any, **options: Any) -> Any:
    """Our model of that class, loaded from a folder."""
    return getattr(minibert, name).from_pretrained(folder, **options)


def named_arrays(model: Any) -> dict[str, np.ndarray]:
    """The arrays of our model (or of its gradient) as the tensors a checkpoint would hold."""
    return {name: leaf.to_file() for name, leaf in file_leaves(model).items()}
