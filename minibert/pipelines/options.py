"""The options of a pipeline: the keyword arguments of its three stages."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from minibert.errors import InputError, shown, suggest

STAGES = ("preprocess", "forward", "postprocess")
BATCHING = ("batch_size", "show_progress", "token_budget")  # options of a call, not of a stage

# Options of transformers' pipelines that are not supported, and what replaces them.
ELSEWHERE = {
    "device": "arrays go to JAX's default device",
    "device_map": "arrays go to JAX's default device",
    "feature_extractor": "inputs are texts; pass a tokenizer",
    "framework": "the framework is always JAX",
    "generate_kwargs": "pass the options themselves, such as max_new_tokens=20",
    "grouped_entities": 'pass aggregation_strategy="simple"',
    "model_kwargs": "pass the arguments of from_pretrained themselves, such as dtype",
    "num_workers": "there are no worker processes",
    "return_all_scores": "pass top_k=None",
    "return_text": "pass return_full_text",
    "torch_dtype": "use dtype",
    "trust_remote_code": "code of a checkpoint is never run",
    "use_auth_token": "pass token",
    "use_fast": "pass a tokenizer",
}


def accepted(cls: type, stage: str) -> set[str]:
    """Returns the names of a stage's options.

    An override with `**options` also accepts those of the method that it overrides.
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
    """Returns the options of each stage; an option that several stages name goes to all of them.

    Raises:
        InputError: if no stage has such an option, and the class has no `open_stage`.
    """
    names = {stage: accepted(cls, stage) for stage in STAGES}
    shares: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for name, value in options.items():
        stages = [stage for stage in STAGES if name in names[stage]]
        if not stages and (cls.open_stage is None or name in ELSEWHERE):
            raise InputError(unknown(name, set().union(*names.values()), f"option of {cls.task}"))
        for stage in stages or [cls.open_stage]:
            shares[stage][name] = value
    return shares


# Tokenizer arguments that pipelines set, or with which a text is not encoded as one row of ids.
RESERVED = (
    "text",
    "verbose",
    "return_tensors",
    "return_overflowing_tokens",
    "is_split_into_words",
    "text_pair",
)


def for_tokenizer(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the tokenizer arguments of a call as a dictionary.

    Args:
        name: the name of the call's argument, for messages.
        given: a mapping, or None.

    Raises:
        InputError: if `given` is not a mapping of names, or contains a reserved argument.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{name}: expected option → value, found {shown(given)}")
    for option in given:
        if option in RESERVED:
            raise InputError(f"{name}: {option}: not allowed here; a text is one row of ids")
    return dict(given)


def unknown(name: str, known: Iterable[str], kind: str) -> str:
    """Returns the message about an unknown name."""
    if name in ELSEWHERE:
        return f"{name}: unknown {kind}: {ELSEWHERE[name]}"
    hint = suggest(name, known) or f" (known are {', '.join(sorted(known))})"
    return f"{name}: unknown {kind}{hint}"
