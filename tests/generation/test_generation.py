"""Generated tokens equal those of transformers' `generate` with the same weights.

transformers counts padding as text in several processors, and minibert does not; so ragged batches
are compared with transformers' answer to each row alone, which shows neighbours' influence too.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is PyTorch")
transformers = pytest.importorskip("transformers")

import minibert  # noqa: E402
import oracle  # noqa: E402
from generating import PAD, prompts, same_texts  # noqa: E402

pytestmark = pytest.mark.slow
DRAWS = 9  # random settings of each structure; other numbers need no other program
ROWS = 3
Draw = np.random.Generator


def phrases(random: Draw) -> list[list[int]]:
    return [random.integers(0, 97, size).tolist() for size in (1, 2, 1, 3)]


def tokens(random: Draw, most: int = 12) -> list[int]:
    return random.choice(96, random.integers(1, most), replace=False).tolist()


def number(low: float, high: float) -> Callable[[Draw], float]:
    return lambda random: float(random.uniform(low, high))


def count(low: int, high: int) -> Callable[[Draw], int]:
    return lambda random: int(random.integers(low, high))


REPEATS = {"repetition_penalty": number(0.6, 2.5)}
ENCODER_REPEATS = {"encoder_repetition_penalty": number(0.6, 2.0)}
NGRAMS = {"no_repeat_ngram_size": count(1, 5)}
ENCODER_NGRAMS = {"encoder_no_repeat_ngram_size": count(1, 4)}
WORDS = {"bad_words_ids": phrases}
BIAS = {"sequence_bias": lambda random: [[w, float(random.normal(0, 4))] for w in phrases(random)]}
LENGTH = {"min_length": count(2, 20)}
NEW_LENGTH = {"min_new_tokens": count(1, 12)}
LAST = {"forced_eos_token_id": count(0, 96)}
SECOND = {"forced_bos_token_id": count(0, 96)}
DECAY = {
    "exponential_decay_length_penalty": lambda random: [
        int(random.integers(0, 6)),
        float(random.uniform(1.05, 1.8)),
    ]
}
SUPPRESS = {"suppress_tokens": tokens}
BEGIN = {"begin_suppress_tokens": tokens}
PENALTY = {"length_penalty": lambda random: float(random.choice([-1.5, -0.5, 0, 0.5, 1, 2.5]))}
# Of a beam search these two are left out: transformers applies them to each prompt's first beam.
BEAMS_MIX = REPEATS | NGRAMS | WORDS | BIAS | NEW_LENGTH | LAST | DECAY | SUPPRESS | BEGIN
MIX = BEAMS_MIX | ENCODER_REPEATS | ENCODER_NGRAMS | SECOND


def beams(number: int, early_stopping: bool | str = False, several: int = 1) -> dict[str, Any]:
    fixed = {"num_beams": number, "early_stopping": early_stopping}
    return PENALTY | fixed | {"num_return_sequences": several}


GPT2, BERT = "GPT2LMHeadModel", "BertLMHeadModel"
STRUCTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": (GPT2, {}),
    "repeats": (GPT2, REPEATS),
    "both repeats": (GPT2, REPEATS | ENCODER_REPEATS),
    "n-grams": (GPT2, NGRAMS | ENCODER_NGRAMS),
    "words and biases": (GPT2, WORDS | BIAS),
    "minimal lengths": (GPT2, LENGTH | LAST),
    "minimal new lengths": (GPT2, NEW_LENGTH | SECOND | BEGIN),
    "suppressed": (GPT2, SUPPRESS | BEGIN),
    "decay": (GPT2, DECAY),
    "clean scores": (GPT2, REPEATS | {"renormalize_logits": True, "remove_invalid_values": True}),
    "mixed": (GPT2, MIX),
    "2 beams": (GPT2, beams(2)),
    "3 beams, early": (GPT2, beams(3, True)),
    "4 beams, never": (GPT2, beams(4, "never", 2)),
    "5 beams, all": (GPT2, beams(5, False, 5) | REPEATS | NGRAMS),
    "3 beams, early, all": (GPT2, beams(3, True, 3) | WORDS | BIAS | NEW_LENGTH | LAST),
    "2 beams, mixed": (GPT2, beams(2, "never") | BEAMS_MIX),
    "4 beams, clean scores": (GPT2, beams(4) | {"renormalize_logits": True} | SUPPRESS | DECAY),
    "BERT": (BERT, {}),
    "BERT, 3 beams": (BERT, beams(3, "never", 2) | REPEATS),
    "crossed": (GPT2, {"crossed": True} | REPEATS),
    "crossed, 3 beams": (GPT2, {"crossed": True} | beams(3)),
    "crossed BERT, 2 beams": (BERT, {"crossed": True} | beams(2, True, 2)),
}
compared: list[bool] = []  # for every text: whether it ended before the limit


@functools.cache
def models(name: str, crossed: bool) -> tuple[Any, Any]:
    """Returns a re-randomised model of PyTorch and ours, in float64."""
    import tempfile

    extra = {"is_decoder": True} if name == BERT else {}
    with tempfile.TemporaryDirectory() as folder:
        theirs = oracle.saved(name, folder, add_cross_attention=crossed, **extra)
        return oracle.ours(name, folder, param_dtype=jnp.float64), theirs.double()


def drawn(structure: dict[str, Any], random: Draw) -> dict[str, Any]:
    options = {name: v(random) if callable(v) else v for name, v in structure.items()}
    ends = random.choice(96, int(random.integers(3, 8)), replace=False).tolist()
    if "num_beams" in options:  # their number says how many candidates there are
        ends = ends[:3]
    options |= {"eos_token_id": ends, "pad_token_id": PAD}
    options["max_new_tokens"] = most = int(random.integers(3, 16))
    if "min_new_tokens" in options:
        options["min_new_tokens"] = min(options["min_new_tokens"], most)
    if "forced_eos_token_id" in options and "suppress_tokens" in options:
        forced = {options["forced_eos_token_id"], options.get("forced_bos_token_id")}
        options["suppress_tokens"] = sorted(set(options["suppress_tokens"]) - forced)
    return options


def expected_texts(model: Any, ids: np.ndarray, options: dict, encoder: Any) -> list[np.ndarray]:
    """Returns the generated tokens of each row, without the padding after them."""
    given = {k: torch.as_tensor(v) for k, v in encoder.items()}
    given |= {"input_ids": torch.as_tensor(ids), "attention_mask": torch.ones(ids.shape)}
    if encoder:  # BERT's cross-attention needs it, and generate does not make it for a decoder
        caches = (transformers.DynamicCache(), transformers.DynamicCache())
        given[oracle.CACHE] = transformers.EncoderDecoderCache(*caches)
    with torch.no_grad():
        texts = model.generate(**given, do_sample=False, **options).numpy()[:, ids.shape[1] :]
    return [row[: len(row) - int(np.argmin(np.r_[row[::-1] == PAD, False]))] for row in texts]


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_tokens_are_transformers(structure):
    name, options = STRUCTURES[structure]
    crossed = options.get("crossed", False)
    options = {key: value for key, value in options.items() if key != "crossed"}
    random = np.random.default_rng(sum(map(ord, structure)))
    with oracle.float64():
        model, theirs = models(name, crossed)
        for draw in range(DRAWS):
            asked = drawn(options, random)
            ragged = draw % 3 > 0
            lengths = random.integers(1, 13, ROWS).tolist() if ragged else [7] * ROWS
            ids, mask = prompts(random, lengths)
            encoder: dict[str, Any] = {}
            if crossed:
                encoder = {"encoder_hidden_states": random.normal(size=(ROWS, 5, 24))}
            found = minibert.generate(model, ids, mask, **encoder, **asked)[:, ids.shape[1] :]
            if ragged:
                rows = [
                    (ids[[i], -n:], {k: v[[i]] for k, v in encoder.items()})
                    for i, n in enumerate(lengths)
                ]
            else:
                rows = [(ids, encoder)]
            expected = [
                text for row, extra in rows for text in expected_texts(theirs, row, asked, extra)
            ]
            assert same_texts(found, expected), (asked, found, expected)
            compared.extend(len(text) < asked["max_new_tokens"] for text in expected)


def test_enough_was_compared(request):
    if not all(f"[{name}]" in str(request.session.items) for name in STRUCTURES):
        pytest.skip("only a part of this file runs")
    assert len(STRUCTURES) * DRAWS >= 200
    assert len(compared) > 600
    assert 0.15 < np.mean(compared) < 0.85  # some texts end, some go on to the limit
