"""Refusal of unknown arguments of a call, with what replaces them."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from minibert.errors import InputError, suggest

Given = ParamSpec("Given")
Returned = TypeVar("Returned")

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
    "adapter_names": "call the model of each adapter (minibert.train.attach) with its own rows",
    "cache": "pass it as past_key_values",
    "cache_position": "positions continue those in past_key_values; or pass position_ids",
    "deterministic": "call model.train() or model.eval() before",
    "dropout_rng": "pass rngs=nnx.Rngs(dropout=key)",
    "num_items_in_batch": "minibert.train.Trainer counts the targets of a batch",
    "params": "the model holds its parameters; see nnx.split and nnx.merge",
    "return_dict": "outputs have names and indices: out.logits, out[0], out.to_tuple()",
    "token_type_ids": "the model has no token types; leave them out",
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
        raise _unknown(name, type(model).__name__, known, why)


def _unknown(name: str, owner: str, known: Collection[str], why: str | None) -> InputError:
    hint = suggest(name, known) if why is None else f": {why}"
    return InputError(f"{name}: not an argument of {owner}{hint}")


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


def refusing(
    elsewhere: Mapping[str, str],
) -> Callable[[Callable[Given, Returned]], Callable[Given, Returned]]:
    """Returns a decorator of functions and constructors that refuse unknown arguments by name.

    Args:
        elsewhere: arguments that other libraries have, with what replaces them.
    """

    def decorated(call: Callable[Given, Returned]) -> Callable[Given, Returned]:
        owner = getattr(call, "__qualname__", "").removesuffix(".__init__")
        known = frozenset(inspect.signature(call).parameters) - {"self"}

        @functools.wraps(call)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
            for name in kwargs:
                if name not in known:
                    raise _unknown(name, owner, known, elsewhere.get(name))
            return call(*args, **kwargs)

        return checked

    return decorated
