"""Where in a text an answer is: spans of tokens, and their characters.

The reference is the question-answering pipeline of transformers 4.57.6, the last that had one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

OUT = -10000.0  # the score of a token that can be in no answer


def probabilities(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax `(seq,)` over the allowed tokens."""
    powers = np.where(allowed, scores, np.float32(OUT))
    powers = np.exp(powers - powers.max())
    return powers / powers.sum()


def likeliest(
    start: np.ndarray, end: np.ndarray, count: int, longest: int
) -> Iterator[tuple[int, int, float]]:
    """The likeliest spans: their first and last token and their probability, the likeliest first.

    The token in front, by which a model says that there is no answer, is in none, and neither is
    a token that is not allowed: its probability is 0.

    Args:
        start, end: `(seq,)`, of each token to be the first, and the last.
        count: how many spans at most.
        longest: how many tokens a span has at most.
    """
    start, end = start.copy(), end.copy()
    start[0] = end[0] = 0
    chances = np.tril(np.triu(np.outer(start, end)), longest - 1)
    flat = chances.ravel()
    best = np.argpartition(-flat, count)[:count] if count < flat.size else np.arange(flat.size)
    best = best[np.argsort(-flat[best], kind="stable")]
    for place in best[flat[best] > 0]:
        first, last = divmod(int(place), chances.shape[1])
        yield first, last, float(flat[place])


def characters(
    encoding: Any, first: int, last: int, sequence: int, whole_words: bool
) -> tuple[int, int]:
    """Where a span of tokens begins and ends in the text that is number `sequence` of a pair."""
    if whole_words:
        begin, end = encoding.token_to_word(first), encoding.token_to_word(last)
        begin = None if begin is None else encoding.word_to_chars(begin, sequence)
        end = None if end is None else encoding.word_to_chars(end, sequence)
        if begin is not None and end is not None:
            return begin[0], end[1]
    return encoding.offsets[first][0], encoding.offsets[last][1]
