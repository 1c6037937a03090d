"""Similarities, searches and quantisation of vectors of any scale, compared with NumPy."""

import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from minibert.embedding.quantization import quantize_embeddings
from minibert.embedding.similarity import (
    SIMILARITIES,
    semantic_search,
    similarity,
    similarity_pairwise,
)
from minibert.errors import InputError
from minibert.nn.numerics import unit

FLOAT32 = (1e20, 1e30, 3e37, 1e-20, 1e-30, 1e-38)
FLOAT64 = (1e200, 1e300, 1e-200, 1e-300)
DRAW = np.random.default_rng(0)
ONE, OTHER = DRAW.standard_normal((12, 24)), DRAW.standard_normal((30, 24))


def exact(one, other, name):
    """Returns the result computed in long double, which has a sufficient range."""
    one, other = one.astype(np.longdouble), other.astype(np.longdouble)
    if name == "cosine":
        one, other = (v / np.sqrt((v**2).sum(-1, keepdims=True)) for v in (one, other))
    if name in ("cosine", "dot"):
        return one @ other.T
    apart = one[:, None] - other
    return -np.sqrt((apart**2).sum(-1)) if name == "euclidean" else -np.abs(apart).sum(-1)


def close(found, expected):
    """Asserts equality where the dtype can hold the result, otherwise infinity or almost zero."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = expected.astype(found.dtype)
    limits = np.finfo(found.dtype)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(rounded))
    held = np.isfinite(rounded)
    largest = np.abs(rounded[held]).max(initial=limits.tiny)
    np.testing.assert_array_less(np.abs(found[held] - rounded[held]), 30 * limits.eps * largest)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float32, s) for s in FLOAT32] + [(np.float64, s) for s in FLOAT64]
)
def test_any_scale(dtype, scale, name):
    one, other = ((v * scale).astype(dtype) for v in (ONE, OTHER))
    for first, second in ((one, other), (one, OTHER.astype(dtype))):
        expected = exact(first, second, name)
        close(similarity(first, second, name), expected)
        paired = similarity_pairwise(first, second[:12], name)
        close(paired, np.diagonal(expected[:, :12]))
    hits = semantic_search(one, other, top_k=4, score_function=name, corpus_chunk_size=7)
    order = np.argsort(-exact(one, other, name), axis=1, kind="stable")[:, :4]
    assert [[hit["corpus_id"] for hit in some] for some in hits] == order.tolist()


def test_rows_of_different_scales():
    scales = 10.0 ** DRAW.integers(-37, 37, 30)[:, None]
    corpus = (OTHER * scales).astype(np.float32)
    close(similarity(ONE.astype(np.float32), corpus), exact(ONE, OTHER, "cosine"))
    close(similarity(corpus[0], corpus)[0], exact(OTHER[:1], OTHER, "cosine")[0])


@pytest.mark.parametrize("name", SIMILARITIES)
def test_each_score_depends_on_its_own_vectors_alone(name):
    """Beside rows of any other scale."""
    one, other = (10.0 ** DRAW.integers(-290, 290, 12)[:, None] * v[:12] for v in (ONE, OTHER))
    expected = exact(one, other, name)
    for found, wanted in (
        (similarity(one, other, name), expected),
        (similarity_pairwise(one, other, name), np.diagonal(expected)),
    ):
        with np.errstate(over="ignore", under="ignore"):
            rounded = wanted.astype(np.float64)
        assert np.count_nonzero(rounded[np.isfinite(rounded)]) > 5
        np.testing.assert_allclose(found, rounded, rtol=1e-11, atol=1e-300)
        assert (found[rounded == 0] == 0).all()


def test_scales_that_cancel():
    one, other = ONE * 1e200, OTHER * 1e-200
    close(similarity(one, other, "dot"), exact(ONE, OTHER, "dot"))
    close(similarity_pairwise(one, other[:12], "dot"), (ONE * OTHER[:12]).sum(-1))
    hits = semantic_search(one, other, top_k=30, score_function="dot", corpus_chunk_size=7)
    for some, row in zip(hits, exact(ONE, OTHER, "dot"), strict=True):
        assert [hit["corpus_id"] for hit in some] == np.argsort(-row).tolist()
        np.testing.assert_allclose([hit["score"] for hit in some], np.sort(row)[::-1])


@pytest.mark.parametrize(("dtype", "step"), [(np.float32, 1e-23), (np.float64, 1e-200)])
def test_small_differences(dtype, step):
    one, other = np.array([[1, step]], dtype), np.array([[1, 0]], dtype)
    for name in ("euclidean", "manhattan"):
        np.testing.assert_array_equal(similarity_pairwise(one, other, name), -one[:, 1])


@pytest.mark.parametrize("scale", [1, 1e200])
@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_pair_of_single_vectors(name, scale):
    found = similarity_pairwise(ONE[0] * scale, OTHER[0] * scale, name)
    assert found.shape == ()
    np.testing.assert_array_equal(
        found, similarity_pairwise(ONE * scale, OTHER[:12] * scale, name)[0]
    )


def test_ordinary_vectors_are_computed_as_ever():
    """To the last bit."""
    vectors = (DRAW.standard_normal((50, 384)) / 20).astype(np.float32)
    lengths = np.sqrt((vectors**2).sum(-1, keepdims=True))
    np.testing.assert_array_equal(unit(vectors), vectors / lengths)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int8, np.longdouble])
def test_other_dtypes(dtype):
    vectors = (100 * OTHER).astype(dtype)
    wide = vectors.astype(np.float64)
    found = similarity(vectors, vectors)
    assert found.dtype == (np.float64 if dtype is np.longdouble else np.float32)
    close(found, exact(wide, wide, "cosine"))


def test_subnormal_and_zero():
    least = np.float32(1e-45)
    vectors = np.array([[least, 0, 0], [0, least, least], [0, 0, 0]], np.float32)
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(similarity(vectors, vectors), expected, atol=1e-7)
    assert not np.signbit(unit(np.zeros((2, 3), np.float32))).any()


@pytest.mark.parametrize("scale", [1, 1e20, 1e30, 1e-20, 1e-30, 1e-36])
def test_on_a_device(scale):
    """Values and gradients of the function that `Normalize` and the contrastive loss use."""
    vectors = (ONE * scale).astype(np.float32)
    vectors[np.abs(vectors) < 2e-38] = 0  # what a compiler may take for zero
    weights = OTHER[:12]
    wide = vectors.astype(np.float64) / scale
    lengths = np.sqrt((wide**2).sum(-1, keepdims=True))
    expected = wide / lengths
    slopes = (weights - expected * (weights * expected).sum(-1, keepdims=True)) / lengths / scale
    for compiled in (unit, jax.jit(unit)):
        np.testing.assert_allclose(compiled(jnp.asarray(vectors)), expected, atol=2e-7)

    def loss(vectors):
        return (unit(vectors) * jnp.asarray(weights, jnp.float32)).sum()

    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
        found = np.asarray(gradient(jnp.asarray(vectors)), np.float64)
        np.testing.assert_allclose(found, slopes, atol=2e-6 * np.abs(slopes).max())


def test_the_gradient_of_zero_is_pytorchs():
    torch = pytest.importorskip("torch", reason="the reference is PyTorch")
    weights = np.arange(4, dtype=np.float32)
    zeros = torch.zeros(2, 4, requires_grad=True)
    (torch.nn.functional.normalize(zeros, dim=-1) * torch.tensor(weights)).sum().backward()
    found = jax.grad(lambda vectors: (unit(vectors) * weights).sum())(jnp.zeros((2, 4)))
    np.testing.assert_allclose(found, zeros.grad)


def refused(vectors, said):
    good = np.ones((2, 3), np.float32)
    for call in (
        lambda: similarity(vectors, good),
        lambda: similarity(good, vectors),
        lambda: similarity_pairwise(vectors, good),
        lambda: semantic_search(good, vectors),
        lambda: semantic_search(vectors, good),
        lambda: quantize_embeddings(vectors, "binary"),
    ):
        with pytest.raises(InputError, match=f"embeddings: .*{said}"):
            call()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite(value):
    refused(np.array([[1, 2, 3], [4, value, 6]]), "finite numbers; row 1 holds NaN or infinity")
    refused([[1, 2, value], [4, value, 6]], "row 0 .and 1 more rows. holds")
    with pytest.raises(InputError, match="the vector holds NaN"):
        similarity(np.array([1, value, 3]), np.ones(3))


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.ones((2, 3), complex), "complex128"),
        (jnp.ones((2, 3), jnp.complex64), "complex64"),
        ([["1", "2", "3"]], "found list of <U1"),
        (np.array([[1, None, 3]]), "object"),
        (np.array([["2020-01-01"] * 3], "M8[D]"), "datetime64"),
        ([[1, 2, 3], [1]], "found list"),
        (np.ones((2, 3), [("x", float)]), r"\('x'"),
    ],
    ids=str,
)
def test_what_is_no_array_of_real_numbers(vectors, said):
    refused(vectors, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranges": [[0, 5], [1, 4]]}, "ranges: .*feature 1 has 5.0 and 4.0"),
        ({"ranges": [[0, np.nan], [1, 4]]}, "ranges: expected finite numbers; row 0"),
        ({"ranges": [[0, 0], [1, np.inf]]}, "ranges: expected finite numbers; row 1"),
        ({"ranges": [[0, 0], [1]]}, "ranges: expected an array"),
        ({"ranges": [[0, 0], [1, 1e300]]}, "ranges: expected numbers within float32's range"),
        ({"calibration_embeddings": [[0, np.nan]]}, "calibration_embeddings: .*row 0 holds"),
    ],
    ids=str,
)
def test_ranges(options, said):
    with pytest.raises(InputError, match=said):
        quantize_embeddings(np.ones((3, 2)), "int8", **options)


def test_embeddings_that_cannot_be_quantised():
    with pytest.raises(InputError, match="embeddings: expected numbers within float32's range"):
        quantize_embeddings(np.full((3, 2), 1e300), "float32")
    for whole in (np.ones((3, 2), int), np.ones((3, 2), bool)):
        with pytest.raises(InputError, match="embeddings: expected floating-point numbers"):
            quantize_embeddings(whole, "binary")


@pytest.mark.parametrize("scale", [3e38, 1e30, 1e-30, 1e-37, 1e-42])
def test_levels_of_any_scale(scale):
    fractions = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
    levels = quantize_embeddings(fractions * np.float32(scale), "uint8").astype(int)
    expected = quantize_embeddings(fractions, "uint8").astype(int)
    steps = 2 if scale < 1e-40 else 1  # 1e-42 is 700 subnormal numbers
    assert np.abs(levels - expected).max() <= steps


def test_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vectors = np.full((3, 4), 3e38, np.float32)
        for name in SIMILARITIES:
            similarity(vectors, -vectors, name)
            semantic_search(vectors, -vectors, score_function=name)
        quantize_embeddings(vectors, "int8", ranges=np.stack([-vectors[0], vectors[0]]))
