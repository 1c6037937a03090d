"""Texts through a sentence model: read, planned, computed by one program a shape, and fetched.

While an accelerator computes, the next batches are made ready: nothing waits for a result until a
few batches are under way.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.core.checks import checked_indices, flag, whole
from minibert.core.progress import progress_bar
from minibert.embedding.modules import SentenceModel
from minibert.embedding.quantization import PRECISIONS, quantize_embeddings
from minibert.errors import InputError, TextNotFiniteError, shown
from minibert.models.compilation import program
from minibert.nn.numerics import cause, quoted, rows_not_finite, unit, widen
from minibert.text.batching import Batch, check_budget, packed_rows, padded, plan, plan_packed
from minibert.text.tokenizer import TokenReader

CHUNK = 4096  # texts that are read and planned together, so that the device need not wait for all
AHEAD = 4  # batches under way on an accelerator before one is waited for


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


class Programs(NamedTuple):
    """A model as compiled functions that take no more than arrays.

    Attributes:
        alone: takes ids `(batch, seq)`, padded on the right, the rows' lengths `(batch,)` and the
            length of a prompt, and returns the texts' vectors and, if asked, the tokens'.
        packed: takes ids of texts that share rows, their segments and the length of a prompt, and
            returns the texts' vectors `(batch, slots, features)`.
    """

    alone: Callable[..., Any]
    packed: Callable[..., Any]


class Run:
    """One encoding of many texts; iterate over it for the results, a batch at a time.

    Args:
        model: the `SentenceModel`, for messages.
        programs: see `programs`.
        reader: the tokenizer.
        limit: the number of words the model knows.
        texts: what to encode.
        prompt_length: how many tokens at the start of each text are a prompt's.
        token_budget: see `batching.check_budget`.
        packing: how many positions the rows have that texts share; 0 for none.

    Attributes:
        truncated: how many texts have been cut so far.

    Raises:
        TextNotFiniteError: a text's vector, or that of one of its tokens, is NaN or infinite.
    """

    def __init__(
        self,
        model: SentenceModel,
        programs: Programs,
        reader: TokenReader,
        limit: int,
        texts: Sequence[str],
        prompt_length: int = 0,
        token_budget: Any = None,
        packing: int = 0,
    ):
        self.truncated = 0
        self._model = model
        self._programs, self._reader, self._limit = programs, reader, limit
        self._texts, self._prompt = texts, np.int32(prompt_length)
        self._budget, self._packing = check_budget(token_budget), packing

    def __iter__(self) -> Iterator[Computed]:
        waiting: collections.deque[tuple[list[_Read], Batch, Any]] = collections.deque()
        ahead = 0 if jax.default_backend() == "cpu" else AHEAD  # there, two would share the cores
        for read, batch in self._batches():
            waiting.append((read, batch, self._dispatch(read, batch)))
            if len(waiting) > ahead:
                yield self._checked(_fetched(*waiting.popleft()))
        for done in waiting:
            yield self._checked(_fetched(*done))

    def _checked(self, done: Computed) -> Computed:
        wrong = set(rows_not_finite(done.vectors))
        if done.tokens is not None:
            own = [row[: len(ids)] for row, ids in zip(done.tokens, done.ids, strict=True)]
            wrong |= set(rows_not_finite(own))  # padding does not count
        if wrong:
            numbers = sorted(done.numbers[index] for index in wrong)
            text = quoted(self._texts[numbers[0]])
            raise TextNotFiniteError(
                numbers, f"the vector of {text} is NaN or infinite: {cause(self._model)}"
            )
        return done

    def _batches(self) -> Iterator[tuple[list[_Read], Batch]]:
        """The texts in batches: the longest first, by letters and in each chunk by tokens."""
        order = np.argsort([-len(text) for text in self._texts], kind="stable").tolist()
        read: list[_Read] = []
        for start in range(0, len(order), CHUNK):
            numbers = order[start : start + CHUNK]
            ids, cut = self._reader.ids([self._texts[number] for number in numbers], numbers)
            self.truncated += cut
            read += map(_Read, numbers, ids)
            batches = self._plan([len(one.ids) for one in read])
            rest = []
            last = batches[-1]
            if start + CHUNK < len(order) and last.used < self._budget // last.length:
                rest = [read[index] for index in batches.pop().indices]
            for batch in batches:
                yield [read[index] for index in batch.indices], batch
            read = rest

    def _plan(self, lengths: list[int]) -> list[Batch]:
        """The batches; those whose texts share rows come last."""
        fits = np.asarray(lengths) <= self._packing
        own, shared = np.flatnonzero(~fits), np.flatnonzero(fits)
        alone = plan([lengths[text] for text in own], self._reader.longest, self._budget)
        packed = plan_packed([lengths[text] for text in shared], self._packing, self._budget)
        return [
            batch._replace(indices=texts[batch.indices])
            for texts, batches in ((own, alone), (shared, packed))
            for batch in batches
        ]

    def _dispatch(self, read: Sequence[_Read], batch: Batch) -> Any:
        ids = [one.ids for one in read]
        if batch.places is None:
            words = padded(ids, batch._replace(indices=np.arange(len(read))), self._reader.pad)
            which = np.zeros(batch.rows, np.int32)
            which[: len(read)] = [len(row) for row in ids]
        else:
            words, which = packed_rows(ids, batch, self._reader.pad)
        checked_indices("input_ids", words, self._limit, "vocab_size")
        program = self._programs.alone if batch.places is None else self._programs.packed
        results = program(words, which, self._prompt)
        for array in results:
            array.copy_to_host_async()
        return results


def _fetched(read: Sequence[_Read], batch: Batch, results: Sequence[Any]) -> Computed:
    places: Any = slice(len(read)) if batch.places is None else tuple(batch.places.T)
    vectors, *tokens = [widen(np.asarray(array)[places]) for array in results]
    return Computed(
        [one.number for one in read],
        [one.ids for one in read],
        vectors,
        tokens[0] if tokens else None,
    )


def programs(model: SentenceModel, with_tokens: bool = False) -> Programs:
    """The programs of a model."""
    leaves, treedef = jax.tree.flatten(model)
    return Programs(
        functools.partial(program(_alone, treedef, with_tokens), leaves),
        functools.partial(program(_packed, treedef), leaves),
    )


def _alone(
    model: SentenceModel, input_ids: Any, lengths: Any, prompt_length: Any, with_tokens: bool
) -> tuple[Array, ...]:
    mask = jnp.arange(input_ids.shape[1]) < lengths[:, None]
    tokens, vectors = model(input_ids, mask, prompt_length)
    return (vectors, tokens) if with_tokens else (vectors,)


def _packed(
    model: SentenceModel, input_ids: Any, segments: Any, prompt_length: Any
) -> tuple[Array, ...]:
    return (model.packed(input_ids, segments, prompt_length),)


OUTPUTS = ("sentence_embedding", "token_embeddings", None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `SentenceEncoder.encode` was asked for; see there.

    Raises:
        InputError: it cannot be had.
    """

    output_value: str | None
    precision: str
    normalize_embeddings: Any
    truncate_dim: Any
    features: int  # the width of a text's vector

    def __post_init__(self):
        for name, known in (("output_value", OUTPUTS), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in known:
                choices = ", ".join(map(str, known))
                raise InputError(f"{name}: expected one of {choices}; found {shown(value)}")
        flag("normalize_embeddings", self.normalize_embeddings)
        if self.output_value is None and self.precision != "float32":
            raise InputError("precision: a dictionary of everything is float32 alone")
        if self.output_value != "sentence_embedding" and self.normalize_embeddings:
            raise InputError(
                "normalize_embeddings: is of sentence embeddings; expected output_value="
                f'"sentence_embedding", found {shown(self.output_value)}'
            )
        if self.truncate_dim is not None:
            object.__setattr__(
                self, "truncate_dim", whole("truncate_dim", self.truncate_dim, 1, self.features)
            )

    @property
    def tokens(self) -> bool:
        """Whether tokens' vectors are needed."""
        return self.output_value != "sentence_embedding"

    def of(self, run: Iterable[Computed], count: int, also: Mapping[str, Any]) -> Any:
        """What was asked for, of all texts in their order.

        Args:
            run: the results of batches.
            count: how many texts there are.
            also: what else stands in a dictionary of everything.
        """
        match self.output_value:
            case "sentence_embedding":
                return self._vectors(run, count)
            case "token_embeddings":
                return self._token_vectors(run, count)
        return self._everything(run, count, also)

    def _vectors(self, run: Iterable[Computed], count: int) -> np.ndarray:
        rows = np.zeros((count, self.features), np.float32)
        for done in run:
            if done.vectors.dtype != rows.dtype:
                rows = rows.astype(done.vectors.dtype)
            rows[done.numbers] = done.vectors
        rows = rows[:, : self.truncate_dim]
        if self.normalize_embeddings:
            rows = unit(rows)
        return rows if self.precision == "float32" else quantize_embeddings(rows, self.precision)

    def _token_vectors(self, run: Iterable[Computed], count: int) -> list[np.ndarray]:
        found: list[Any] = [None] * count
        for number, _, _, tokens in _rows(run):
            found[number] = tokens
        if self.precision == "float32" or not found:
            return found
        ends = np.cumsum([len(tokens) for tokens in found])[:-1]
        return np.split(quantize_embeddings(np.concatenate(found), self.precision), ends)

    def _everything(
        self, run: Iterable[Computed], count: int, also: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        found: list[Any] = [None] * count
        for number, ids, vector, tokens in _rows(run):
            found[number] = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                **{name: make(ids) if callable(make) else make for name, make in also.items()},
                "token_embeddings": tokens,
                "sentence_embedding": vector[: self.truncate_dim],
            }
        return found


def _rows(run: Iterable[Computed]) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    for done in run:
        assert done.tokens is not None
        for place, (number, ids) in enumerate(zip(done.numbers, done.ids, strict=True)):
            yield number, ids, done.vectors[place], done.tokens[place, : len(ids)].copy()


# Arguments of sentence-transformers' `encode` that have no place here.
ELSEWHERE = {
    "batch_size": "batches are made by length; token_budget says how large",
    "chunk_size": "batches are made by length; token_budget says how large",
    "device": "arrays go to JAX's default device; jax.default_device says which",
    "pool": "there is one process",
    "task": "encode_query and encode_document say what texts are for",
    "inputs": "the texts are `sentences`",
}


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raises an `InputError` for the first of arguments that `encode` does not have."""
    for name in options:
        raise InputError(f"{name}: no argument of encode: {ELSEWHERE.get(name, 'see its help')}")


def as_wanted(vectors: Any, to_numpy: bool, to_tensor: bool) -> Any:
    """Vectors as numpy's array, as a JAX array, or, if neither is wanted, as a list of those."""
    if to_tensor:
        return jnp.asarray(vectors)
    if to_numpy:
        return vectors
    return list(jnp.asarray(vectors)) if vectors.ndim == 2 else jnp.asarray(vectors)


def progressing(run: Iterable[Computed], count: int) -> Iterator[Computed]:
    """The results as they come, with a progress bar of texts on stderr."""
    with progress_bar("texts", count, True) as tick:
        for done in run:
            yield done
            tick(len(done.numbers))
