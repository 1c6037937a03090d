"""Training as in the project's courses: junk to text, half a window continued, a new last layer.

The text is that of Python's own help, letter by letter.
"""

import logging
import pydoc_data.topics
import re

import jax
import numpy as np
import pytest
from flax import nnx

import minibert
from minibert import train
from minibert.nn.tree import parameters

WIDTH, ROWS, STEPS = 64, 16, 400
LONG = 800  # steps
PROMPT = "The "
FIGURES = logging.getLogger(__name__)  # shown with --log-cli-level=INFO


@pytest.fixture(scope="module")
def text():
    topics = pydoc_data.topics.topics
    return " ".join(" ".join(topics[name].split()) for name in sorted(topics))[:300_000]


@pytest.fixture(scope="module")
def letters(text):
    return sorted(set(text))


@pytest.fixture(scope="module")
def windows(text, letters):
    """Returns the text as windows of ids, and the number of windows to train on, the first 90 %."""
    place = {letter: number for number, letter in enumerate(letters)}
    ids = np.array([place[letter] for letter in text], np.int32)
    found = ids[: len(ids) // WIDTH * WIDTH].reshape(-1, WIDTH)
    return found[: len(found) * 9 // 10], found[len(found) * 9 // 10 :]


def unigram(ids, vocabulary):
    """Returns the entropy of single letters in nats: the loss of a model without context."""
    shares = np.bincount(ids.ravel(), minlength=vocabulary) / ids.size
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def batches(windows, steps=STEPS, seed=0):
    draw = np.random.default_rng(seed)
    for _ in range(steps):
        yield windows[draw.integers(0, len(windows), ROWS)]


def known_words(model, letters, text):
    """Returns the fraction of a drawn continuation's words that the text contains."""
    place = {letter: number for number, letter in enumerate(letters)}
    prompt = np.array([[place[letter] for letter in PROMPT]])
    key = jax.random.key(0)
    ids = minibert.generate(
        model, prompt, max_new_tokens=56, do_sample=True, temperature=0.7, key=key
    )
    said = "".join(letters[number] for number in np.asarray(ids)[0])
    words = re.findall(r"\w+", said)[1:-1]
    have = set(re.findall(r"\w+", text))
    return sum(word in have for word in words) / max(len(words), 1), said


@pytest.mark.slow
def test_from_junk_to_text(text, letters, windows):
    config = minibert.GPT2Config.tiny(
        vocab_size=len(letters),
        n_embd=96,
        n_head=4,
        n_inner=384,
        n_positions=WIDTH,
        initializer_range=0.1,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0))
    rate = train.schedule(4e-3, LONG, warmup=20, kind="cosine")
    trainer = train.Trainer(model, train.causal_lm, train.adamw(rate))
    seen, held_out = windows
    judged = [{"input_ids": part, "labels": part} for part in np.split(held_out[:96], 3)]
    before, (junk, first) = trainer.evaluate(judged), known_words(trainer.model, letters, text)
    for ids in batches(seen, LONG):
        trainer.step({"input_ids": ids, "labels": ids})
    after, (read, last) = trainer.evaluate(judged), known_words(trainer.model, letters, text)
    perplexities = [float(np.exp(found["loss"])) for found in (before, after)]
    FIGURES.info("held-out perplexity of a letter: %.1f before, %.2f after", *perplexities)
    FIGURES.info("%.0f %% known words in %r, %.0f %% in %r", 100 * junk, first, 100 * read, last)
    assert perplexities[0] > 0.8 * len(letters)
    assert perplexities[1] < 6 < np.exp(unigram(held_out, len(letters)))
    assert read > 0.5 > junk


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_half_a_window_is_continued(family, letters, windows):
    """Memorising a few windows, in one pass, requires attention to the first half."""
    size = {"vocab_size": len(letters) + 1}
    if family == "bert":
        config = minibert.BertConfig.tiny(**size, max_position_embeddings=WIDTH)
        model = minibert.BertForMaskedLM(config, rngs=nnx.Rngs(0))
    else:
        config = minibert.GPT2Config.tiny(**size, n_positions=WIDTH)
        model = minibert.GPT2LMHeadModel(config, rngs=nnx.Rngs(0))
    objective = train.continuation(filler=len(letters))
    trainer = train.Trainer(model, objective, train.adamw(1e-2, weight_decay=0.0))
    few = windows[0][:ROWS]
    before = trainer.evaluate([{"input_ids": few}])
    for _ in range(STEPS):
        trainer.step({"input_ids": few})
    after = trainer.evaluate([{"input_ids": few}])
    entropy = unigram(few, len(letters))
    FIGURES.info("%s: %s before, %s after; single letters %.2f", family, before, after, entropy)
    assert before["loss"] > 4
    assert after["given"] < 0.1 * entropy
    assert after["continued"] < 0.5 * entropy


def test_a_new_last_layer_on_a_frozen_body():
    """Four actions instead of tokens: the body is bit for bit the trained one."""
    config = minibert.BertConfig.tiny(num_labels=4)
    body = minibert.BertForSequenceClassification(config, rngs=nnx.Rngs(0))
    before = {path: np.asarray(array) for path, array in parameters(body).items()}
    objective = train.classification(config)
    trainer = train.Trainer(body, objective, train.adamw(3e-2), trainable=["classifier.*"])
    draw = np.random.default_rng(0)
    reports = {"input_ids": draw.integers(0, 97, (8, 12)), "labels": np.arange(8) % 4}
    first = trainer.evaluate([reports])
    for _ in range(60):
        trainer.step(reports)
    assert trainer.evaluate([reports])["loss"] < 0.7 * first["loss"]
    after = parameters(trainer.model)
    moved = {path for path in before if before[path].tobytes() != np.asarray(after[path]).tobytes()}
    assert moved == {"classifier.kernel", "classifier.bias"}
    assert after.keys() == before.keys()
