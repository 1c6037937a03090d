"""Training of sentence vectors: every text's own partner among all the partners of a batch."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from minibert.errors import InputError, shown
from minibert.pooling import POOLINGS, unit
from minibert.train.objectives import Batch, Choice, Objective, call_model, choosing, output, wide

PREFIXES = ("anchor_", "positive_", "negative_")
INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def contrastive(*, scale: float | int = 20.0, pooling: Any = "mean") -> Objective:
    """Multiple negatives ranking (Henderson et al., arXiv:1705.00652), as sentence-transformers'.

    The cosines between each anchor and all positives of the batch, times `scale`, are scores among
    which its own positive is the right one. Hard negatives, `negative_…`, `(batch, seq)` or
    `(batch, negatives, seq)`, stand beside the positives, for every anchor. The model is a trunk,
    such as `BertModel`. As the rows of a batch are compared, it cannot be taken in parts.

    Args:
        scale: 1 / temperature.
        pooling: a name in `minibert.pooling.POOLINGS`.

    Raises:
        InputError: an argument is wrong.
    """
    if pooling not in POOLINGS:
        raise InputError(f"pooling: expected {', '.join(POOLINGS)}; found {shown(pooling)}")
    if not scale > 0:
        raise InputError(f"scale: expected a number above 0, found {shown(scale)}")

    def apply(model: Any, batch: Batch, rngs: nnx.Rngs | None) -> Array:
        found = [
            unit(embedded(model, batch, prefix, pooling, rngs))
            for prefix in PREFIXES
            if f"{prefix}input_ids" in batch
        ]
        return scale * found[0] @ jnp.concatenate(found[1:]).T

    return choosing(
        "contrastive",
        {"contrastive": Choice(lambda scores: scores, _own)},
        needs=(("anchor_input_ids",), ("positive_input_ids",)),
        labels={},
        inputs=tuple(prefix + name for prefix in PREFIXES for name in INPUTS),
        apply=apply,
        separable=False,
    )


def _own(batch: Batch) -> Array:
    return jnp.arange(batch["anchor_input_ids"].shape[0])


def embedded(
    model: Any, batch: Batch, prefix: str, pooling: str, rngs: nnx.Rngs | None = None
) -> Array:
    """The vectors of a batch's texts, `(texts, hidden)`, in float32 or wider."""
    given = {n: jnp.asarray(batch[prefix + n]) for n in INPUTS if prefix + n in batch}
    given = {name: array.reshape(-1, array.shape[-1]) for name, array in given.items()}
    outputs = call_model(model, given, rngs)
    mask = given.get("attention_mask", jnp.ones_like(given["input_ids"])) > 0
    return POOLINGS[pooling](wide(output(outputs, "last_hidden_state")), mask)
