"""Attention by itself: masks as pictures, rows that may look nowhere, dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minibert.attention import attend, attention_mask_to_bool

DRAW = np.random.default_rng(0)


def qkv(queries=4, keys=4, dtype=jnp.float32):
    shapes = [(2, queries, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8)]
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


def test_weights_follow_the_mask():
    mask = attention_mask_to_bool(jnp.tri(4, dtype=int)[None].repeat(2, 0))
    _, weights = attend(*qkv(), mask=mask)
    assert picture(np.asarray(weights[0, 0]) > 0) == picture(mask[0, 0])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_a_row_that_may_look_nowhere_looks_everywhere_alike():
    query, key, value = qkv()
    context, weights = attend(query, key, value, mask=jnp.zeros((2, 1, 1, 4), bool))
    np.testing.assert_allclose(weights, 0.25, rtol=1e-6)
    np.testing.assert_allclose(
        context, np.tile(value.mean(1, keepdims=True), (1, 4, 1, 1)), rtol=1e-5
    )


def test_against_jax_nn():
    query, key, value = qkv(queries=5, keys=7)
    mask = jnp.asarray(DRAW.random((2, 1, 5, 7)) < 0.7)
    expected = jax.nn.dot_product_attention(query, key, value, mask=mask)
    np.testing.assert_allclose(attend(query, key, value, mask=mask)[0], expected, atol=1e-5)


def test_head_mask_and_dropout():
    query, key, value = qkv()
    context, _ = attend(query, key, value)
    halved, _ = attend(query, key, value, head_mask=jnp.array([1.0, 0.0, 0.5]))
    np.testing.assert_allclose(halved, context * np.array([1, 0, 0.5])[:, None], atol=1e-6)
    doubled, _ = attend(query, key, value, dropout=lambda weights: 2 * weights)
    np.testing.assert_allclose(doubled, 2 * context, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_softmax_is_in_float32(dtype):
    query, key, value = qkv(dtype=dtype)
    context, weights = attend(query, key, value)
    assert context.dtype == weights.dtype == dtype
    exact = attend(*(array.astype(jnp.float32) for array in (query, key, value)))[1]
    assert np.abs(weights.astype(jnp.float32) - exact).max() <= float(jnp.finfo(dtype).eps)
