"""How alike vectors are: four functions, of all pairs or of pairs in order, and a search.

Names, signs and results are sentence-transformers' (`util/similarity.py`, `util/retrieval.py`): a
distance is negated, so that more is more alike. On the host, in float32 or wider: vectors are few
numbers beside the model's work, and no shape is compiled.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from minibert.checks import unmasked, whole
from minibert.errors import InputError, shown

ROWS = 4096  # vectors whose differences from others are in memory at once


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of the angle between each of the first and each of the second."""
    return dot(normalized(one), normalized(other))


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
    return pairwise_dot(normalized(one), normalized(other))


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
SIMILARITIES: dict[str, tuple[Compare, Compare]] = {
    "cosine": (cosine, pairwise_cosine),
    "dot": (dot, pairwise_dot),
    "euclidean": (euclidean, pairwise_euclidean),
    "manhattan": (manhattan, pairwise_manhattan),
}


def similarity(one: Any, other: Any, name: str = "cosine") -> np.ndarray:
    """How alike each of the first is to each of the second: `(first, second)`.

    Args:
        one, other: vectors `(texts, dim)`, or one `(dim,)`.
        name: one of `SIMILARITIES`.

    Raises:
        InputError: they are no such vectors, or not of one width; or there is no such function.
    """
    return _function(name)[0](*_alike(np.atleast_2d(vectors(one)), np.atleast_2d(vectors(other))))


def similarity_pairwise(one: Any, other: Any, name: str = "cosine") -> np.ndarray:
    """How alike the first of both are, the second of both, …: `(texts,)`.

    Takes and raises what `similarity` does; there must be as many of both.
    """
    first, second = _alike(vectors(one), vectors(other))
    if first.shape != second.shape:
        raise InputError(f"embeddings: expected pairs, found {first.shape} and {second.shape}")
    return _function(name)[1](first, second)


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    *,
    top_k: Any = 10,
    score_function: str = "cosine",
    query_chunk_size: Any = 100,
    corpus_chunk_size: Any = 1 << 14,
) -> list[list[dict[str, int | float]]]:
    """The vectors of a corpus that are most like each query.

    Args:
        query_embeddings: `(queries, dim)`, or one `(dim,)`.
        corpus_embeddings: `(corpus, dim)`.
        top_k: how many for each query.
        score_function: one of `SIMILARITIES`.
        query_chunk_size, corpus_chunk_size: how many are compared at once.

    Returns:
        For each query a list of `{"corpus_id": …, "score": …}`, the best first; of equals the one
        that comes first.

    Raises:
        InputError: as for `similarity`; or a size is not positive.
    """
    top_k = whole("top_k", top_k, 1)
    query_chunk_size = whole("query_chunk_size", query_chunk_size, 1)
    corpus_chunk_size = whole("corpus_chunk_size", corpus_chunk_size, 1)
    compare = _function(score_function)[0]
    queries, corpus = _alike(
        np.atleast_2d(vectors(query_embeddings)), np.atleast_2d(vectors(corpus_embeddings))
    )
    if by_angle := compare is cosine:
        compare, queries = dot, normalized(queries)
    found = [_Best(top_k) for _ in queries]
    for offset in range(0, len(corpus), corpus_chunk_size):
        chunk = corpus[offset : offset + corpus_chunk_size]
        chunk = normalized(chunk) if by_angle else chunk
        for start in range(0, len(queries), query_chunk_size):
            scores = compare(queries[start : start + query_chunk_size], chunk)
            for number, row in enumerate(scores, start=start):
                found[number].add(row, offset)
    return [best.hits() for best in found]


class _Best:
    """The best scores of those seen; of equals the first."""

    def __init__(self, count: int):
        self._count = count
        self._scores, self._ids = np.empty(0), np.empty(0, np.int64)

    def add(self, scores: np.ndarray, offset: int) -> None:
        """Looks at the scores of the vectors from number `offset`."""
        ids = np.arange(len(scores))
        if len(self._scores) == self._count:
            ids = np.flatnonzero(~(scores <= self._scores[-1]))  # NaN is the worst of all
        if len(ids) > self._count:
            least = -np.partition(-scores[ids], self._count - 1)[self._count - 1]
            ids = ids[~(scores[ids] < least)]
        if len(ids):
            joined = np.concatenate([self._scores.astype(scores.dtype), scores[ids]])
            order = np.argsort(-joined, kind="stable")[: self._count]
            self._scores = joined[order]
            self._ids = np.concatenate([self._ids, ids + offset])[order]

    def hits(self) -> list[dict[str, int | float]]:
        """The best first."""
        pairs = zip(self._ids.tolist(), self._scores.tolist(), strict=True)
        return [{"corpus_id": number, "score": score} for number, score in pairs]


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Vectors of length 1; one of zeros stays."""
    lengths = np.sqrt((embeddings**2).sum(-1, keepdims=True))
    return embeddings / np.maximum(lengths, 1e-12)


def vectors(embeddings: Any) -> np.ndarray:
    """A vector or several as an array of float32 or float64.

    Raises:
        InputError: they are none.
    """
    try:
        array = np.asarray(unmasked("embeddings", embeddings))
        wide = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    except (TypeError, ValueError) as reason:
        raise InputError(f"embeddings: expected arrays of numbers ({reason})") from None
    if wide.ndim not in (1, 2):
        raise InputError(f"embeddings: expected shape (texts, dim) or (dim,), found {wide.shape}")
    return wide


def _alike(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if one.shape[-1] != other.shape[-1]:
        raise InputError(
            f"embeddings: {one.shape[-1]} numbers each, but the others have {other.shape[-1]}"
        )
    return one, other


def _function(name: str) -> tuple[Compare, Compare]:
    if name not in tuple(SIMILARITIES):
        known = ", ".join(SIMILARITIES)
        raise InputError(f"similarity: expected one of {known}; found {shown(name)}")
    return SIMILARITIES[name]
