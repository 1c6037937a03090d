"""When a run evaluates, and on what."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from minibert.core.checks import whole
from minibert.errors import InputError, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and on what a model is evaluated; at the last step, it is in any case.

    (Not after an interruption: a run that goes on from there comes to its own last step.)

    Attributes:
        batches: as `Trainer.evaluate` takes them; iterated over each time.
        every: how many steps from one to the next.
        patience: after how many evaluations without a smaller `eval_loss` the run stops; None for
            never.

    Raises:
        InputError: an attribute is wrong.
    """

    batches: Any
    every: Any
    patience: Any = None

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        if self.patience is not None:
            whole("patience", self.patience, 1)
        if not isinstance(self.batches, Iterable) or iter(self.batches) is self.batches:
            raise InputError(
                "batches: expected what can be iterated over more than once (a list, a dataset), "
                f"found {shown(type(self.batches))}"
            )
