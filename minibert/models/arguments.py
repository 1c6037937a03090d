"""Refusal of unknown arguments of a model's call, with what replaces them."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any

from minibert.errors import InputError, suggest

LABELS = (
    "end_positions",
    "labels",
    "mc_labels",
    "next_sentence_label",
    "sentence_order_label",
    "shift_labels",
    "start_positions",
)

# Arguments of transformers' models, in PyTorch or Flax, and what replaces them.
ELSEWHERE = {
    "cache": "pass it as past_key_values",
    "cache_position": "positions continue those in past_key_values; or pass position_ids",
    "deterministic": "call model.train() or model.eval() before",
    "dropout_rng": "pass rngs=nnx.Rngs(dropout=key)",
    "num_items_in_batch": "minibert.train.Trainer counts the targets of a batch",
    "params": "the model holds its parameters; see nnx.split and nnx.merge",
    "return_dict": "outputs have names and indices: out.logits, out[0], out.to_tuple()",
    "train": "call model.train() or model.eval() before",
}


def refuse_unknown(model: object, given: Iterable[str], known: Collection[str]) -> None:
    """Raises an `InputError` if an argument of a call of a model is not known.

    Args:
        model: the model.
        given: the names of the arguments of the call.
        known: the names of those that the model takes.
    """
    for name in given:
        if name in known:
            continue
        why = ELSEWHERE.get(name)
        if name in LABELS:
            why = "models compute no loss"
            if objective := getattr(model, "objective", None):
                arguments = "(model.config)" if objective == "classification" else ""
                why += f"; train with minibert.train.{objective}{arguments}"
        hint = suggest(name, known) if why is None else f": {why}"
        raise InputError(f"{name}: not an argument of {type(model).__name__}{hint}")


def explained(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a `__call__` that refuses unknown arguments by name."""
    parameters = inspect.signature(call).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return call
    known = frozenset(parameters)

    @functools.wraps(call)
    def checked(self: object, *args: object, **kwargs: object) -> Any:
        if not known.issuperset(kwargs):
            refuse_unknown(self, kwargs, known - {"self"})
        return call(self, *args, **kwargs)

    return checked
