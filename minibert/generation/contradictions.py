"""Contradictions between the options of generation."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from minibert.generation.options import BEAMS_ONLY, SAMPLING_ONLY

if TYPE_CHECKING:
    from minibert.generation.config import GenerationConfig


def ids(tokens: object) -> tuple[int, ...]:
    """Returns all ids in None, an id, or tuples of ids nested to any depth."""
    return tuple(jax.tree.leaves(tokens))


def faults(config: "GenerationConfig") -> list[str]:
    """Returns the contradictions between fields, whatever their source."""
    found, several, beams = [], config.num_return_sequences, config.num_beams
    if several > beams > 1:
        found.append(f"num_return_sequences: {several}, but num_beams is {beams}")
    elif several > beams and not config.do_sample:
        found.append(
            f"num_return_sequences: {several}, but greedy decoding returns one text: "
            "more need do_sample=True or num_beams"
        )
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = getattr(config, name)
        if forced is not None and {*ids(forced)} <= {*ids(config.suppress_tokens)}:
            found.append(f"{name}: {forced}, but suppress_tokens contains it")
    return found


def overruled(config: "GenerationConfig", options: Mapping[str, Any]) -> list[str]:
    """Returns the lengths in `options` that another field of the config overrides."""
    found = []
    for one, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        given, counts = options.get(one), getattr(config, other)
        if given is not None and counts is not None:
            found.append(f"{one}: {given}, but {other} is {counts} and takes precedence")
    return found


def contradictions(
    config: "GenerationConfig", options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[str]:
    """Returns the contradictions of a call's options with each other or the decoding method.

    Args:
        config: the config of the call.
        options: the call's options that are not None; the config already contains them.
        defaults: the defaults of all fields.
    """
    found = overruled(config, options)
    if config.exponential_decay_length_penalty is not None and not config.end_ids:
        found.append("exponential_decay_length_penalty: set, but eos_token_id is not")
    for least, most in (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens")):
        if options.get(least, 0) > options.get(most, math.inf):
            found.append(
                f"{least}: {options[least]}, which is greater than {most}, {options[most]}"
            )
    for only, active, remedy in (
        (SAMPLING_ONLY, config.do_sample, "do_sample=True"),
        (BEAMS_ONLY, config.num_beams > 1, "num_beams of at least 2"),
    ):
        for name in only.keys() & options.keys():
            if not active and options[name] not in (only[name], defaults[name]):
                found.append(f"{name}: {options[name]}, which needs {remedy}")
    for name in ("output_scores", "output_logits"):
        if options.get(name) and not config.return_dict_in_generate:
            found.append(f"{name}: true, which needs return_dict_in_generate=True")
    return sorted(found)
