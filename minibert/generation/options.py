"""What an option of generation may hold, and which options mean nothing here.

Those that are honoured are the fields of `GenerationConfig`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from minibert.core.fields import Rule, interval, number, size

# Fields that are not implemented, each with the values that change nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "assistant_early_exit",
            "assistant_ensemble_weight",
            "constraints",
            "dola_layers",
            "force_words_ids",
            "max_time",
            "prompt_lookup_num_tokens",
            "speculation_type",
            "stop_strings",
            "watermarking_config",
        ),
        (None,),
    ),
    **dict.fromkeys(
        (
            "is_assistant",
            "low_memory",
            "output_attentions",
            "output_hidden_states",
            "token_healing",
            "use_mtp",
        ),
        (None, False),
    ),
    **dict.fromkeys(("diversity_penalty", "penalty_alpha"), (None, 0)),
    **dict.fromkeys(("guidance_scale", "num_beam_groups"), (None, 1)),
    "cache_implementation": (
        None,
        "dynamic",
        "static",
        "offloaded",
        "offloaded_static",
        "sliding_window",
        "hybrid",
        "hybrid_chunked",
        "offloaded_hybrid",
        "offloaded_hybrid_chunked",
    ),
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

# Options of one way of decoding, each with a value that, besides its default, asks for nothing.
SAMPLING_ONLY: Mapping[str, int | None] = {
    "temperature": 1,
    "top_h": None,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0,
    "typical_p": 1,
    "epsilon_cutoff": 1,
    "eta_cutoff": 1,
}
BEAMS_ONLY: Mapping[str, int | None] = {"length_penalty": 1, "early_stopping": False}

SMALLEST, LARGEST = 1e-30, 1e30  # numbers are float32 where they act, and are to stay finite there


Test = Callable[[Any], bool]


def _tuple_of(allows: Test, least: int = 0) -> Test:
    """Whether a value is a tuple of at least `least` parts that are all allowed."""
    return lambda value: (
        isinstance(value, tuple) and len(value) >= least and all(map(allows, value))
    )


def _pair_of(first: Test, second: Test) -> Test:
    """Whether a value is a tuple of two parts that are allowed."""
    return lambda value: (
        isinstance(value, tuple) and len(value) == 2 and first(value[0]) and second(value[1])
    )


COUNT = size(0)
FACTOR = interval(SMALLEST, LARGEST)
NUMBER = interval(-LARGEST, LARGEST)
POSITIVE_SHARE = number("a number above 0, to 1", lambda value: SMALLEST <= value <= 1)
EARLY_STOPPING = Rule('true, false or "never"', lambda v: isinstance(v, bool) or v == "never")
TOKEN = Rule("a token's id", COUNT.allows)
TOKENS = Rule("a list of tokens' ids", _tuple_of(TOKEN.allows))
_is_word = _tuple_of(TOKEN.allows, 1)
TOKEN_OR_TOKENS = Rule("a token's id or a list of them", lambda v: TOKEN.allows(v) or _is_word(v))
WORDS = Rule(
    "a list, not empty, of lists of tokens' ids, none of them empty", _tuple_of(_is_word, 1)
)
BIASES = Rule(
    "a list, not empty, of pairs: a list of tokens' ids, not empty, and a number",
    _tuple_of(_pair_of(_is_word, lambda v: NUMBER.allows(v) or v == -math.inf), 1),
    lambda v: tuple((word, float(bias)) for word, bias in v),
)
PLACED_TOKENS = Rule(
    "a list of pairs: a position and a token's id", _tuple_of(_pair_of(COUNT.allows, TOKEN.allows))
)
DECAY = Rule(
    "a pair: a number of tokens and a positive factor",
    _pair_of(COUNT.allows, FACTOR.allows),
    lambda v: (v[0], float(v[1])),
)


def option(rule: Rule, default: object = None) -> Any:
    """Returns a field that is left open where it is None, and then has its default."""
    return dataclasses.field(default=None, metadata={"rule": rule, "default": default})
