"""Attention by itself: masks as pictures, rows that may look nowhere, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minibert.attention import (
    attend,
    attention_mask_to_bool,
    causal_mask,
    merge_heads,
    split_heads,
)

DRAW = np.random.default_rng(0)


def qkv(queries=4, keys=4, dtype=jnp.float32):
    shapes = [(2, 3, queries, 8), (2, 3, keys, 8), (2, 3, keys, 8)]
    return [jnp.asarray(DRAW.normal(size=shape), dtype) for shape in shapes]


def picture(mask) -> list[str]:
    return ["".join(".x"[int(cell)] for cell in row) for row in np.asarray(mask)]


def test_padding_mask():
    mask = attention_mask_to_bool(jnp.array([[1, 1, 1, 0], [1, 0, 0, 0]]))
    assert mask.shape == (2, 1, 1, 4)
    assert picture(mask[:, 0, 0]) == [
        "xxx.",
        "x...",
    ]


def test_full_mask():
    causal = jnp.tri(4, dtype=int)[None].repeat(2, 0)
    assert picture(attention_mask_to_bool(causal)[0, 0]) == [
        "x...",
        "xx..",
        "xxx.",
        "xxxx",
    ]


@pytest.mark.parametrize(
    ("queries", "keys", "offset", "expected"),
    [
        (3, 3, 0, ["x..", "xx.", "xxx"]),
        (1, 4, 0, ["x..."]),
        (1, 4, 3, ["xxxx"]),
        (2, 5, 2, ["xxx..", "xxxx."]),
        (3, 4, 0, ["x...", "xx..", "xxx."]),
        (2, 3, 9, ["xxx", "xxx"]),
        (4, 2, 0, ["x.", "xx", "xx", "xx"]),
    ],
)
def test_causal_mask(queries, keys, offset, expected):
    mask = causal_mask(queries, keys, offset)
    assert mask.shape == (1, 1, queries, keys)
    assert picture(mask[0, 0]) == expected
    traced = jax.jit(causal_mask, static_argnums=(0, 1))(queries, keys, jnp.asarray(offset))
    assert picture(traced[0, 0]) == expected


def test_causal_mask_and_padding():
    """Left and right padding, beside each other."""
    padding = attention_mask_to_bool(jnp.array([[0, 1, 1], [1, 1, 0]]))
    left, right = np.asarray(padding & causal_mask(3, 3))[:, 0]
    assert picture(left) == ["...", ".x.", ".xx"]
    assert picture(right) == ["x..", "xx.", "xx."]


def test_heads_are_neighbours_in_the_hidden_axis():
    hidden = jnp.arange(12.0).reshape(1, 2, 6)
    heads = split_heads(hidden, 3)
    assert heads.tolist() == [[[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]]
    np.testing.assert_array_equal(merge_heads(heads), hidden)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 24])
def test_merging_undoes_splitting(heads):
    hidden = jnp.asarray(DRAW.normal(size=(2, 5, 24)))
    split = split_heads(hidden, heads)
    assert split.shape == (2, heads, 5, 24 // heads)
    np.testing.assert_array_equal(merge_heads(split), hidden)


def test_weights_follow_the_mask():
    mask = causal_mask(4, 4)
    _, weights = attend(*qkv(), mask=mask)
    assert picture(np.asarray(weights[0, 0]) > 0) == picture(mask[0, 0])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_a_row_that_may_look_nowhere_looks_everywhere_alike():
    query, key, value = qkv()
    context, weights = attend(query, key, value, mask=jnp.zeros((2, 1, 1, 4), bool))
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)
    np.testing.assert_allclose(
        context, np.tile(value.mean(2, keepdims=True), (1, 1, 4, 1)), rtol=1e-5
    )


def test_against_jax_nn():
    query, key, value = qkv(queries=5, keys=7)
    mask = jnp.asarray(DRAW.random((2, 1, 5, 7)) < 0.7)
    swapped = [array.swapaxes(1, 2) for array in (query, key, value)]
    expected = jax.nn.dot_product_attention(*swapped, mask=mask).swapaxes(1, 2)
    np.testing.assert_allclose(attend(query, key, value, mask=mask)[0], expected, atol=1e-5)


def test_scale():
    """1/√head_dim unless it is given; what it multiplies is the scores."""
    query, key, value = qkv()
    given, default = attend(query, key, value, scale=0.3), attend(query, key, value)
    np.testing.assert_allclose(attend(query, key, value, scale=8**-0.5)[1], default[1], rtol=1e-6)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key)
    np.testing.assert_allclose(given[1], jax.nn.softmax(0.3 * scores), rtol=1e-5)
    assert np.abs(given[1] - default[1]).max() > 1e-3


def test_head_mask_and_dropout():
    query, key, value = qkv()
    context, _ = attend(query, key, value)
    halved, _ = attend(query, key, value, head_mask=jnp.array([1.0, 0.0, 0.5]))
    np.testing.assert_allclose(halved, context * np.array([1, 0, 0.5])[:, None, None], atol=1e-6)
    doubled, _ = attend(query, key, value, dropout=lambda weights: 2 * weights)
    np.testing.assert_allclose(doubled, 2 * context, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_softmax_is_in_float32(dtype):
    query, key, value = qkv(dtype=dtype)
    context, weights = attend(query, key, value)
    assert context.dtype == weights.dtype == dtype
    exact = attend(*(array.astype(jnp.float32) for array in (query, key, value)))[1]
    assert np.abs(weights.astype(jnp.float32) - exact).max() <= float(jnp.finfo(dtype).eps)
