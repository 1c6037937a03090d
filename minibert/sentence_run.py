"""Texts through a sentence model: read, planned, computed by one program a shape, and fetched.

While the device computes, the next batches are made ready: nothing waits for a result until a few
batches are under way.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minibert.batching import Batch, check_budget, padded, plan
from minibert.checks import checked_indices
from minibert.compilation import PROGRAMS
from minibert.sentence_modules import SentenceModel
from minibert.token_ids import TokenReader

CHUNK = 4096  # texts that are read and planned together, so that the device need not wait for all
AHEAD = 4  # batches under way before one is waited for


class Computed(NamedTuple):
    """The results of a batch.

    Attributes:
        numbers: which texts.
        ids: their ids, without padding.
        vectors: `(texts, features)`.
        tokens: `(texts, length, hidden)`, padding behind each text's ids; None if not asked for.
    """

    numbers: Sequence[int]
    ids: Sequence[np.ndarray]
    vectors: np.ndarray
    tokens: np.ndarray | None


class _Read(NamedTuple):
    number: int
    ids: np.ndarray


class Run:
    """One encoding of many texts; iterate over it for the results, a batch at a time.

    Args:
        program: see `program`.
        reader: the tokenizer.
        limit: the number of words the model knows.
        texts: what to encode.
        prompt_length: how many tokens at the start of each text are a prompt's.
        token_budget: see `batching.plan`.

    Attributes:
        truncated: how many texts have been cut so far.
    """

    def __init__(
        self,
        program: Callable[..., Any],
        reader: TokenReader,
        limit: int,
        texts: Sequence[str],
        prompt_length: int = 0,
        token_budget: Any = None,
    ):
        self.truncated = 0
        self._program, self._reader, self._limit = program, reader, limit
        self._texts, self._prompt = texts, np.int32(prompt_length)
        self._budget = check_budget(token_budget)

    def __iter__(self) -> Iterator[Computed]:
        waiting: collections.deque[tuple[list[_Read], Any]] = collections.deque()
        for read, batch in self._batches():
            waiting.append((read, self._dispatch(read, batch)))
            if len(waiting) > AHEAD:
                yield _fetched(*waiting.popleft())
        for read, results in waiting:
            yield _fetched(read, results)

    def _batches(self) -> Iterator[tuple[list[_Read], Batch]]:
        """The texts in batches: the longest first, by letters and in each chunk by tokens."""
        order = np.argsort([-len(text) for text in self._texts], kind="stable").tolist()
        read: list[_Read] = []
        for start in range(0, len(order), CHUNK):
            numbers = order[start : start + CHUNK]
            ids, cut = self._reader.ids([self._texts[number] for number in numbers], numbers)
            self.truncated += cut
            read += map(_Read, numbers, ids)
            lengths = [len(one.ids) for one in read]
            batches = plan(lengths, self._reader.longest, self._budget)
            rest = []
            if start + CHUNK < len(order) and not _is_full(batches[-1], self._budget):
                rest = [read[index] for index in batches.pop().indices]
            for batch in batches:
                yield [read[index] for index in batch.indices], batch
            read = rest

    def _dispatch(self, read: Sequence[_Read], batch: Batch) -> Any:
        own = batch._replace(indices=np.arange(len(read)))
        ids = padded([one.ids for one in read], own, self._reader.pad)
        checked_indices("input_ids", ids, self._limit, "vocab_size")
        lengths = np.zeros(batch.rows, np.int32)
        lengths[: len(read)] = [len(one.ids) for one in read]
        results = self._program(ids, lengths, self._prompt)
        for array in results:
            array.copy_to_host_async()
        return results


def _is_full(batch: Batch, budget: int) -> bool:
    return len(batch.indices) >= budget // batch.length


def _fetched(read: Sequence[_Read], results: Sequence[Any]) -> Computed:
    vectors, *tokens = [_wide(np.asarray(array)[: len(read)]) for array in results]
    return Computed(
        [one.number for one in read],
        [one.ids for one in read],
        vectors,
        tokens[0] if tokens else None,
    )


def _wide(array: np.ndarray) -> np.ndarray:
    """Numbers that numpy itself knows: float32, or float64."""
    return array if array.dtype == np.float64 else array.astype(np.float32)


def program(model: SentenceModel, with_tokens: bool = False) -> Callable[..., Any]:
    """The model as a compiled function that takes no more than arrays.

    It takes ids `(batch, seq)`, padded on the right, the rows' lengths `(batch,)` and the length of
    a prompt, and returns the texts' vectors and, if asked, the tokens'.
    """
    leaves, treedef = jax.tree.flatten(model)
    return functools.partial(_program(treedef, with_tokens), leaves)


@functools.lru_cache(maxsize=PROGRAMS)
def _program(treedef: Any, with_tokens: bool) -> Callable[..., Any]:
    def call(leaves: list[Any], input_ids: Any, lengths: Any, prompt_length: Any) -> Any:
        model = jax.tree.unflatten(treedef, leaves)
        mask = jnp.arange(input_ids.shape[1]) < lengths[:, None]
        tokens, vectors = model(input_ids, mask, prompt_length)
        return (vectors, tokens) if with_tokens else (vectors,)

    return jax.jit(call)
