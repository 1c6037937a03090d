"""Known mistakes, planted in generation, are all detected.

The reference is a plain loop without cache, padding or batch, which reads each text anew for every
token; that it is right is for `test_generation.py` to show, with transformers.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import minibert
from generating import PAD, prompts, tiny
from minibert.generation import api as generation
from minibert.generation import beams, decoding, planning, processors
from minibert.models import compilation
from minibert.nn.attention import causal_mask
from minibert.nn.cache import KVCache, LayerCache

pytestmark = pytest.mark.unoptimised

ENDS = tuple(range(3, 96, 7))
PENALTY = 1.6
BEAMS, POWER = 3, 0.4
LENGTHS, NEW, SEEDS = [6, 2, 4], 9, 3


@pytest.fixture(scope="module")
def model():
    with jax.enable_x64(True):
        yield tiny(n_layer=1)


@pytest.fixture(scope="module")
def reader(model):
    """Returns the logits of a text's next token, at a fixed capacity to compile once."""
    run = jax.jit(lambda ids, last: model(ids).logits[0, last].astype(jnp.float32))

    def read(text: list[int]) -> np.ndarray:
        ids = np.zeros((1, 24), np.int32)
        ids[0, : len(text)] = text  # what stands behind the last word is not looked at
        return np.asarray(run(ids, len(text) - 1))

    return read


def log_softmax(scores: np.ndarray) -> np.ndarray:
    return np.asarray(jax.nn.log_softmax(scores))


def penalized(scores: np.ndarray, text: list[int]) -> np.ndarray:
    factor = np.where(scores < 0, np.float32(PENALTY), 1 / np.float32(PENALTY))
    return np.where(np.isin(np.arange(len(scores)), text), scores * factor, scores)


def greedy_by_hand(reader, prompt: list[int]) -> list[tuple[float, list[int]]]:
    text = list(prompt)
    while len(text) < len(prompt) + NEW:
        text.append(int(np.argmax(penalized(reader(text), text))))
        if text[-1] in ENDS:
            break
    return [(0.0, text[len(prompt) :])]


def beams_by_hand(reader, prompt: list[int]) -> list[tuple[float, list[int]]]:
    """All texts of every step are looked at, and the best that end are kept, to the last step."""
    running, kept = [(0.0, list(prompt))], []
    for step in range(1, NEW + 1):
        found = []
        for score, text in running:
            scores = penalized(log_softmax(reader(text)), text)
            found += [(score + float(s), [*text, word]) for word, s in enumerate(scores)]
        found.sort(key=lambda pair: -pair[0])
        ended = [text[-1] in ENDS or step == NEW for _, text in found]
        kept += [
            (score / step**POWER, text)
            for (score, text), end in zip(found[:BEAMS], ended, strict=False)
            if end
        ]
        running = [pair for pair, end in zip(found, ended, strict=True) if not end][:BEAMS]
        kept = sorted(kept, key=lambda pair: -pair[0])[:BEAMS]
    return [(score, text[len(prompt) :]) for score, text in kept]


WAYS = {
    "greedy": {},
    "beams": {
        **{"num_beams": BEAMS, "num_return_sequences": BEAMS, "early_stopping": "never"},
        "length_penalty": POWER,
    },
}


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded with probable tokens, so that reading padding as text has an effect."""
    ids, mask = prompts(np.random.default_rng(seed), LENGTHS)
    return np.where(mask, ids, ids[0]), mask


@pytest.fixture(scope="module")
def by_hand(reader):
    """Returns for each mode and seed the texts of all rows, with scores."""

    def texts(way: str, seed: int) -> list[tuple[float, list[int]]]:
        ids, mask = batch(seed)
        rows = [words[real == 1].tolist() for words, real in zip(ids, mask, strict=True)]
        search = greedy_by_hand if way == "greedy" else beams_by_hand
        return [found for prompt in rows for found in search(reader, prompt)]

    return {(way, seed): texts(way, seed) for way in WAYS for seed in range(SEEDS)}


def right(model, by_hand, way: str) -> bool:
    """Returns whether all texts and scores equal the reference, and the texts are padded."""
    options = {"max_new_tokens": NEW, "eos_token_id": ENDS, "pad_token_id": PAD}
    options |= {"return_dict_in_generate": True}
    options |= {"repetition_penalty": PENALTY} | WAYS[way]
    for seed in range(SEEDS):
        found = minibert.generate(model, *batch(seed), **options)
        scores, texts = zip(*by_hand[way, seed], strict=True)
        longest = max(map(len, texts))
        padded = [text + [PAD] * (longest - len(text)) for text in texts]
        if found.sequences[:, max(LENGTHS) :].tolist() != padded:
            return False
        if way == "beams" and not np.allclose(found.sequences_scores, scores, rtol=1e-4):
            return False
    return True


@contextlib.contextmanager
def replaced(owner, name, wrong):
    """`owner.name` replaced by `wrong(original)`, for programs compiled meanwhile only."""
    original = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
    compilation.program.cache_clear()
    setattr(owner, name, wrong(original))
    try:
        yield
    finally:
        setattr(owner, name, original)
        compilation.program.cache_clear()


class Meddling:
    """A model that is called with changed arguments."""

    def __init__(self, model, change):
        self.model, self.change = model, change
        self.init_cache, self.base_model = model.init_cache, model.base_model

    def __call__(self, **given):
        return self.model(**given | self.change(given))


def meddle(**changes):
    """A mistake in the arguments of the model."""

    def change(given):
        return {name: changed(given[name]) for name, changed in changes.items()}

    return lambda original: lambda model, *rest: original(Meddling(model, change), *rest)


def unpadded(original):
    """Rows that have ended continue, although they count as ended."""

    def write(state, logits, rules, plan):
        going = jnp.zeros_like(state.done)
        new = original(state._replace(done=going), logits, rules, plan)
        return new._replace(done=state.done | new.done)

    return write


def penalized_padding(original):
    def process(penalty, scores, history):
        real = jnp.arange(history.real.shape[1]) < history.start + history.step
        real = jnp.broadcast_to(real, history.real.shape)
        return original["repetition_penalty"](penalty, scores, history._replace(real=real))

    return {**original, "repetition_penalty": process}


def forgotten_scores(original):
    def candidates(state, *rest):
        scores = jnp.maximum(state.running.scores, jnp.where(state.step > 0, 0, beams.IMPOSSIBLE))
        return original(state._replace(running=state.running._replace(scores=scores)), *rest)

    return candidates


def left_in_place(original):
    return lambda self, rows: self if len(rows) == self.batch else original(self, rows)


def one_back(original):
    def append(self, key, value):
        written = original(self._replace(index=jnp.maximum(self.index - 1, 0)), key, value)
        return written._replace(index=self.index)

    return append


def ends_elsewhere(original):
    def prepare(*arguments):
        plan, rules, prompt = original(*arguments)
        return plan, rules._replace(ends=np.roll(rules.ends, 1)), prompt

    return prepare


def one_too_few(original):
    return lambda state, rules: original(state, rules._replace(limit=rules.limit - 1))


def of_the_next_length(original):
    return lambda steps, penalty: original(steps + 1, penalty)[1:]


# Where a mistake is planted, the mistake, and which of the ways sees it.
MISTAKES = {
    "positions count padding": (
        decoding,
        "prefill",
        meddle(position_ids=lambda given: jnp.broadcast_to(jnp.arange(16), given.shape)),
        "greedy",
    ),
    "positions lag behind": (
        decoding,
        "read",
        meddle(position_ids=lambda given: given - 1),
        "greedy",
    ),
    "a prompt's padding is seen": (
        decoding,
        "prefill",
        meddle(attention_mask=jnp.ones_like),
        "greedy",
    ),
    "padding is seen later": (
        KVCache,
        "attention_mask",
        lambda original: (
            lambda self, queries, causal: causal_mask(queries, self.length, self.index)
        ),
        "greedy",
    ),
    "the text is not seen": (
        KVCache,
        "extended",
        lambda original: lambda self, tokens: original(self, tokens & (tokens.shape[1] > 1)),
        "greedy",
    ),
    "the cache's last slot is overwritten": (LayerCache, "append", one_back, "greedy"),
    "rows that have ended go on": (decoding, "choose", unpadded, "greedy"),
    "ends do not end": (generation, "prepare", ends_elsewhere, "greedy"),
    "ends do not end beams": (generation, "prepare", ends_elsewhere, "beams"),
    "one token too few": (decoding, "unfinished", one_too_few, "greedy"),
    "padding is penalized": (processors, "PROCESSORS", penalized_padding, "greedy"),
    "padding is penalized in beams": (processors, "PROCESSORS", penalized_padding, "beams"),
    "the length penalty's length is one off": (planning, "_powers", of_the_next_length, "beams"),
    "the beams' cache is left in place": (KVCache, "rows", left_in_place, "beams"),
    "beams forget their scores": (beams, "_candidates", forgotten_scores, "beams"),
}


@pytest.mark.parametrize("way", WAYS)
def test_without_a_mistake_all_is_right(model, by_hand, way):
    assert right(model, by_hand, way)
    lengths = [len(text) for key, texts in by_hand.items() for _, text in texts if way in key]
    assert min(lengths) < NEW == max(lengths)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(model, by_hand, mistake):
    owner, name, wrong, way = MISTAKES[mistake]
    with replaced(owner, name, wrong):
        assert not right(model, by_hand, way)
