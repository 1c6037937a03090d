"""Packing: the rows and programs of texts, and embeddings equal to those of each text alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sentences
from conftest import FLOAT64, NEIGHBOURS
from generating import compilations
from minibert.embedding.modules import Normalize, Pooling, SentenceModel
from minibert.errors import InputError
from minibert.nn.pooling import POOLINGS
from minibert.text.batching import (
    Batch,
    check_width,
    numbered,
    own_text,
    packed_rows,
    plan_packed,
    slots_of,
)
from slowly import slow_but
from tiny import drawn

DRAW = np.random.default_rng(0)


def test_widths_are_few():
    """Each needs programs of its own."""
    found = {width: check_width(width, 512, False) for width in range(1, 513)}
    assert all(width <= size for width, size in found.items())
    assert {found[size] for size in (8, 24, 64, 128, 256, 512)} == {8, 24, 64, 128, 256, 512}
    assert len(set(found.values())) == 24


@pytest.mark.parametrize("width", [8, 40, 64])
@pytest.mark.parametrize("budget", [1, 64, 300])
def test_every_text_has_a_position(width, budget):
    lengths = DRAW.integers(1, width + 1, 100).tolist()
    batches = plan_packed(lengths, width, budget)
    assert sorted(np.concatenate([batch.indices for batch in batches])) == list(range(100))
    for batch in batches:
        totals = np.zeros(batch.rows, int)
        np.add.at(totals, batch.places[:, 0], np.take(lengths, batch.indices))
        assert 0 < totals[: batch.used].min() <= totals.max() <= width
        assert len({tuple(place) for place in batch.places.tolist()}) == len(batch.indices)
        assert batch.places[:, 1].max() < slots_of(width)
        assert batch.rows * width <= max(budget, width)
    assert len({batch.rows for batch in batches[:-1]}) <= 1
    assert plan_packed([], width, budget) == []


def test_rows_are_nearly_full():
    """Of texts of natural lengths; a row for each would be a third text."""
    lengths = np.exp(DRAW.normal(np.log(40), 0.6, 1000)).clip(1, 128).astype(int).tolist()
    (batch,) = plan_packed(lengths, 128, 1 << 20)
    assert sum(lengths) / (batch.used * 128) > 0.97


def pictures(masks) -> list[list[str]]:
    masks = np.asarray(masks)
    return [["".join(".x"[int(cell)] for cell in row) for row in mask] for mask in masks]


def test_arrays():
    texts = [np.array([5, 6, 7]), np.array([8]), np.array([9, 9])]
    batch = Batch(np.arange(3), 2, 4, np.array([[0, 0], [0, 1], [1, 0]]))
    ids, segments = packed_rows(texts, batch, pad=1)
    assert ids.tolist() == [[5, 6, 7, 8], [9, 9, 1, 1]]
    assert segments.tolist() == [[1, 1, 1, 2], [1, 1, 0, 0]]
    counted = jnp.ones_like(segments, bool)
    assert numbered(counted, jnp.asarray(segments)).tolist() == [[1, 2, 3, 1], [1, 2, 1, 2]]
    assert pictures(own_text(jnp.asarray(segments))) == [
        ["xxx.", "xxx.", "xxx.", "...x"],
        ["xx..", "xx..", "..xx", "..xx"],
    ]
    assert pictures(own_text(jnp.asarray(segments), causal=True)) == [
        ["x...", "xx..", "xxx.", "...x"],
        ["x...", "xx..", "..x.", "..xx"],
    ]


@pytest.mark.parametrize("mode", slow_but(POOLINGS, "mean"))
@pytest.mark.parametrize("name", ["BertModel", "GPT2Model"])
def test_as_if_alone(name, mode):
    """For every pooling, with a prompt excluded, the other texts of a row change nothing."""
    with jax.enable_x64(True):
        chain = [Pooling(mode, 24, include_prompt=False), Normalize()]
        model = SentenceModel(drawn(name), chain)
        texts = [DRAW.integers(1, 90, size) for size in (9, 4, 2, 7)]
        ids = np.zeros((2, 24), np.int64)
        segments = np.zeros((2, 24), np.int64)
        for row, start, number in ((0, 0, 0), (0, 9, 1), (0, 13, 2), (1, 0, 3)):
            ids[row, start : start + len(texts[number])] = texts[number]
            segments[row, start : start + len(texts[number])] = 1 + (start > 0) + (start > 9)
        packed = jax.jit(lambda model, ids: model.packed(ids, jnp.asarray(segments), 1))
        single = jax.jit(lambda model, text: model(text, jnp.ones(text.shape, bool), 1)[1])
        vectors = packed(model, ids)
        places = [(0, 0), (0, 1), (0, 2), (1, 0)]
        for text, place in zip(texts, places, strict=True):
            np.testing.assert_allclose(vectors[place], single(model, text[None])[0], atol=FLOAT64)
        other = np.where(segments == 2, 1 + ids % 80, ids)
        changed = packed(model, other)
        np.testing.assert_array_equal(changed[0, 0], vectors[0, 0])
        np.testing.assert_array_equal(changed[0, 2], vectors[0, 2])
        assert np.abs(changed[0, 1] - vectors[0, 1]).max() > 1000 * FLOAT64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertModel", "GPT2Model"])
def test_encoding(name):
    """Encodes in few programs and in order; texts that are too long get rows of their own."""
    encoder = sentences.encoder(name, prompts={"query": "it is "})
    texts = sentences.texts(150, 60)
    expected = encoder.encode(texts, prompt_name="query", token_budget=200)
    with compilations() as found:
        vectors = encoder.encode(texts, prompt_name="query", token_budget=200, packing=24)
    assert len(found) <= 2  # of the packed rows, and of a rest
    np.testing.assert_allclose(vectors, expected, atol=NEIGHBOURS, rtol=0)
    assert encoder.encode([], packing=24).shape == (0, 24)
    assert encoder.encode("the", packing=8).shape == (24,)


@pytest.mark.slow
def test_chunks(monkeypatch):
    encoder = sentences.encoder()
    texts = sentences.texts(150, 60, seed=3)
    expected = encoder.encode(texts)
    monkeypatch.setattr("minibert.embedding.encoding.CHUNK", 16)
    vectors = encoder.encode(texts, token_budget=100, packing=32)
    np.testing.assert_allclose(vectors, expected, atol=NEIGHBOURS, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"packing": 0}, "packing: "),
        ({"packing": 2.5}, "packing: "),
        ({"packing": 41}, "packing: 41 positions; expected at most 40"),
        ({"packing": 8, "output_value": "token_embeddings"}, "packing: expected None, as token"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        sentences.encoder().encode(["the"], **arguments)
