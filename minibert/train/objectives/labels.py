"""Checks of a batch's labels, by shape and value, on the host.

A check takes the config, the entry's name, its array and the batch; it raises an `InputError`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minibert.checkpoint.config import Config
from minibert.core.checks import checked_indices, checked_zeros_and_ones, shaped
from minibert.errors import InputError

IGNORED = -100  # the label of positions that are not targets, as in PyTorch

Batch = Mapping[str, Any]
Check = Callable[[Any, str, np.ndarray, Batch], None]


class NoTargetError(InputError):
    """The batch has no targets. It is raised after all other checks have passed."""


def token_shape(batch: Batch) -> tuple[int, ...]:
    """Returns the shape of a batch's tokens, `(batch, seq)` or `(batch, choices, seq)`."""
    if "input_ids" in batch:
        return np.shape(batch["input_ids"])
    return np.shape(batch["inputs_embeds"])[:-1]


def of_tokens(field: str, *, first: int = 0) -> Check:
    """Returns the check of one label per token: a class below a field of the config, or −100.

    Args:
        field: the name of the config's field.
        first: the first position that can be a target: 1 if labels are shifted by one, because
            then nothing predicts the first token.
    """

    def check(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
        shape = token_shape(batch)
        _classes(name, array, shape, getattr(config, field), field, first)

    return check


def of_rows(limit: str | int) -> Check:
    """Returns the check of one label per row: a class below `limit`, or −100.

    Args:
        limit: the number of classes, or the name of the config's field that holds it.
    """

    def check(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
        size = limit if isinstance(limit, int) else getattr(config, limit)
        field = "classes" if isinstance(limit, int) else limit
        _classes(name, array, token_shape(batch)[:1], size, field)

    return check


def zeros_and_ones_of_tokens(config: Any, name: str, array: np.ndarray, batch: Batch) -> None:
    """Checks one label per token, 0 or 1, and that not every position is padding."""
    shaped(name, array, [token_shape(batch)])
    checked_zeros_and_ones(name, array)
    mask_of_tokens(batch)


def mask_of_tokens(batch: Batch) -> None:
    """Checks that the mask, if there is one, has one number per token, and not only zeros."""
    if "attention_mask" in batch:
        mask = checked_zeros_and_ones("attention_mask", batch["attention_mask"])
        shaped("attention_mask", mask, [token_shape(batch)])
        if not np.any(mask):
            raise NoTargetError("attention_mask: no target: every position is padding")


def of_windows(filler: int) -> Check:
    """Returns the check of token ids that are targets themselves, unless they are padding.

    Args:
        filler: the id of the token that replaces some of them.
    """

    def check(config: Any, name: str, array: np.ndarray, batch: Batch) -> None:
        checked_indices("filler", np.asarray(filler), config.vocab_size, "vocab_size")
        checked_indices(name, array, config.vocab_size, "vocab_size")
        mask_of_tokens(batch)

    return check


def of_choices(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
    """Checks that labels are the index of the correct choice of each row, or −100."""
    rows, choices = _choices(name, batch)
    _classes(name, array, (rows,), choices, "choices")


def tokens_of_choices(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
    """Checks that an array has the position of a token for each choice."""
    shaped(name, array, [_choices(name, batch)])
    checked_indices(name, array, token_shape(batch)[-1], "seq")


def positions(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
    """Checks one position per row: a negative one means the first, one past the end no target."""
    rows, seq = token_shape(batch)
    shaped(name, array, [(rows,)])
    if array.dtype.kind not in "iu":
        raise InputError(f"{name}: expected integers, found {array.dtype}")
    if (array >= seq).all():
        raise NoTargetError(f"{name}: no target: every position is past the end ({seq})")


def numbers(
    config: Config,
    name: str,
    array: np.ndarray,
    batch: Batch,
    *,
    most: float | int | None = None,
) -> None:
    """Checks `num_labels` numbers per row (a single one needs no axis), from 0 to `most` if given.

    Args:
        config: the model's config.
        name: the entry's name.
        array: the numbers, `(batch, num_labels)`, or `(batch,)` if `num_labels` is 1.
        batch: the batch.
        most: the max; None for any finite number.
    """
    rows = token_shape(batch)[0]
    shapes = [(rows,)] if config.num_labels == 1 else []
    shaped(name, array, [*shapes, (rows, config.num_labels)])
    check_finite(name, array)
    if most is not None and not (array.min() >= 0 and array.max() <= most):
        raise InputError(
            f"{name}: expected numbers from 0 to {most}, found {array.min()} to {array.max()}"
        )


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises an `InputError` unless all elements are finite numbers."""
    if array.dtype.kind not in "biufV" or not np.isfinite(array.astype(np.float64)).all():
        raise InputError(f"{name}: expected finite numbers")


def _choices(name: str, batch: Batch) -> tuple[int, int]:
    match token_shape(batch):
        case (rows, choices, _):
            return rows, choices
        case found:
            raise InputError(f"{name}: expected tokens (batch, choices, seq), found {found}")


def _classes(
    name: str, array: np.ndarray, shape: tuple[int, ...], size: int, limit: str, first: int = 0
) -> None:
    """Checks classes below `size`, or −100; at least one must be a class from `first` on."""
    shaped(name, array, [shape])
    checked_indices(name, np.where(array == IGNORED, 0, array), size, limit)
    if (array[..., first:] == IGNORED).all():
        raise NoTargetError(f"{name}: no target: every label is {IGNORED}")
