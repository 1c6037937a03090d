"""One program per shape and structure, by jax's own count; other numbers compile nothing."""

import jax
import numpy as np
import pytest

import minibert
from generating import VOCAB, compilations, tiny

pytestmark = [pytest.mark.unoptimised, pytest.mark.slow]
DRAWN = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 30, "min_p": 0.01}
RULES = {
    **{"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "suppress_tokens": [4]},
    **{"bad_words_ids": [[4, 5], [6]], "min_new_tokens": 2, "forced_eos_token_id": 9},
}
OTHER_RULES = {
    **{"repetition_penalty": 0.8, "no_repeat_ngram_size": 5, "suppress_tokens": [1, 2, 3]},
    **{"bad_words_ids": [[7], [1, 2]], "min_new_tokens": 4, "forced_eos_token_id": [8, 9]},
}
# What is compiled for, and then what is called in its place.
CALLS: dict[str, tuple[dict, list[dict]]] = {
    "greedy": ({}, [{"eos_token_id": 3}, {"eos_token_id": [3, 4, 5]}, {"pad_token_id": 7}]),
    "lengths": (
        {"max_new_tokens": 16},
        [*({"max_new_tokens": n} for n in (1, 2, 15)), {"max_new_tokens": None, "max_length": 9}],
    ),
    "rules": (RULES, [OTHER_RULES]),
    "drawn": (
        DRAWN,
        [{"temperature": 1.9}, {"top_p": 0.2}, {"top_k": 3}, {"min_p": 0.3}],
    ),
    "beams": (
        {"num_beams": 3, "length_penalty": 0.5, "eos_token_id": 3, "max_new_tokens": 16},
        [
            *({"length_penalty": -2.0}, {"eos_token_id": 5}, {"max_new_tokens": 3}),
            {"num_return_sequences": 2},
        ],
    ),
    "drawn beams": ({"num_beams": 2} | DRAWN, [{"temperature": 1.9, "length_penalty": 0.1}]),
}


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        yield tiny(n_positions=80)


def ids(length: int, rows: int = 2) -> np.ndarray:
    return np.random.default_rng(length).integers(0, VOCAB, (rows, length))


def call(model, length, seed, streamed=False, **options):
    key = {"key": jax.random.key(seed)} if options.get("do_sample") else {}
    if streamed:
        return list(minibert.stream(model, ids(length), **key, **options))
    return minibert.generate(model, ids(length), **key, **options)


@pytest.mark.parametrize("name", CALLS)
def test_other_numbers_compile_nothing(model, name):
    first, others = CALLS[name]
    jax.random.key(0)  # compiles a program of its own
    with compilations() as programs:
        call(model, 5, 0, **first)
    assert len(programs) == 1
    with compilations() as programs:
        call(model, 5, 0, **first)
        call(model, 6, 1, **first)
        for other in others:
            call(model, 5, 2, **first | other)
    assert programs == []


def test_a_streams_other_numbers_compile_nothing(model):
    with compilations() as programs:
        call(model, 5, 0, streamed=True, max_new_tokens=6)
    assert len(programs) == 2  # one that reads the prompt, one that goes on
    with compilations() as programs:
        call(model, 9, 0, streamed=True, max_new_tokens=9, eos_token_id=[3, 5])
        call(model, 5, 0, streamed=True, max_new_tokens=1)
    assert programs == []


@pytest.mark.parametrize("mask", [False, True])
def test_lengths_are_rounded_up(model, mask):
    """Fifty prompts need a program for each of 16, 24, 32, 48 and 64 slots, and no other."""
    random = np.random.default_rng(0)
    lengths = [*range(1, 61, 2), *random.integers(1, 61, 20)]
    with compilations() as programs:
        for length in lengths:
            prompt = ids(int(length), rows=1)
            given = np.ones_like(prompt) if mask else None
            minibert.generate(model, prompt, given, max_new_tokens=int(random.integers(1, 17)))
    assert len(lengths) == 50
    assert len(programs) == (0 if mask else 5)  # a mask is no other program: the first has all


def test_every_kind_of_prompt_is_one_program(model):
    prompt = ids(4)
    minibert.generate(model, prompt)
    with compilations() as programs:
        for given in (prompt.tolist(), prompt.astype(np.int8), prompt.astype(np.uint64)):
            minibert.generate(model, given)
        minibert.generate(model, [[1, 2, 3], [4]])
        minibert.generate(model, prompt, np.array([[0, 1, 1, 1]] * 2, bool))
    assert programs == []


def test_encoder_states_are_rounded_up_too():
    with jax.enable_x64(True):
        model = tiny(add_cross_attention=True)
        random = np.random.default_rng(0)
        counts = []
        for length in (3, 16, 7, 20):
            states = random.normal(size=(2, length, 24))
            mask = np.ones((2, length), int)
            mask[0, -1] = 0
            with compilations() as programs:
                for given in (mask, None):
                    minibert.generate(
                        model, ids(4), encoder_hidden_states=states, encoder_attention_mask=given
                    )
            counts.append(sum("run" in program for program in programs))
    assert counts == [1, 0, 0, 1]


def test_models_of_one_architecture_share_programs(model):
    minibert.generate(model, ids(4))
    other = tiny(seed=1, n_positions=80)
    with compilations() as programs:
        found = minibert.generate(other, ids(4))
    assert programs == []
    assert (found != minibert.generate(model, ids(4))).any()  # and no weights are in them
