"""Similarity functions, of all pairs or pairwise, and exact top-k search.

Names, signs and results are sentence-transformers' (`util/similarity.py`, `util/retrieval.py`): a
distance is negated, so that a higher score is more similar. Everything runs on the host, in float32
or wider: vectors are few numbers beside the model's work, and no shape is compiled.

The functions themselves take finite vectors of one dtype. `similarity`, `similarity_pairwise` and
`semantic_search` check that, and call them so that no square or product overflows or underflows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from minibert.checks import as_array, whole
from minibert.errors import InputError, shown
from minibert.finite import rows_not_finite
from minibert.norms import extreme, unit

ROWS = 4096  # vectors whose differences from others are in memory at once


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of the angle between each of the first and each of the second."""
    return dot(unit(one), unit(other))


def dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The dot product of each of the first with each of the second."""
    return one @ other.T


def euclidean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of each of the first from each of the second, negated."""
    first, second = one.astype(np.float64), other.astype(np.float64)  # squares cancel
    squares = (first**2).sum(1)[:, None] - 2 * first @ second.T + (second**2).sum(1)
    return -np.sqrt(np.maximum(squares, 0)).astype(one.dtype)


def manhattan(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of the absolute differences, negated."""
    result = np.empty((len(one), len(other)), one.dtype)
    for row, vector in enumerate(one):
        for start in range(0, len(other), ROWS):
            some = slice(start, start + ROWS)
            result[row, some] = -np.abs(other[some] - vector).sum(1)
    return result


def pairwise_cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`cosine` of the first of both, the second of both, …"""
    return pairwise_dot(unit(one), unit(other))


def pairwise_dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`dot` of the first of both, the second of both, …"""
    return (one * other).sum(-1)


def pairwise_euclidean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`euclidean` of the first of both, the second of both, …"""
    return -np.sqrt(((one - other) ** 2).sum(-1))


def pairwise_manhattan(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`manhattan` of the first of both, the second of both, …"""
    return -np.abs(one - other).sum(-1)


Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Similarity(NamedTuple):
    """A similarity function.

    Attributes:
        all_pairs: from `(first, dim)` and `(second, dim)` to `(first, second)`.
        pairwise: from `(texts, dim)` and `(texts, dim)` to `(texts,)`.
        degree: the power of a common factor of all vectors that the scores are multiplied by.
    """

    all_pairs: Compare
    pairwise: Compare
    degree: int


SIMILARITIES: dict[str, Similarity] = {
    "cosine": Similarity(cosine, pairwise_cosine, 0),
    "dot": Similarity(dot, pairwise_dot, 2),
    "euclidean": Similarity(euclidean, pairwise_euclidean, 1),
    "manhattan": Similarity(manhattan, pairwise_manhattan, 1),
}


def similarity(one: Any, other: Any, name: str = "cosine") -> np.ndarray:
    """Compares each of the first vectors with each of the second.

    Args:
        one, other: vectors `(texts, dim)`, or one `(dim,)`.
        name: one of `SIMILARITIES`.

    Returns:
        Scores `(first, second)`, in float32 or float64 as the vectors; what is beyond the dtype is
        infinite or zero, as is the exact result when it is rounded.

    Raises:
        InputError: the vectors are not arrays of finite real numbers of one width, or there is no
            such function.
    """
    function = _function(name)
    first, second = _alike(*(np.atleast_2d(v) for v in _both(one, other)))
    score, exponent = _in_range(function.all_pairs, function.degree, first, second)
    return _rounded(score(first, second), exponent, first.dtype)


def similarity_pairwise(one: Any, other: Any, name: str = "cosine") -> np.ndarray:
    """Compares the first vectors of both, the second of both, …: `(texts,)`.

    Takes and raises what `similarity` does; both must have the same shape.
    """
    function = _function(name)
    first, second = _alike(*_both(one, other))
    if first.shape != second.shape:
        raise InputError(f"embeddings: expected pairs, found {first.shape} and {second.shape}")
    score, exponent = _in_range(function.pairwise, function.degree, first, second)
    return _rounded(score(first, second), exponent, first.dtype)


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    *,
    top_k: Any = 10,
    score_function: str = "cosine",
    query_chunk_size: Any = 100,
    corpus_chunk_size: Any = 1 << 14,
) -> list[list[dict[str, int | float]]]:
    """Finds the vectors of a corpus that are most similar to each query.

    Args:
        query_embeddings: `(queries, dim)`, or one `(dim,)`.
        corpus_embeddings: `(corpus, dim)`.
        top_k: how many for each query.
        score_function: one of `SIMILARITIES`.
        query_chunk_size, corpus_chunk_size: how many are compared at once.

    Returns:
        For each query a list of `{"corpus_id": …, "score": …}`, the highest score first; of equal
        scores the one that comes first in the corpus.

    Raises:
        InputError: as for `similarity`; or a size is not positive.
    """
    top_k = whole("top_k", top_k, 1)
    query_chunk_size = whole("query_chunk_size", query_chunk_size, 1)
    corpus_chunk_size = whole("corpus_chunk_size", corpus_chunk_size, 1)
    compare, _, degree = _function(score_function)
    queries, corpus = _alike(
        np.atleast_2d(vectors("query_embeddings", query_embeddings)),
        np.atleast_2d(vectors("corpus_embeddings", corpus_embeddings)),
    )
    if by_angle := compare is cosine:
        compare, degree, queries = dot, 0, unit(queries)
    score, exponent = _in_range(compare, degree, queries, corpus)
    found = [_Best(top_k) for _ in queries]
    for offset in range(0, len(corpus), corpus_chunk_size):
        chunk = corpus[offset : offset + corpus_chunk_size]
        chunk = unit(chunk) if by_angle else chunk
        for start in range(0, len(queries), query_chunk_size):
            scores = score(queries[start : start + query_chunk_size], chunk)
            for number, row in enumerate(scores, start=start):
                found[number].add(row, offset)
    return [best.hits(exponent) for best in found]


class _Best:
    """The best scores of those seen; of equals the first."""

    def __init__(self, count: int):
        self._count = count
        self._scores, self._ids = np.empty(0), np.empty(0, np.int64)

    def add(self, scores: np.ndarray, offset: int) -> None:
        """Looks at the scores of the vectors from number `offset`."""
        ids = np.arange(len(scores))
        if len(self._scores) == self._count:
            ids = np.flatnonzero(scores > self._scores[-1])
        if len(ids) > self._count:
            least = -np.partition(-scores[ids], self._count - 1)[self._count - 1]
            ids = ids[scores[ids] >= least]
        if len(ids):
            joined = np.concatenate([self._scores, scores[ids]])
            order = np.argsort(-joined, kind="stable")[: self._count]
            self._scores = joined[order]
            self._ids = np.concatenate([self._ids, ids + offset])[order]

    def hits(self, exponent: int) -> list[dict[str, int | float]]:
        """The hits, highest score first; scores are multiplied by a power of two."""
        scores = _rounded(self._scores, exponent, self._scores.dtype)
        pairs = zip(self._ids.tolist(), scores.tolist(), strict=True)
        return [{"corpus_id": number, "score": score} for number, score in pairs]


def vectors(name: str, embeddings: Any) -> np.ndarray:
    """Checks a vector or several, and returns them in float32 or float64.

    Raises:
        InputError: they are not an array `(dim,)` or `(texts, dim)` of finite real numbers.
    """
    array = np.asarray(as_array(name, embeddings))
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool) or np.iscomplexobj(
        array
    ):
        raise InputError(f"{name}: expected real numbers, found {array.dtype}")
    if array.ndim not in (1, 2):
        raise InputError(f"{name}: expected shape (texts, dim) or (dim,), found {array.shape}")
    wide = np.issubdtype(array.dtype, np.floating) and array.dtype.itemsize > 4
    with np.errstate(over="ignore"):
        floats = array.astype(np.float64 if wide else np.float32, copy=False)
    if wrong := rows_not_finite(np.atleast_2d(floats)):
        which = f"row {wrong[0]}" if array.ndim == 2 else "the vector"
        more = f" (and {len(wrong) - 1} more rows)" if len(wrong) > 1 else ""
        raise InputError(f"{name}: expected finite numbers; {which}{more} holds NaN or infinity")
    return floats


def _both(one: Any, other: Any) -> tuple[np.ndarray, np.ndarray]:
    return vectors("first embeddings", one), vectors("second embeddings", other)


def _alike(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of one width, in the wider dtype of the two."""
    if one.shape[-1] != other.shape[-1]:
        raise InputError(
            f"embeddings: {one.shape[-1]} numbers each, but the others have {other.shape[-1]}"
        )
    dtype = np.result_type(one, other)
    return one.astype(dtype, copy=False), other.astype(dtype, copy=False)


def _in_range(
    compare: Compare, degree: int, one: np.ndarray, other: np.ndarray
) -> tuple[Compare, int]:
    """A function that compares rows of two arrays, in which nothing overflows or underflows.

    Vectors of extreme magnitudes are compared in float64, which holds the squares of all of
    float32; those of float64 are also divided by a power of two, common to all of them.

    Returns:
        The function, and the power of two that its scores are yet to be multiplied by.
    """
    if not (degree and (extreme(one).any() or extreme(other).any())):
        return compare, 0
    exponent = 0
    if one.dtype == np.float64:
        exponent = int(np.frexp(max(np.abs(one).max(), np.abs(other).max()))[1])

    def score(some: np.ndarray, others: np.ndarray) -> np.ndarray:
        with np.errstate(under="ignore"):
            return compare(*(np.ldexp(v.astype(np.float64), -exponent) for v in (some, others)))

    return score, degree * exponent


def _rounded(scores: np.ndarray, exponent: int, dtype: Any) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return (np.ldexp(scores, exponent) if exponent else scores).astype(dtype, copy=False)


def _function(name: str) -> Similarity:
    if name not in tuple(SIMILARITIES):
        known = ", ".join(SIMILARITIES)
        raise InputError(f"similarity: expected one of {known}; found {shown(name)}")
    return SIMILARITIES[name]
