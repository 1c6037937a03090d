"""The rules of `GenerationConfig`: what a field may hold, what is refused, what contradicts.

Every field of transformers' GenerationConfig, 4.57 and 5.23 together, is honoured (the class), or
refused by name unless it holds what changes nothing, or leaves the result alone.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

# Name → the values that change nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "assistant_early_exit": (None,),
    "assistant_ensemble_weight": (None,),
    "cache_implementation": (
        *(None, "dynamic", "static", "offloaded", "offloaded_static"),
        *("sliding_window", "hybrid", "hybrid_chunked", "offloaded_hybrid"),
        "offloaded_hybrid_chunked",
    ),
    "constraints": (None,),
    "diversity_penalty": (None, 0),
    "dola_layers": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1),
    "is_assistant": (None, False),
    "low_memory": (None, False),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "penalty_alpha": (None, 0),
    "prompt_lookup_num_tokens": (None,),
    "speculation_type": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "use_mtp": (None, False),
    "watermarking_config": (None,),
}

# They say how fast, with what helper or by whom; without what is refused, not what comes out.
INERT = frozenset(
    """
    _commit_hash _from_model_config _original_object_hash assistant_confidence_threshold
    assistant_lookbehind cache_config compile_config continuous_batching_config
    decoder_start_token_id disable_compile max_cache_len max_matching_ngram_size
    num_assistant_tokens num_assistant_tokens_schedule prefill_chunk_size return_legacy_cache
    target_lookbehind transformers_version
    """.split()
)

# What a model's config.json says about the model's own calls, or about speed alone.
MODELS_OWN = frozenset({"output_attentions", "output_hidden_states", "use_cache"})

# Options of one way of decoding, and their values that ask for nothing.
SAMPLING_ONLY: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1,),
    "top_h": (),
    "top_k": (0, 50),
    "top_p": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0, 1),
    "eta_cutoff": (0, 1),
}
BEAMS_ONLY: Mapping[str, tuple[Any, ...]] = {"length_penalty": (1,), "early_stopping": (False,)}

# Options that can leave a text without a next token.
BANS = (
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"),
)

SMALLEST, LARGEST = 1e-30, 1e30  # numbers are float32 where they act, and are to stay finite there


def plain(value: Any) -> Any:
    """Arrays and lists as tuples, mappings as tuples of pairs, NumPy's numbers as Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        value = value.items()
    elif not isinstance(value, list | tuple):
        return value
    return tuple(plain(part) for part in value)


def is_count(value: Any) -> bool:
    """Whether it is a whole number, of at least 0, that 32 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def is_number(value: Any, least: float = -LARGEST) -> bool:
    """Whether it is a number from `least` to `LARGEST`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= LARGEST


def is_factor(value: Any) -> bool:
    """Whether it is a positive number whose inverse is a number too."""
    return is_number(value, SMALLEST)


def are_counts(value: Any) -> bool:
    """Whether it is some whole numbers of at least 0."""
    return isinstance(value, tuple) and all(map(is_count, value))


def _are_pairs(value: Any, first: Callable[[Any], bool], second: Callable[[Any], bool]) -> bool:
    pairs = isinstance(value, tuple) and all(isinstance(v, tuple) and len(v) == 2 for v in value)
    return pairs and all(first(one) and second(other) for one, other in value)


def _field(default: Any, expected: str, rule: Callable[[Any], bool], convert: Any = None) -> Any:
    """A field that is left open, and then has its default, where it is None."""
    metadata = {
        "default": default,
        "expected": expected,
        "rule": lambda v: (v is None and default is None) or rule(v),
        "convert": lambda v: v if v is None or convert is None else convert(v),
    }
    return dataclasses.field(default=None, metadata=metadata)


def switch(default: bool) -> Any:
    """A field that is true or false."""
    return _field(default, "true or false", lambda v: isinstance(v, bool))


def count(default: int | None, least: int = 0) -> Any:
    """A field that counts something."""
    expected = f"a whole number of at least {least}"
    return _field(default, expected, lambda v: is_count(v) and v >= least)


def share(default: float | None, positive: bool = False) -> Any:
    """A field that is a probability, or a part of something."""
    least = SMALLEST if positive else 0.0
    expected = "a number above 0, to 1" if positive else "a number from 0 to 1"
    return _field(default, expected, lambda v: is_number(v, least) and v <= 1, float)


def factor(default: float) -> Any:
    """A field by which scores are multiplied or divided."""
    return _field(default, f"a number from {SMALLEST} to {LARGEST}", is_factor, float)


def number(default: float) -> Any:
    """A field that is any number."""
    expected = f"a number from {-LARGEST} to {LARGEST}"
    return _field(default, expected, is_number, float)


def early_stopping() -> Any:
    """The field of that name."""
    return _field(False, 'true, false or "never"', lambda v: isinstance(v, bool) or v == "never")


def token() -> Any:
    """A field that is a token's id."""
    return _field(None, "a token's id", is_count)


def token_or_tokens() -> Any:
    """A field that is a token's id, or several."""
    expected = "a token's id or a list of them"
    return _field(None, expected, lambda v: is_count(v) or (are_counts(v) and len(v) > 0))


def tokens() -> Any:
    """A field that is a list of ids."""
    return _field(None, "a list of tokens' ids", are_counts)


def words() -> Any:
    """A field that is sequences of tokens."""
    return _field(
        None,
        "a list, not empty, of lists of tokens' ids, none of them empty",
        lambda v: isinstance(v, tuple) and len(v) > 0 and all(are_counts(w) and w for w in v),
    )


def biases() -> Any:
    """A field that is sequences of tokens, each with the bias of its last token."""
    return _field(
        None,
        "a list, not empty, of pairs: a list of tokens' ids, not empty, and a number",
        lambda v: v != () and _are_pairs(v, lambda w: are_counts(w) and w != (), _is_bias),
        lambda v: tuple((word, float(bias)) for word, bias in v),
    )


def _is_bias(value: Any) -> bool:
    return is_number(value) or (isinstance(value, float) and value == -math.inf)


def placed_tokens() -> Any:
    """A field that is positions and the token at each."""
    return _field(
        None,
        "a list of pairs: a position and a token's id",
        lambda v: _are_pairs(v, is_count, is_count),
    )


def decay() -> Any:
    """A field that is a number of tokens and a factor."""
    return _field(
        None,
        "a pair: a number of tokens and a positive factor",
        lambda v: _are_pairs((v,), is_count, is_factor),
        lambda v: (v[0], float(v[1])),
    )


def faults(config: Any) -> list[str]:
    """Returns the contradictions between fields of a config, wherever they come from."""
    found = []
    several = config.num_return_sequences
    if config.num_beams > 1 and several > config.num_beams:
        found.append(f"num_return_sequences: {several}, but there are {config.num_beams} num_beams")
    if config.num_beams == 1 and several > 1 and not config.do_sample:
        found.append(
            f"num_return_sequences: {several}, but greedy decoding has one result: "
            "it needs do_sample=True or num_beams"
        )
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = getattr(config, name)
        if forced is not None and config.suppress_tokens is not None:
            ids = forced if isinstance(forced, tuple) else (forced,)
            if set(ids) <= set(config.suppress_tokens):
                found.append(f"{name}: {forced}, but suppress_tokens has it too")
    return found


def lengths(options: Mapping[str, Any], config: Any) -> list[str]:
    """Returns which lengths in `options` have no effect in `config`, which includes them."""
    found = []
    for one, other in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        given, counts = options.get(one), getattr(config, other)
        if given is not None and counts is not None:
            found.append(f"{one}: {given}, but {other} is {counts} and counts before it")
    return found


def contradictions(options: Mapping[str, Any], config: Any) -> list[str]:
    """Returns what options of one call contradict: one another, or the way of decoding.

    Args:
        options: the options that the call gives, and that are not None.
        config: the config with them.
    """
    found = lengths(options, config)
    if config.exponential_decay_length_penalty is not None and not config.end_ids:
        found.append("exponential_decay_length_penalty: given, but there is no eos_token_id")
    for least, most in (("min_length", "max_length"), ("min_new_tokens", "max_new_tokens")):
        if least in options and most in options and options[least] > options[most]:
            found.append(f"{least}: {options[least]}, which is more than {most}, {options[most]}")
    for only, active, remedy in (
        (SAMPLING_ONLY, config.do_sample, "do_sample=True"),
        (BEAMS_ONLY, config.num_beams > 1, "num_beams of at least 2"),
    ):
        for name in only.keys() & options.keys():
            if not active and options[name] not in only[name]:
                found.append(f"{name}: {options[name]}, which needs {remedy}")
    for name in ("output_scores", "output_logits"):
        if options.get(name) and not config.return_dict_in_generate:
            found.append(f"{name}: true, which needs return_dict_in_generate=True")
    return sorted(found)
