"""Poolings and choices of layers: as pictures, and beside sentence-transformers."""

import importlib.util
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import EMBEDDING
from minibert import pooling
from minibert.errors import InputError
from minibert.nn.pooling import LAYERS, POOLINGS, pool

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None,
    reason="the reference is sentence-transformers",
)
# Two features; padding holds what must not be seen.
BAD = (np.nan, np.inf)
LEFT = jnp.array([[BAD, BAD, (1.0, 8.0), (3.0, 2.0), (8.0, 5.0)]])
RIGHT = jnp.array([[(1.0, 8.0), (3.0, 2.0), (8.0, 5.0), BAD, BAD]])
SIDES = {"left": (LEFT, LEFT[..., 0] > 0), "right": (RIGHT, RIGHT[..., 0] > 0)}
PICTURES = {
    "cls": (1, 8),
    "max": (8, 8),
    "mean": (4, 5),
    "mean_sqrt_len_tokens": (12 / 3**0.5, 15 / 3**0.5),
    "weightedmean": ((1 + 6 + 24) / 6, (8 + 4 + 15) / 6),
    "lasttoken": (8, 5),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", POOLINGS)
def test_pictures(mode, side):
    tokens, mask = SIDES[side]
    np.testing.assert_allclose(POOLINGS[mode](tokens, mask)[0], PICTURES[mode], rtol=1e-6)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", POOLINGS)
def test_after_a_prompt(mode, side):
    """The first token is a prompt's: it is not pooled, but keeps its number in the weights."""
    expected = {
        "cls": (3, 2),
        "max": (8, 5),
        "mean": (5.5, 3.5),
        "mean_sqrt_len_tokens": (11 / 2**0.5, 7 / 2**0.5),
        "weightedmean": ((6 + 24) / 5, (4 + 15) / 5),
        "lasttoken": (8, 5),
    }[mode]
    np.testing.assert_allclose(pool(*SIDES[side], [mode], 1)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("mode", POOLINGS)
def test_nothing_left_is_zeros(mode):
    tokens, mask = SIDES["right"]
    assert (pool(tokens, mask, [mode], 3) == 0).all()
    assert (POOLINGS[mode](tokens, jnp.zeros_like(mask)) == 0).all()


@pytest.mark.parametrize("mode", POOLINGS)
def test_half_precision_sums_wide(mode):
    """In bfloat16 alone, a sum of 300 numbers would stop growing at 256."""
    tokens = jnp.ones((1, 300, 2), jnp.bfloat16)
    found = POOLINGS[mode](tokens, jnp.ones((1, 300), bool))
    assert found.dtype == jnp.bfloat16
    expected = 300**0.5 if mode == "mean_sqrt_len_tokens" else 1
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=4e-3)


@needs_reference
@pytest.mark.parametrize("prompt_length", [0, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_combination_is_sentence_transformers(side, prompt_length):
    """All 63 sets of modes, on rows of 3 to 9 tokens, padded on one side or the other."""
    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling

    draw = np.random.default_rng(0)
    tokens = draw.standard_normal((7, 9, 5)).astype(np.float32)
    mask = np.arange(9) < np.arange(3, 10)[:, None]
    mask = mask[:, ::-1].copy() if side == "left" else mask
    for count in range(1, len(POOLINGS) + 1):
        for modes in itertools.combinations(POOLINGS, count):
            reference = Pooling(5, modes, include_prompt=False)
            features = {
                "token_embeddings": torch.tensor(tokens),
                "attention_mask": torch.tensor(mask.astype(np.int64)),
                "prompt_length": prompt_length,
            }
            expected = reference(features)["sentence_embedding"]
            found = pool(jnp.asarray(tokens), jnp.asarray(mask), modes, prompt_length)
            np.testing.assert_allclose(found, expected, atol=EMBEDDING, rtol=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("index", "expected"), [(0, (1, 8)), (1, (3, 2)), (2, (8, 5)), (-1, (8, 5)), (-3, (1, 8))]
)
def test_any_token(index, expected, side):
    np.testing.assert_array_equal(pooling.token(*SIDES[side], index)[0], expected)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("index", [3, 4, 5, 99, -4, -5, -6, -99])
def test_a_token_that_is_not_there(index, side):
    assert np.isnan(pooling.token(*SIDES[side], index)).all()


def test_layers():
    draw = np.random.default_rng(0)
    states = [jnp.asarray(draw.standard_normal((2, 3, 4)), jnp.float32) for _ in range(6)]
    expected = {
        "last": states[5],
        "mean_of_last_four": np.mean(states[2:], axis=0),
        "sum_of_last_four": np.sum(states[2:], axis=0),
        "last_four_concatenated": np.concatenate(states[2:], axis=-1),
    }
    assert LAYERS.keys() == expected.keys()
    for name, choose in LAYERS.items():
        np.testing.assert_allclose(choose(states), expected[name], atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="hidden_states: expected at least 4, found 3"):
        pooling.mean_of_last_four(states[:3])
