"""Validation rules of generation options, and the options that are refused.

The implemented options are the fields of `GenerationConfig`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from minibert.core.fields import Rule, interval, number, size

# Fields that are not implemented, each with the values that have no effect.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            "assistant_early_exit",
            "assistant_ensemble_weight",
            "constraints",
            "dola_layers",
            "force_words_ids",
            "speculation_type",
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
    "num_beam_groups": (None, 1),
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

# Arguments of other versions of `generate` that are not options, and what replaces them.
ELSEWHERE: Mapping[str, str] = {
    "assistant_model": "pass it to `generate`",
    "assistant_tokenizer": "an assistant must have the model's vocabulary",
    "cache": "pass whole texts as `input_ids`, or write a loop with `model(…, past_key_values=…)`",
    "custom_generate": "write a loop with `model(…, past_key_values=…)` or `stream`",
    "dropout_rng": "generation has no dropout; pass key=jax.random.key(0) to sample",
    "inputs": "pass the token ids as `input_ids`",
    "inputs_embeds": "pass it to `generate` or `stream`",
    "logits_processor": "use options, `prefix_allowed_tokens_fn`, or a loop of your own with "
    "`model(…, past_key_values=…)`",
    "negative_prompt_attention_mask": "pass it to `generate` or `stream`",
    "negative_prompt_ids": "pass it to `generate` or `stream`",
    "output_log_probs": "return_dict_in_generate=True returns `log_probs` in any case",
    "params": "the model holds its parameters; pass the model",
    "past_key_values": "pass whole texts as `input_ids`, or write a loop with "
    "`model(…, past_key_values=…)`",
    "position_ids": "positions are counted by `attention_mask`",
    "prng_key": "pass it as `key`",
    "return_dict": "use return_dict_in_generate=True",
    "rng": "pass it as `key`",
    "seed": "pass key=jax.random.key(seed)",
    "synced_gpus": "not needed: JAX runs one program on all devices",
    "token_type_ids": "pass it to `generate` or `stream`",
    "trace": "generation is always compiled",
    "train": "the model must be in evaluation mode; call model.eval()",
}

# Fields that concern speed, helper models or provenance. They influence the result only together
# with fields that are refused.
INERT = frozenset(
    """
    _commit_hash _from_model_config _original_object_hash assistant_lookbehind cache_config
    compile_config continuous_batching_config decoder_start_token_id disable_compile max_cache_len
    num_assistant_tokens_schedule prefill_chunk_size return_legacy_cache target_lookbehind
    transformers_version
    """.split()
)

# Fields of a config.json that concern calls of the model itself, or only speed.
MODELS_OWN = frozenset({"output_attentions", "output_hidden_states", "use_cache"})

# Options of one decoding method, each with the value that, besides its default, has no effect.
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

SMALLEST, LARGEST = 1e-30, 1e30  # numbers are converted to float32 and must stay finite


Test = Callable[[Any], bool]


def _tuple_of(allows: Test, least: int = 0) -> Test:
    """Returns a test for tuples of at least `least` elements that all pass `allows`."""
    return lambda value: (
        isinstance(value, tuple) and len(value) >= least and all(map(allows, value))
    )


def _pair_of(first: Test, second: Test) -> Test:
    """Returns a test for pairs whose elements pass `first` and `second`."""
    return lambda value: (
        isinstance(value, tuple) and len(value) == 2 and first(value[0]) and second(value[1])
    )


COUNT = size(0)
FACTOR = interval(SMALLEST, LARGEST)
NUMBER = interval(-LARGEST, LARGEST)
POSITIVE_SHARE = number("a number above 0 and at most 1", lambda value: SMALLEST <= value <= 1)
EARLY_STOPPING = Rule('true, false or "never"', lambda v: isinstance(v, bool) or v == "never")
TOKEN = Rule("a token id", COUNT.allows)
TOKENS = Rule("a list of token ids", _tuple_of(TOKEN.allows))
_is_word = _tuple_of(TOKEN.allows, 1)
TOKEN_OR_TOKENS = Rule("a token id or a list of them", lambda v: TOKEN.allows(v) or _is_word(v))
WORDS = Rule("a non-empty list of non-empty lists of token ids", _tuple_of(_is_word, 1))
BIASES = Rule(
    "a non-empty list of pairs of a non-empty list of token ids and a number",
    _tuple_of(_pair_of(_is_word, lambda v: NUMBER.allows(v) or v == -math.inf), 1),
    lambda v: tuple((word, float(bias)) for word, bias in v),
)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


STRINGS = Rule(
    "a non-empty text or a non-empty list of such",
    lambda v: _is_text(v) or _tuple_of(_is_text, 1)(v),
    lambda v: (v,) if isinstance(v, str) else v,
)
SECONDS = number("a number above 0", lambda value: 0 < value < math.inf)
PLACED_TOKENS = Rule(
    "a list of pairs of a position and a token id", _tuple_of(_pair_of(COUNT.allows, TOKEN.allows))
)
DECAY = Rule(
    "a pair of a number of tokens and a positive factor",
    _pair_of(COUNT.allows, FACTOR.allows),
    lambda v: (v[0], float(v[1])),
)


def option(rule: Rule, default: object = None) -> Any:
    """Returns a dataclass field that is unset where it is None, and then has its default."""
    return dataclasses.field(default=None, metadata={"rule": rule, "default": default})
