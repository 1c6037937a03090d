"""Similarity functions, of all pairs or pairwise, and exact top-k search.

Names, signs and results are those of sentence-transformers (`util/similarity.py`,
`util/retrieval.py`): distances are negated, so that a higher score means more similar. Everything
runs on the host with NumPy, in float32 or wider, so that no shape is compiled.

The functions themselves take finite vectors of one dtype. `similarity`, `similarity_pairwise` and
`semantic_search` check that, and scale vectors so that no intermediate result overflows or
underflows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minibert.core.checks import as_array, check_choice, whole
from minibert.core.types import ArrayLike
from minibert.errors import InputError
from minibert.nn.numerics import extreme, highest, in_range, out_of_range, rows_not_finite, unit

ROWS = 4096  # vectors whose differences from another are in memory at the same time
MAX_EXPONENT = 1000  # of float64; below it, sums over up to 2**22 numbers do not overflow


Vectors = np.ndarray  # (texts, dim)
Scores = np.ndarray  # (first, second), or (texts,) of pairs
Compare = Callable[[Vectors, Vectors], Scores]


def cosine(one: Vectors, other: Vectors) -> Scores:
    """Returns the cosine similarity of each of the first with each of the second vectors."""
    return dot(unit(one), unit(other))


def dot(one: Vectors, other: Vectors) -> Scores:
    """Returns the dot product of each of the first with each of the second vectors."""
    return one @ other.T


def euclidean(one: Vectors, other: Vectors) -> Scores:
    """Returns the negative Euclidean distance of each of the first from each of the second."""
    first, second = one.astype(np.float64), other.astype(np.float64)  # squares cancel
    if _any_extreme(first, second):
        return _row_by_row(pairwise_euclidean, one, other)
    squares = (first**2).sum(1)[:, None] - 2 * first @ second.T + (second**2).sum(1)
    return -np.sqrt(np.maximum(squares, 0)).astype(one.dtype)


def manhattan(one: Vectors, other: Vectors) -> Scores:
    """Returns the negative Manhattan distance of each of the first from each of the second."""
    return _row_by_row(pairwise_manhattan, one, other)


def pairwise_cosine(one: Vectors, other: Vectors) -> Scores:
    """Returns the `cosine` of each pair of rows."""
    return pairwise_dot(unit(one), unit(other))


def pairwise_dot(one: Vectors, other: Vectors) -> Scores:
    """Returns the `dot` product of each pair of rows."""
    return (one * other).sum(-1)


def pairwise_euclidean(one: Vectors, other: Vectors) -> Scores:
    """Returns the `euclidean` distance, negated, of each pair of rows."""
    difference, exponents = in_range(one - other)
    return -np.ldexp(np.sqrt((difference**2).sum(-1)), exponents)


def pairwise_manhattan(one: Vectors, other: Vectors) -> Scores:
    """Returns the `manhattan` distance, negated, of each pair of rows."""
    return -np.abs(one - other).sum(-1)


def _row_by_row(pairwise: Compare, one: Vectors, other: Vectors) -> Scores:
    result = np.empty((len(one), len(other)), one.dtype)
    for row, vector in enumerate(one):
        for start in range(0, len(other), ROWS):
            rows = slice(start, start + ROWS)
            result[row, rows] = pairwise(other[rows], vector)
    return result


class Similarity(NamedTuple):
    """A similarity function.

    Attributes:
        all_pairs: from `(first, dim)` and `(second, dim)` to `(first, second)`.
        pairwise: from `(texts, dim)` and `(texts, dim)` to `(texts,)`.
    """

    all_pairs: Compare
    pairwise: Compare


SIMILARITIES: dict[str, Similarity] = {
    "cosine": Similarity(cosine, pairwise_cosine),
    "dot": Similarity(dot, pairwise_dot),
    "euclidean": Similarity(euclidean, pairwise_euclidean),
    "manhattan": Similarity(manhattan, pairwise_manhattan),
}


def similarity(one: ArrayLike, other: ArrayLike, name: str = "cosine") -> Scores:
    """Returns the similarity of each of the first vectors to each of the second.

    Args:
        one, other: vectors `(texts, dim)`, or one `(dim,)`.
        name: one of `SIMILARITIES`.

    Returns:
        Scores `(first, second)`, in float32 or float64 as the vectors. A score that the dtype
        cannot represent is infinite or zero.

    Raises:
        InputError: if the vectors are not arrays of finite real numbers of one width, or there is
            no such function.
    """
    function = _function(name)
    first, second = map(np.atleast_2d, _pair(one, other))
    return _scores(name, function.all_pairs, first, second)


def similarity_pairwise(one: ArrayLike, other: ArrayLike, name: str = "cosine") -> Scores:
    """Returns the similarity of each pair of vectors, `(texts,)`.

    Arguments and errors are those of `similarity`; both arrays must have the same shape.
    """
    function = _function(name)
    first, second = _pair(one, other)
    if first.shape != second.shape:
        raise InputError(f"embeddings: expected pairs, found {first.shape} and {second.shape}")
    pairs = np.atleast_2d(first), np.atleast_2d(second)
    return _scores(name, function.pairwise, *pairs).reshape(first.shape[:-1])


@np.errstate(over="ignore", under="ignore")
def semantic_search(
    query_embeddings: ArrayLike,
    corpus_embeddings: ArrayLike,
    *,
    top_k: int = 10,
    score_function: str = "cosine",
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 1 << 14,
) -> list[list[dict[str, int | float]]]:
    """Returns the vectors of a corpus that are most similar to each query.

    Args:
        query_embeddings: `(queries, dim)`, or one `(dim,)`.
        corpus_embeddings: `(corpus, dim)`.
        top_k: the number of hits for each query.
        score_function: one of `SIMILARITIES`.
        query_chunk_size, corpus_chunk_size: how many vectors are compared at once.

    Returns:
        For each query a list of `{"corpus_id": …, "score": …}`, the highest score first; equal
        scores are in the order of the corpus.

    Raises:
        InputError: as for `similarity`; or if a size is not positive.
    """
    top_k = whole("top_k", top_k, 1)
    query_chunk_size = whole("query_chunk_size", query_chunk_size, 1)
    corpus_chunk_size = whole("corpus_chunk_size", corpus_chunk_size, 1)
    compare = _function(score_function).all_pairs
    names = ("query_embeddings", "corpus_embeddings")
    queries, corpus = map(np.atleast_2d, _pair(query_embeddings, corpus_embeddings, names))
    exponents = _exponents(score_function, queries, corpus)
    queries = _scaled(queries, exponents.one)
    if by_angle := compare is cosine:
        compare, queries = dot, unit(queries)
    found = [_TopK(top_k) for _ in queries]
    for offset in range(0, len(corpus), corpus_chunk_size):
        chunk = _scaled(corpus[offset : offset + corpus_chunk_size], exponents.other)
        if by_angle:
            chunk = unit(chunk)
        for start in range(0, len(queries), query_chunk_size):
            scores = compare(queries[start : start + query_chunk_size], chunk)
            for number, row in enumerate(scores, start=start):
                found[number].add(row, offset)
    of_queries = np.broadcast_to(exponents.scores, len(queries)).tolist()
    return [best.hits(exponent) for best, exponent in zip(found, of_queries, strict=True)]


class _TopK:
    """The highest scores so far; of equal scores the first."""

    def __init__(self, count: int):
        self._count = count
        self._scores, self._ids = np.empty(0), np.empty(0, np.int64)

    def add(self, scores: Scores, offset: int) -> None:
        """Adds the scores of the vectors from index `offset` on."""
        ids = np.arange(len(scores))
        if len(self._scores) == self._count:
            ids = np.flatnonzero(scores > self._scores[-1])
        if len(ids):
            joined = np.concatenate([self._scores, scores[ids]])
            best = highest(joined, self._count)
            self._scores = joined[best]
            self._ids = np.concatenate([self._ids, ids + offset])[best]

    def hits(self, exponent: int) -> list[dict[str, int | float]]:
        """Returns the hits, highest score first, with scores multiplied by a power of two."""
        scores = np.ldexp(self._scores, exponent)
        pairs = zip(self._ids.tolist(), scores.tolist(), strict=True)
        return [{"corpus_id": number, "score": score} for number, score in pairs]


def vectors(name: str, embeddings: ArrayLike) -> Vectors:
    """Checks one or more vectors, and returns them in float32 or float64.

    Raises:
        InputError: if they are not an array `(dim,)` or `(texts, dim)` of finite real numbers.
    """
    array = jax.device_get(as_array(name, embeddings))
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


def _pair(
    one: ArrayLike,
    other: ArrayLike,
    names: tuple[str, str] = ("first embeddings", "second embeddings"),
) -> tuple[Vectors, Vectors]:
    """Returns vectors of one width, checked, in the wider of their dtypes."""
    first, second = vectors(names[0], one), vectors(names[1], other)
    width, others = first.shape[-1], second.shape[-1]
    if width != others:
        raise InputError(f"embeddings: {width} numbers each, but the others have {others}")
    dtype = np.result_type(first, second)
    return first.astype(dtype, copy=False), second.astype(dtype, copy=False)


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def _scores(name: str, compare: Compare, one: Vectors, other: Vectors) -> Scores:
    if name == "dot":  # the scores show whether products over- or underflowed
        scores = compare(one, other)
        if not out_of_range(np.abs(scores)).any():
            return scores
    exponents = _exponents(name, one, other)
    if exponents.one is None:
        return compare(one, other)
    scores = compare(_scaled(one, exponents.one), _scaled(other, exponents.other))
    return np.ldexp(scores.T, exponents.scores).T.astype(one.dtype)


class _Exponents(NamedTuple):
    """Exponents of the powers of two by which vectors are divided and scores are multiplied.

    Attributes:
        one: of the divisor of each of the first vectors, or of all; None for no scaling.
        other: of the divisor of all of the second vectors, or None.
        scores: of the factor of the scores of each of the first vectors, or of all scores.
    """

    one: Any = None
    other: int | None = None
    scores: Any = 0


def _exponents(name: str, one: Vectors, other: Vectors) -> _Exponents:
    """Returns exponents that keep scores in range."""
    if name == "cosine" or not _any_extreme(one, other):
        return _Exponents()
    rows = np.frexp(np.abs(one).max(axis=-1, initial=0))[1]
    excess = int(np.frexp(np.abs(other).max(initial=0))[1]) - MAX_EXPONENT
    if name == "dot":  # the second stay as large as possible, to keep the digits of small ones
        return _Exponents(rows, excess, rows + excess)
    excess = max(int(rows.max(initial=0)) - MAX_EXPONENT, excess, 0)
    return _Exponents(excess, excess, excess)


def _any_extreme(one: Vectors, other: Vectors) -> bool:
    return any(extreme(vectors).any() for vectors in (one, other))


def _scaled(vectors: Vectors, exponents: int | np.ndarray | None) -> Vectors:
    """Divides vectors by powers of two, in float64, if there are any."""
    if exponents is None:
        return vectors
    return np.ldexp(vectors.T.astype(np.float64), -exponents).T


def _function(name: str) -> Similarity:
    check_choice("similarity", name, SIMILARITIES)
    return SIMILARITIES[name]
