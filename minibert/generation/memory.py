"""A check before generation starts that its arrays fit into memory."""

import math
import os
from typing import Any

import jax

from minibert.errors import InputError
from minibert.generation.decoding import Plan
from minibert.models.base import PretrainedModel


def check_memory(model: PretrainedModel, plan: Plan, shape: tuple[int, ...], name: str) -> None:
    """Raises an `InputError` if generation needs more memory than there is.

    Counted is what is stored in any case: keys and values of all rows, and the scores of a step, or
    those of all steps where they are recorded.

    Args:
        model: the model.
        plan: the static part of the program.
        shape: the shape of the padded prompts.
        name: the option that determines the number of rows for each prompt, for the message.
    """
    (batch, start), vocab = shape, model.config.vocab_size
    rows = batch * plan.copies
    row = jax.tree.leaves(jax.eval_shape(lambda: model.init_cache(1, start + plan.steps)))
    cache = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in row)
    scores = 4 * vocab * max(1, plan.steps * len(plan.records))
    needed, there = rows * (cache + scores), _memory(model)
    if needed > there:
        records = f" and the {' and '.join(plan.records)} of all steps" if plan.records else ""
        raise InputError(
            f"{name}: {plan.copies} texts for each of {batch} prompts: their keys and values"
            f"{records} need {needed / 1e9:,.0f} GB, and there are {there / 1e9:,.0f} GB of "
            "memory; request fewer"
        )


def _memory(model: PretrainedModel) -> float:
    """Returns the bytes of memory of the devices of a model; infinity if unknown."""
    devices: set[Any] = set()
    for leaf in jax.tree.leaves(model):
        devices |= leaf.devices() if isinstance(leaf, jax.Array) else set()
    if any(device.platform == "cpu" for device in devices):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [(device.memory_stats() or {}).get("bytes_limit", math.inf) for device in devices]
    return sum(limits) if limits else math.inf
