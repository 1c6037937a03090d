"""Unit tests of attention: masks as pictures, rows that may attend to nothing, dtypes."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from minibert.nn import attention_cpu
from minibert.nn.attention import (
    attend,
    attention_mask_to_bool,
    causal_mask,
    merge_heads,
    split_heads,
)
from slowly import slow_but

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
    """Rows with left and right padding in one batch."""
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


def test_a_row_that_may_attend_to_nothing_attends_to_all_equally():
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


def test_a_bias_is_added_to_the_scores():
    query, key, value = qkv()
    bias = jnp.log(jnp.array([1.0, 2.0, 3.0, 4.0]))
    mask = jnp.array([True, True, False, True])[None, None, None]
    _, plain = attend(query, key, value, mask=mask)
    _, weights = attend(query, key, value, mask=mask, bias=jnp.broadcast_to(bias, (1, 1, 4, 4)))
    expected = plain * jnp.arange(1.0, 5)
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_scale():
    """The scale of the scores is 1/√head_dim by default."""
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


def hold(monkeypatch, size):
    """As if a CPU's caches held so many bytes of scores, of heads of any size."""
    monkeypatch.setattr(attention_cpu, "KERNEL_SCORES", size)
    monkeypatch.setattr(attention_cpu, "CACHED_SCORES", size)


def large(monkeypatch, batch=6, heads=4, queries=7, keys=5, seed=0, dtype=jnp.float64):
    """Projections whose scores count as too many for a CPU's caches: of three heads at a time."""
    hold(monkeypatch, 3 * queries * keys * 8)
    draw = np.random.default_rng(seed)
    shapes = [(batch, heads, size, 8) for size in (queries, keys, keys)]
    return [jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes]


MASKS = {
    "nothing": None,
    "keys": DRAW.random((6, 1, 1, 5)) < 0.6,
    "queries": DRAW.random((1, 1, 7, 5)) < 0.6,
    "both": DRAW.random((6, 1, 7, 5)) < 0.6,
    "no key": np.zeros((6, 1, 1, 5), bool),
}


BIASES = {
    "alike": DRAW.normal(size=(1, 1, 7, 5)),
    "of heads": DRAW.normal(size=(1, 4, 7, 5)),
    "of rows": DRAW.normal(size=(6, 1, 7, 5)),
    "of both": DRAW.normal(size=(6, 4, 7, 5)),
}
SEEN = {mask: (mask, None) for mask in MASKS}
SEEN |= {f"nothing, a bias {name}": ("nothing", name) for name in BIASES}
SEEN |= {f"{mask}, a bias of heads": (mask, "of heads") for mask in ("both", "no key")}


@pytest.mark.parametrize(
    "seen",
    slow_but(SEEN, "nothing", "both", "no key", "nothing, a bias of rows", "both, a bias of heads"),
)
@pytest.mark.parametrize("fitting", slow_but([1, 3, 11, 24], 3))
def test_in_groups(seen, fitting, monkeypatch):
    """Some heads, some rows, or all at a time; alone, derived, and for many at once."""
    with jax.enable_x64(True):
        arrays = large(monkeypatch)
        given = MASKS[SEEN[seen][0]], BIASES.get(SEEN[seen][1])
        mask, bias = (None if array is None else jnp.asarray(array) for array in given)
        alike = functools.partial(attend, scale=0.3, mask=mask, bias=bias)
        expected, weights = alike(*arrays)
        hold(monkeypatch, fitting * 7 * 5 * 8)
        program = jax.jit(alike)
        found = program(*arrays)
        assert ("while" in program.lower(*arrays).as_text()) == (fitting < 24)
        np.testing.assert_allclose(found[0], expected, atol=1e-12)
        np.testing.assert_allclose(found[1], weights, atol=1e-12)
        stacked = [jnp.stack([array, 2 * array]) for array in arrays]
        twice = jax.jit(jax.vmap(lambda *arrays: alike(*arrays)[0]))
        np.testing.assert_allclose(twice(*stacked)[0], expected, atol=1e-12)


def test_derivatives_are_plain(monkeypatch):
    """The derivative of a loop would store the intermediate values of every iteration."""
    with jax.enable_x64(True):
        arrays = large(monkeypatch)
        mask = jnp.asarray(MASKS["both"])

        def loss(*arrays, plain=False):
            return (attend(*arrays, mask=mask, sharded=plain)[0] ** 2).sum()

        grouped = jax.jit(jax.grad(loss, (0, 1, 2)))
        assert "while" not in grouped.lower(*arrays).as_text()
        found, along = grouped(*arrays), jax.jit(jax.jacfwd(loss))(*arrays)
        expected = jax.jit(jax.grad(functools.partial(loss, plain=True), (0, 1, 2)))(*arrays)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
        np.testing.assert_allclose(along, expected[0], atol=1e-12)


def test_sizes_of_groups():
    """Heads that XLA's kernel computes whole go many at a time; larger ones a few."""
    small, big = 256 * 256 * 4, 512 * 512 * 4
    assert attention_cpu._group(4, 12, small) == (4, 12)
    assert attention_cpu._group(32, 12, small) == (4, 12)
    assert attention_cpu._group(2, 100, small) == (1, 50)
    assert attention_cpu._group(4, 12, big) == (1, 4)
    assert attention_cpu._group(1, 3, big) == (1, 3)
    assert attention_cpu._group(2, 12, 1 << 30) == (1, 1)
    assert attention_cpu._group(0, 12, big) == (0, 12)


def test_no_rows():
    arrays = [jnp.zeros((0, 3, 4, 8))] * 3
    assert jax.jit(lambda *arrays: attend(*arrays)[0])(*arrays).shape == (0, 3, 4, 8)


def test_groups_are_for_programs_on_a_cpu(monkeypatch):
    arrays = large(monkeypatch, dtype=jnp.float32)
    program = jax.jit(lambda *arrays: attend(*arrays)[0])
    for platform, grouped in {"cpu": True, "tpu": False, "cuda": False}.items():
        text = program.trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        assert ("while" in text) == grouped, platform
    changed = jax.jit(lambda *arrays: attend(*arrays, head_mask=jnp.ones(4))[0])
    assert "while" not in changed.lower(*arrays).as_text()


def test_sizes_that_are_not_known(monkeypatch):
    """A program exported for any number of rows has no groups."""
    arrays = large(monkeypatch, dtype=jnp.float32)
    (rows,) = jax.export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype) for a in arrays]
    exported = jax.export.export(jax.jit(lambda *arrays: attend(*arrays)[0]))(*shapes)
    np.testing.assert_allclose(exported.call(*arrays), attend(*arrays)[0], atol=1e-5)


def test_what_is_split_over_devices_is_not_cut(monkeypatch):
    arrays = large(monkeypatch, dtype=jnp.float32)
    program = jax.jit(lambda *arrays: attend(*arrays, sharded=True)[0])
    assert "while" not in program.lower(*arrays).as_text()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_groups_in_narrow_dtypes(dtype, monkeypatch):
    arrays = large(monkeypatch, dtype=dtype)
    context = jax.jit(lambda *arrays: attend(*arrays)[0])(*arrays)
    assert context.dtype == dtype
    exact = attend(*(array.astype(jnp.float32) for array in arrays))[0]
    apart = np.abs(np.asarray(context, np.float32) - exact).max()
    assert apart <= 3 * float(jnp.finfo(dtype).eps) * np.abs(exact).max()
