"""Validation of training batches before anything is computed."""

from collections.abc import Mapping

import jax
import numpy as np

from minibert.checkpoint.config import Config
from minibert.core.checks import as_array, checked_indices, checked_zeros_and_ones
from minibert.errors import InputError, shown
from minibert.train.objectives.base import MODEL_INPUTS, Objective
from minibert.train.objectives.labels import NoTargetError, check_finite

LIMITS = {
    "input_ids": ("vocab_size",),
    "token_type_ids": ("type_vocab_size", "vocab_size"),
    "position_ids": ("max_position_embeddings",),
}


def checked_batch(
    config: Config, objective: Objective, batch: object, parts: int, *, targets: bool = True
) -> dict[str, np.ndarray]:
    """Returns the entries that the objective and its model use, after checking them.

    Args:
        config: the model's config.
        objective: the objective.
        batch: arrays by name; unused entries are dropped.
        parts: the number of equal parts into which the rows must be divisible.
        targets: whether the batch must have a target.

    Raises:
        InputError: an entry is missing, of the wrong shape or out of range.
    """
    if not isinstance(batch, Mapping):
        raise InputError(f"batch: expected arrays by name, found {shown(batch)}")
    given = [name for name in objective.entries if name in batch]
    used = jax.device_get({name: as_array(name, batch[name]) for name in given})
    if lacking := objective.missing(used.keys()):
        raise InputError(
            f"batch: {objective.name} needs {lacking}; found {shown(sorted(map(str, batch)))}"
        )
    rows = {name: len(array) if array.ndim else 0 for name, array in used.items()}
    count = min(rows.values())
    if count == 0 or count != max(rows.values()):
        raise InputError(f"batch: expected arrays with the same number of rows, found {rows}")
    if count % parts:
        raise InputError(f"batch: {count} rows cannot be split into {parts} equal parts")
    for name, array in used.items():
        if check := objective.labels.get(name):
            try:
                check(config, name, array, used)
            except NoTargetError:
                if targets:
                    raise
            continue
        kind = next(kind for kind in MODEL_INPUTS if name.endswith(kind))
        if kind in LIMITS:
            field = next(field for field in LIMITS[kind] if hasattr(config, field))
            checked_indices(name, array, getattr(config, field), field)
        elif kind == "attention_mask":
            checked_zeros_and_ones(name, array)
        elif kind == "inputs_embeds":
            check_finite(name, array)
    return used
