"""The options of a pipeline: the keyword arguments of its three stages."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from minibert.errors import InputError, shown, suggest

STAGES = ("preprocess", "forward", "postprocess")

# Options of transformers' pipelines that have no place here.
ELSEWHERE = {
    "batch_size": "batches are made by length; token_budget says how large",
    "device": "arrays go to JAX's default device",
    "device_map": "arrays go to JAX's default device",
    "framework": "there is one",
    "num_workers": "there are none",
    "torch_dtype": "use dtype",
}


def accepted(cls: type, stage: str) -> set[str]:
    """The names of the options of a stage.

    An override that takes `**options` has those of what it overrides too.
    """
    names: set[str] = set()
    for owner in cls.__mro__:
        if stage not in vars(owner):
            continue
        parameters = list(inspect.signature(vars(owner)[stage]).parameters.values())[2:]
        names |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def routed(cls: Any, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each stage's share of the options; one that several stages name goes to all of them.

    Raises:
        InputError: no stage has such an option, and the class hands none on.
    """
    names = {stage: accepted(cls, stage) for stage in STAGES}
    shares: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for name, value in options.items():
        stages = [stage for stage in STAGES if name in names[stage]]
        if not stages and cls.open_stage is None:
            raise InputError(unknown(name, set().union(*names.values()), f"option of {cls.task}"))
        for stage in stages or [cls.open_stage]:
            shares[stage][name] = value
    return shares


# What cannot be handed on: it is set here, or makes something else of a text than a row of ids.
RESERVED = (
    "text",
    "verbose",
    "return_tensors",
    "return_overflowing_tokens",
    "is_split_into_words",
    "text_pair",
)


def for_tokenizer(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of a call that are handed on to the tokenizer.

    Args:
        name: what they are called in the call.
        given: a mapping, or None for none.

    Raises:
        InputError: it is no such mapping, or an option in it has no place there.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{name}: expected option → value, found {shown(given)}")
    for option in given:
        if option in RESERVED:
            raise InputError(f"{name}: {option}: no option here; a text is one row of ids")
    return dict(given)


def unknown(name: str, known: Iterable[str], kind: str) -> str:
    """What is said of a name that nobody knows."""
    if name in ELSEWHERE:
        return f"{name}: no {kind}: {ELSEWHERE[name]}"
    hint = suggest(name, known) or f" (there are {', '.join(sorted(known))})"
    return f"{name}: no {kind}{hint}"
