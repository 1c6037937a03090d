"""What a batch holds beside the model's inputs, checked by shape and value on the host.

A check takes the config, the entry's name, its array and the batch; it raises an `InputError`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from minibert.checkpoint.config import Config
from minibert.core.checks import checked_indices, checked_zeros_and_ones, shaped
from minibert.errors import InputError

IGNORED = -100  # the label of what is no target, as in PyTorch

Batch = Mapping[str, Any]
Check = Callable[[Any, str, np.ndarray, Batch], None]


class NoTargetError(InputError):
    """A batch has nothing to learn from; the last thing that a check looks at."""


def shape_of_words(batch: Batch) -> tuple[int, ...]:
    """`(batch, seq)`, or `(batch, choices, seq)`."""
    if "input_ids" in batch:
        return np.shape(batch["input_ids"])
    return np.shape(batch["inputs_embeds"])[:-1]


def of_tokens(field: str, *, first: int = 0) -> Check:
    """A class for every token, below a field of the config, or −100.

    Args:
        field: the config's.
        first: where targets begin: 1 if labels are moved by one, for then nothing predicts the
            first.
    """

    def check(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
        shape = shape_of_words(batch)
        _classes(name, array, shape, getattr(config, field), field, first)

    return check


def of_rows(limit: str | int) -> Check:
    """A class for every row, below a field of the config or a number, or −100."""

    def check(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
        size = limit if isinstance(limit, int) else getattr(config, limit)
        field = "classes" if isinstance(limit, int) else limit
        _classes(name, array, shape_of_words(batch)[:1], size, field)

    return check


def of_windows(filler: int) -> Check:
    """Words that are targets themselves unless they are padding, and what may replace them."""

    def check(config: Any, name: str, array: np.ndarray, batch: Batch) -> None:
        checked_indices("filler", np.asarray(filler), config.vocab_size, "vocab_size")
        checked_indices(name, array, config.vocab_size, "vocab_size")
        if "attention_mask" in batch:
            mask = checked_zeros_and_ones("attention_mask", batch["attention_mask"])
            shaped("attention_mask", mask, [array.shape])
            if not np.any(mask):
                raise NoTargetError("attention_mask: no target: everything is padding")

    return check


def of_choices(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
    """Which of the choices of every row is right, or −100."""
    rows, choices = _choices(name, batch)
    _classes(name, array, (rows,), choices, "choices")


def tokens_of_choices(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
    """For every choice, the position of a token."""
    shaped(name, array, [_choices(name, batch)])
    checked_indices(name, array, shape_of_words(batch)[-1], "seq")


def positions(config: Config, name: str, array: np.ndarray, batch: Batch) -> None:
    """A position for every row: a negative one is the first, one past the end is no target."""
    rows, seq = shape_of_words(batch)
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
    """For every row `num_labels` numbers (one needs no axis); from 0 to `most`, if given."""
    rows = shape_of_words(batch)[0]
    shapes = [(rows,)] if config.num_labels == 1 else []
    shaped(name, array, [*shapes, (rows, config.num_labels)])
    check_finite(name, array)
    if most is not None and not (array.min() >= 0 and array.max() <= most):
        raise InputError(
            f"{name}: expected numbers from 0 to {most}, found {array.min()} to {array.max()}"
        )


def check_finite(name: str, array: np.ndarray) -> None:
    """Raises an `InputError` unless they are finite numbers."""
    if array.dtype.kind not in "biufV" or not np.isfinite(array.astype(np.float64)).all():
        raise InputError(f"{name}: expected finite numbers")


def _choices(name: str, batch: Batch) -> tuple[int, int]:
    match shape_of_words(batch):
        case (rows, choices, _):
            return rows, choices
        case found:
            raise InputError(f"{name}: expected words (batch, choices, seq), found {found}")


def _classes(
    name: str, array: np.ndarray, shape: tuple[int, ...], size: int, limit: str, first: int = 0
) -> None:
    """Checks classes below `size`, or −100; from `first` on there must be one."""
    shaped(name, array, [shape])
    checked_indices(name, np.where(array == IGNORED, 0, array), size, limit)
    if (array[..., first:] == IGNORED).all():
        raise NoTargetError(f"{name}: no target: every label is {IGNORED}")
