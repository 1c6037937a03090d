"""Generated text: every way of decoding, every rule, records and streams."""

import pathlib
from typing import Any

import jax
import numpy as np

from .models import drawn
from .surface import minibert

PROMPTS = [[11, 42, 7], [5]]
LONG = [[11, 42, 7, 42, 7, 9], [5, 6, 5, 6, 5]]
GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "presence_penalty": 0.5},
    "bans": {"bad_words_ids": [[7], [9, 5]], "suppress_tokens": [3], "begin_suppress_tokens": [4]},
    "biases": {"sequence_bias": [[[8], 4.0], [[11, 3], -2.0]]},
    "forced": {"forced_bos_token_id": 2, "forced_eos_token_id": 6, "min_new_tokens": 2},
    "end": {"eos_token_id": [1, 2, 3, 5, 8, 13, 21, 34, 55], "pad_token_id": 0},
    "prompts": {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
}
SAMPLED: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 0.7, "top_k": 20, "top_p": 0.9},
    "shares": {"min_p": 0.02, "typical_p": 0.9, "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-4},
    "several": {"num_return_sequences": 3, "top_h": 0.6},
}
BEAMS: dict[str, dict[str, Any]] = {
    "plain": {"length_penalty": 0.6, "num_return_sequences": 2},
    "early": {"early_stopping": True, "eos_token_id": 5},
    "drawn": {"do_sample": True, "temperature": 1.5},
}


def model() -> Any:
    return drawn("GPT2LMHeadModel", n_layer=1)


def greedy(folder: pathlib.Path) -> Any:
    gpt2 = model()
    return {
        name: minibert.generate(gpt2, LONG, max_new_tokens=6, **options)
        for name, options in GREEDY.items()
    }


def sampled(folder: pathlib.Path) -> Any:
    gpt2, key = model(), jax.random.key(3)
    return {
        name: minibert.generate(gpt2, PROMPTS, max_new_tokens=6, do_sample=True, key=key, **options)
        for name, options in SAMPLED.items()
    }


def beams(folder: pathlib.Path) -> Any:
    gpt2, key = model(), jax.random.key(3)
    return {
        name: minibert.generate(
            gpt2,
            PROMPTS,
            max_new_tokens=5,
            num_beams=3,
            return_dict_in_generate=True,
            **({"key": key} if name == "drawn" else {}),
            **options,
        )
        for name, options in BEAMS.items()
    }


def records(folder: pathlib.Path) -> Any:
    config = minibert.GenerationConfig(max_new_tokens=4, return_dict_in_generate=True)
    wanted = {"output_scores": True, "output_logits": True}
    mask = np.array([[1, 1, 1], [0, 0, 1]])
    ids = np.array([[11, 42, 7], [0, 0, 5]])
    return minibert.generate(model(), ids, mask, generation_config=config, **wanted)


def streamed(folder: pathlib.Path) -> Any:
    gpt2, options = model(), {"max_new_tokens": 4}
    drawn_ = {"do_sample": True, "key": jax.random.key(1), "top_p": 0.8}
    return {
        "greedy": list(minibert.stream(gpt2, PROMPTS, **options)),
        "drawn": list(minibert.stream(gpt2, PROMPTS, **options, **drawn_)),
    }


def berts(folder: pathlib.Path) -> Any:
    """A BERT that is a decoder, with an encoder's states."""
    bert = drawn("BertLMHeadModel", num_hidden_layers=1, add_cross_attention=True)
    states = np.random.default_rng(3).standard_normal((2, 5, 24)).astype(np.float32)
    given = {"encoder_hidden_states": states, "encoder_attention_mask": np.ones((2, 5), int)}
    return minibert.generate(bert, PROMPTS, max_new_tokens=5, **given)


CASES = (greedy, sampled, beams, records, streamed, berts)
