"""Small models with parameters drawn by numpy, and inputs for them: the same on every machine."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .surface import minibert

BERT = (
    "BertModel BertForPreTraining BertForMaskedLM BertLMHeadModel BertForNextSentencePrediction "
    "BertForSequenceClassification BertForMultipleChoice BertForTokenClassification "
    "BertForQuestionAnswering"
).split()
GPT2 = (
    "GPT2Model GPT2LMHeadModel GPT2DoubleHeadsModel GPT2ForSequenceClassification "
    "GPT2ForTokenClassification GPT2ForQuestionAnswering"
).split()
CHOICES = ("BertForMultipleChoice", "GPT2DoubleHeadsModel")
SETTINGS: dict[str, dict[str, Any]] = {  # in place of those of `tiny`
    "BertLMHeadModel": {"is_decoder": True},
    "BertForSequenceClassification": {"num_labels": 3},
    "BertForTokenClassification": {"num_labels": 5},
    "GPT2ForSequenceClassification": {"num_labels": 3, "pad_token_id": 0},
    "GPT2ForTokenClassification": {"num_labels": 5},
}


def drawn(name: str, *, dtype: str = "float32", seed: int = 0, **config: Any) -> Any:
    """A tiny model of that class, in evaluation mode."""
    kind = minibert.BertConfig if name.startswith("Bert") else minibert.GPT2Config
    settings = kind.tiny(**SETTINGS.get(name, {}) | config)
    model = getattr(minibert, name)(settings, rngs=None, param_dtype=jnp.dtype(dtype))
    return filled(model, seed).eval()


def filled(model: Any, seed: int = 0) -> Any:
    """The model, every parameter drawn: norms around one, the rest around zero."""
    flat = nnx.to_flat_state(nnx.state(model))
    drawn = []
    for path, variable in flat:
        name = ".".join(map(str, path))
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
        noise = draw.standard_normal(variable.shape)
        value = 1 + 0.3 * noise if path[-1] == "scale" else 0.2 * noise
        drawn.append((path, variable.replace(jnp.asarray(value, variable.dtype))))
    nnx.update(model, nnx.from_flat_state(drawn))
    return model


def inputs(name: str, *, vocab: int = 97, rows: int = 2, seq: int = 7) -> dict[str, np.ndarray]:
    """Arguments for that class: the last rows are padded on the right, by one token more each."""
    draw = np.random.default_rng(7)
    ids = draw.integers(1, vocab, (rows, 3, seq), dtype=np.int32)
    mask = np.ones((rows, 3, seq), np.int32)
    for row in range(1, rows):
        mask[row, :, seq - row :] = 0
    found = {"input_ids": ids * mask, "attention_mask": mask}
    if name.startswith("Bert"):
        found["token_type_ids"] = np.cumsum(ids % 5 == 0, axis=-1, dtype=np.int32).clip(0, 1) * mask
    if name not in CHOICES:
        return {key: array[:, 0] for key, array in found.items()}
    if name == "GPT2DoubleHeadsModel":
        found["mc_token_ids"] = mask.sum(axis=-1, dtype=np.int32) - 1
    return found


def called(model: Any, given: Mapping[str, Any], **options: Any) -> Any:
    """The model's outputs, by one program."""
    return jax.jit(lambda model, given: model(**given, **options))(model, dict(given))


def joined(tree: Any) -> jax.Array:
    """All numbers of a tree of arrays, one after the other, in the order of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)
    return jnp.concatenate([leaf.reshape(-1) for _, leaf in named])


def parameters_of(model: Any) -> jax.Array:
    """All parameters of a model, one after the other."""
    flat = nnx.to_flat_state(nnx.state(model))
    named = sorted((".".join(map(str, path)), variable) for path, variable in flat)
    return jnp.concatenate([variable[...].reshape(-1) for _, variable in named])
