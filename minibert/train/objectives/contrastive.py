"""The contrastive objective for sentence embeddings, with in-batch negatives."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from minibert.core.fields import POSITIVE
from minibert.embedding.modules import pooling_modes
from minibert.errors import InputError
from minibert.models.base import PretrainedModel
from minibert.nn.layers import Dropout, Module
from minibert.nn.numerics import unit, widen
from minibert.nn.pooling import pool
from minibert.nn.tree import parameters
from minibert.train.fingerprint import digest
from minibert.train.objectives.base import (
    Batch,
    Choice,
    Objective,
    call_model,
    choosing,
    output,
)

PREFIXES = ("anchor_", "positive_", "negative_")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def contrastive(
    *,
    scale: float | int = 20.0,
    pooling: str | Sequence[str] = "mean",
    modules: Sequence[Module] = (),
) -> Objective:
    """Returns the multiple negatives ranking loss of sentence-transformers.

    (Henderson et al., arXiv:1705.00652.) The cosine similarities between an anchor and all
    positives of the batch, times `scale`, are logits; the label is the anchor's own positive. Hard
    negatives, `negative_…`, `(batch, seq)` or `(batch, negatives, seq)`, are further classes for
    every anchor. The model is a base model, such as `BertModel`. A batch cannot be split into
    parts, because its rows are compared.

    Args:
        scale: the inverse temperature.
        pooling: one or more names in `minibert.nn.pooling.POOLINGS`, as for `SentenceEncoder`.
        modules: the modules after the pooling, such as `encoder.model.chain[1:]`. Their parameters
            are not trained; a `Dropout` drops only during training.

    Raises:
        InputError: an argument is wrong.
    """
    modes = pooling_modes("pooling", pooling)
    POSITIVE.check("scale", scale, InputError)

    def embedded(model: PretrainedModel, batch: Batch, rngs: nnx.Rngs | None, prefix: str) -> Array:
        """Returns the embeddings of a batch's texts, `(texts, features)`, with norm 1."""
        given = {n: jnp.asarray(batch[prefix + n]) for n in INPUTS if prefix + n in batch}
        given = {name: array.reshape(-1, array.shape[-1]) for name, array in given.items()}
        outputs = call_model(model, given, rngs)
        mask = given.get("attention_mask", jnp.ones_like(given["input_ids"])).astype(bool)
        vectors = pool(widen(output(outputs, "last_hidden_state")), mask, modes)
        for module in modules:
            if isinstance(module, Dropout):  # off in an encoder, and on while it is trained
                vectors = vectors if rngs is None else Dropout(module.rate)(vectors, rngs)
            else:
                vectors = module(vectors)
        return unit(vectors)

    def apply(model: PretrainedModel, batch: Batch, rngs: nnx.Rngs | None) -> Array:
        present = [prefix for prefix in PREFIXES if f"{prefix}input_ids" in batch]
        anchors, *others = (embedded(model, batch, rngs, prefix) for prefix in present)
        return scale * anchors @ jnp.concatenate(others).T

    def own(batch: Batch) -> Array:
        return jnp.arange(len(batch["anchor_input_ids"]))

    return choosing(
        "contrastive",
        {"contrastive": Choice(lambda scores: scores, own)},
        needs=(("anchor_input_ids",), ("positive_input_ids",)),
        labels={},
        inputs=tuple(prefix + name for prefix in PREFIXES for name in INPUTS),
        apply=apply,
        separable=False,
        settings={"scale": scale, "pooling": modes, "modules": [_described(m) for m in modules]},
    )


def _described(module: Module) -> list[Any]:
    arrays = {path: np.asarray(array) for path, array in parameters(module).items()}
    return [type(module).__name__, getattr(module, "printed", ""), digest(arrays)]
