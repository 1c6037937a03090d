"""Each processor compared with transformers', without padding, and three that it lacks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minibert.checkpoint.generation_config import GenerationConfig
from minibert.generation import planning
from minibert.generation.processors import History
from slowly import slow_but

VOCAB, SLOTS, START = 23, 12, 7  # full after five tokens
ENDS = (5, 11)
LENGTHS = (START, 1, 4, 2, START - 1)  # of the prompts; one token has rules of its own


def histories(seed: int, step: int, alphabet: int = 4) -> tuple[History, list[np.ndarray]]:
    """Rows of few different tokens, so that tokens repeat, and each row's text."""
    random = np.random.default_rng(seed)
    tokens = random.integers(0, alphabet, (len(LENGTHS), SLOTS))
    slots = np.arange(SLOTS)
    real = (slots >= START - np.array(LENGTHS)[:, None]) & (slots < START + step)
    tokens[~real] = random.integers(-3, VOCAB + 3, np.count_nonzero(~real))  # anything
    texts = [row[where] for row, where in zip(tokens, real, strict=True)]
    history = History(
        tokens=jnp.asarray(tokens, jnp.int32),
        real=jnp.asarray(real),
        start=START,
        step=jnp.int32(step),
        limit=jnp.int32(6),
    )
    return history, texts


def random_scores(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed + 1000)
    scores = random.normal(0, 4, (len(LENGTHS), VOCAB)).astype(np.float32)
    scores[:, 3::9] = -np.inf  # as an earlier processor leaves them
    return scores


@functools.partial(jax.jit, static_argnames="start")
def process(processors, scores, tokens, real, start, step, limit):
    return processors(scores, History(tokens, real, start, step, limit))


def processed(config: GenerationConfig, scores: np.ndarray, history: History) -> np.ndarray:
    return np.asarray(process(planning.processors(config, VOCAB), jnp.asarray(scores), *history))


def theirs(options: dict, scores: np.ndarray, texts: list[np.ndarray], step: int) -> np.ndarray:
    """What transformers' `generate` would do to each row alone."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    rows = []
    for row, text in zip(scores, texts, strict=True):
        prompt = torch.as_tensor(text[: len(text) - step])[None]
        config = transformers.GenerationConfig(**options)
        config.max_length = prompt.shape[1] + 6
        if config.min_new_tokens is not None:
            config.min_length = prompt.shape[1] + config.min_new_tokens
        ends = options.get("eos_token_id")
        config._eos_token_tensor = None if ends is None else torch.tensor(ends).reshape(-1)
        model = type(
            "Model", (transformers.GenerationMixin,), {"config": transformers.GPT2Config()}
        )
        chain = model()._get_logits_processor(
            config, input_ids_seq_length=prompt.shape[1], encoder_input_ids=prompt
        )
        rows.append(chain(torch.as_tensor(text)[None], torch.as_tensor(row)[None])[0].numpy())
    return np.stack(rows)


END = {"eos_token_id": list(ENDS)}
CASES = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.4},
    {"encoder_repetition_penalty": 1.7},
    {"encoder_repetition_penalty": 0.5},
    *({"no_repeat_ngram_size": n} for n in (1, 2, 3, 4, 9, 1000)),
    *({"encoder_no_repeat_ngram_size": n} for n in (1, 2, 3, 8, 1000)),
    {"bad_words_ids": [[1], [2, 3], [0, 1, 2], [3, 3, 3, 1]]},
    {"bad_words_ids": [[5], [7], [5, 1], [1, 5]], **END},
    {"bad_words_ids": [[1, 1], [1, 1], [0]]},
    {"bad_words_ids": [[0] * 9 + [1], [0] * 7 + [2], [0] * 8 + [3]]},
    {"sequence_bias": [[[1], 2.5], [[0, 1], -4.0], [[2, 1], 1.5], [[1, 2, 3, 0], 3.0]]},
    {"sequence_bias": [[[2], 1.0], [[2], -7.0], [[1, 2], float("-inf")]]},
    {"min_length": 6, **END},
    {"min_length": 6},
    {"min_length": 9, "eos_token_id": 2},
    {"min_new_tokens": 2, **END},
    {"min_new_tokens": 3, "min_length": 30, **END},
    {"min_new_tokens": 0, "min_length": 30, **END},
    {"forced_bos_token_id": 8},
    {"forced_eos_token_id": 5},
    {"forced_eos_token_id": [5, 11]},
    {"remove_invalid_values": True},
    {"remove_invalid_values": True, "forced_eos_token_id": 5, "suppress_tokens": [3]},
    {"exponential_decay_length_penalty": [1, 1.4], **END},
    {"exponential_decay_length_penalty": [0, 0.8], **END},
    {"exponential_decay_length_penalty": [2, 30.0], **END},
    {"suppress_tokens": [1, 2, 22]},
    {"suppress_tokens": []},
    {"begin_suppress_tokens": [0, 7]},
    {"begin_suppress_tokens": [0, 7], "forced_bos_token_id": 8},
    {"renormalize_logits": True},
    {
        "sequence_bias": [[[4], 2.5], [[0, 1], -4.0]],
        "repetition_penalty": 1.2,
        "encoder_repetition_penalty": 1.1,
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 4,
        "bad_words_ids": [[6], [2, 3]],
        "min_length": 4,
        "min_new_tokens": 1,
        "exponential_decay_length_penalty": [1, 1.2],
        "suppress_tokens": [9],
        "begin_suppress_tokens": [10],
        "forced_eos_token_id": 5,
        "forced_bos_token_id": 8,
        **END,
    },
]


def name(options: dict) -> str:
    return "-".join(f"{k}={v}" for k, v in options.items() if k != "eos_token_id")[:60]


@pytest.mark.parametrize("step", slow_but([0, 1, 3, 5], 0, 5))
@pytest.mark.parametrize("options", CASES, ids=name)
def test_as_transformers_does_row_by_row(options, step):
    config = GenerationConfig.from_dict(options)
    for seed in range(4):
        history, texts = histories(seed, step, alphabet=1 + seed)
        scores = random_scores(seed)
        if "remove_invalid_values" in options:
            scores[:, ::5], scores[:, 1] = np.nan, np.inf
        expected = theirs(options, scores, texts, step)
        found = processed(config, scores, history)
        if config.renormalize_logits:
            found = np.asarray(planning.sampling(config)(jnp.asarray(found)))
        np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_random_chain_acts_in_transformers_order():
    pool = {name: value for options in CASES for name, value in options.items()}
    del pool["renormalize_logits"], pool["remove_invalid_values"]  # the last of all; overflows
    for seed in range(12):
        random = np.random.default_rng(seed)
        chosen = random.choice(list(pool), 6, replace=False)
        options = {key: pool[key] for key in chosen} | END
        history, texts = histories(seed, 3)
        found = processed(GenerationConfig.from_dict(options), random_scores(seed), history)
        expected = theirs(options, random_scores(seed), texts, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=str(options))


@pytest.mark.parametrize("step", [0, 1, 4])
def test_presence_and_frequency_count_generated_tokens_only(step):
    config = GenerationConfig(presence_penalty=0.7, frequency_penalty=-0.3)
    history, texts = histories(0, step)
    expected = random_scores(0)
    for row, text in zip(expected, texts, strict=True):
        for token, times in zip(
            *np.unique(text[len(text) - step :], return_counts=True), strict=True
        ):
            row[token] -= 0.7 + -0.3 * times
    np.testing.assert_allclose(processed(config, random_scores(0), history), expected, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_forced_positions_count_a_rows_own_text(step):
    config = GenerationConfig(forced_decoder_ids=((2, 9), (7, 13), (4, 1)), suppress_tokens=(9,))
    history, texts = histories(0, step)
    scores = random_scores(0)
    expected = scores.copy()
    expected[:, 9] = -np.inf
    for row, text in zip(expected, texts, strict=True):
        if len(text) in (2, 4, 7):
            row[:] = -np.inf
            row[{2: 9, 4: 1, 7: 13}[len(text)]] = 0
    np.testing.assert_array_equal(processed(config, scores, history), expected)


EVERYTHING = GenerationConfig.from_dict(CASES[-1]).replace(
    presence_penalty=0.5, frequency_penalty=0.25, forced_decoder_ids=((4, 1),)
)


@pytest.mark.slow
def test_rows_know_neither_padding_nor_neighbours():
    history, texts = histories(3, 2)
    scores = random_scores(3)
    together = processed(EVERYTHING, scores, history)
    for row, text in enumerate(texts):
        prompt = len(text) - 2
        alone = History(
            tokens=jnp.asarray(np.append(text, [0, 0])[None], jnp.int32),
            real=jnp.arange(len(text) + 2)[None] < len(text),
            start=prompt,
            step=history.step,
            limit=history.limit,
        )
        np.testing.assert_array_equal(
            processed(EVERYTHING, scores[row : row + 1], alone)[0], together[row]
        )


def test_other_numbers_compile_nothing():
    history, _ = histories(0, 2)
    process.clear_cache()
    other = EVERYTHING.replace(
        repetition_penalty=1.9,
        encoder_repetition_penalty=0.3,
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        no_repeat_ngram_size=5,
        encoder_no_repeat_ngram_size=2,
        bad_words_ids=[[1, 2], [4, 2]],
        sequence_bias={(1, 2): 0.5, (7,): 2},
        exponential_decay_length_penalty=(4, 1.01),
        suppress_tokens=[1, 4, 3],
        begin_suppress_tokens=[],
        forced_decoder_ids=((9, 2),),
        forced_eos_token_id=(1, 2),
        min_new_tokens=4,
        eos_token_id=2,
    )
    for config in (EVERYTHING, other):
        found = processed(config, random_scores(0), history)
        eager = planning.processors(config, VOCAB)(jnp.asarray(random_scores(0)), history)
        np.testing.assert_allclose(found, eager, rtol=1e-6)
    assert process._cache_size() == 1


def test_ids_that_are_no_tokens_touch_nothing():
    config = EVERYTHING.replace(no_repeat_ngram_size=1, encoder_no_repeat_ngram_size=1)
    history, _ = histories(0, 3)
    results = []
    for ids in ([VOCAB, VOCAB + 1, 2**31 - 1], [-1, -VOCAB, -(2**31)]):
        tokens = jnp.asarray(np.resize(np.array(ids), history.tokens.shape), jnp.int32)
        results.append(processed(config, random_scores(0), history._replace(tokens=tokens)))
    np.testing.assert_array_equal(*results)
    assert np.isfinite(results[0][0, 22])  # what −1 would be


def test_what_is_neutral_does_not_act():
    leaves = jax.tree.leaves(
        planning.processors(GenerationConfig(eos_token_id=3, min_length=0), VOCAB)
    )
    assert leaves == []
    history, _ = histories(0, 2)
    scores = random_scores(0)
    np.testing.assert_array_equal(processed(GenerationConfig(), scores, history), scores)


def test_every_processor_has_its_field():
    from minibert.generation.processors import PROCESSORS, Processors

    assert tuple(PROCESSORS) == tuple(field.name for field in dataclasses.fields(Processors))
