"""Runs texts through a sentence model: tokenizes, batches, computes and fetches vectors.

One program is compiled for each shape. Dispatch is asynchronous: while an accelerator computes, the
next batches are prepared, up to a few batches ahead.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from minibert.core.checks import check_choice, checked_indices, flag, whole
from minibert.core.fields import assign
from minibert.core.progress import progress_bar
from minibert.embedding.modules import SentenceModel
from minibert.embedding.quantization import PRECISIONS, quantize_embeddings
from minibert.errors import InputError, TextNotFiniteError, shown
from minibert.models.compilation import Programs, program
from minibert.nn.numerics import cause, quoted, rows_not_finite, unit, widen
from minibert.text.batching import Batch, packed_rows, padded, plan, plan_packed
from minibert.text.tokenizer import TokenReader

CHUNK = 4096  # texts that are tokenized together; the device need not wait for all texts
AHEAD = 4  # batches dispatched to an accelerator before the first is fetched


class EncodedBatch(NamedTuple):
    """The results of a batch; each attribute has one entry for each text.

    Attributes:
        numbers: the indices of the texts.
        ids: their token ids, without padding.
        vectors: `(texts, features)`.
        tokens: `(length, hidden)`, the vectors of each text's tokens; empty if not requested.
    """

    numbers: np.ndarray
    ids: list[np.ndarray]
    vectors: np.ndarray
    tokens: list[np.ndarray]


@dataclasses.dataclass
class Run:
    """One encoding of many texts; iterate over it for the results, a batch at a time.

    Attributes:
        model: the `SentenceModel`, for messages and its vocabulary size.
        programs: its compiled functions.
        device: the device to which its arrays are committed; None if there is no one device.
        with_tokens: whether token vectors are requested.
        reader: the tokenizer.
        texts: the texts to encode, prompts included.
        prompt_length: the number of prompt tokens at the start of each text.
        budget: rows × positions of a batch.
        most: the maximum number of rows of a batch; None if only the budget limits it.
        packing: length of rows that texts share; 0 for no packing.
        show_progress: whether to show a progress bar of texts on stderr.
        truncated: the number of texts truncated so far.

    Raises:
        TextNotFiniteError: if the vector of a text or of one of its tokens is NaN or infinite.
    """

    model: SentenceModel
    programs: Programs
    device: jax.Device | None
    with_tokens: bool
    reader: TokenReader
    texts: Sequence[str]
    prompt_length: int
    budget: int
    most: int | None
    packing: int
    show_progress: bool
    truncated: int = 0

    def __iter__(self) -> Iterator[EncodedBatch]:
        return self._shown() if self.show_progress else self._computed()

    def _shown(self) -> Iterator[EncodedBatch]:
        with progress_bar("texts", len(self.texts), True) as tick:
            for done in self._computed():
                yield done
                tick(len(done.ids))

    def _computed(self) -> Iterator[EncodedBatch]:
        waiting: collections.deque[tuple[Batch, list[np.ndarray], Any]] = collections.deque()
        # on a CPU, computation and preparation would compete for the cores
        ahead = 0 if jax.default_backend() == "cpu" else AHEAD
        for batch, ids in self._batches():
            waiting.append((batch, ids, self._dispatch(batch, ids)))
            if len(waiting) > ahead:
                yield self._fetched(*waiting.popleft())
        for under_way in waiting:
            yield self._fetched(*under_way)

    def _batches(self) -> Iterator[tuple[Batch, list[np.ndarray]]]:
        """Yields batches and their ids: the longest texts first, then by tokens in each chunk."""
        order = np.argsort([-len(text) for text in self.texts], kind="stable").tolist()
        read: dict[int, np.ndarray] = {}
        for start in range(0, len(order), CHUNK):
            numbers = order[start : start + CHUNK]
            ids, cut = self.reader.ids([self.texts[number] for number in numbers], numbers)
            self.truncated += cut
            read.update(zip(numbers, ids, strict=True))
            batches, rest = self._plan(read), []
            last = batches[-1]
            full = self.budget // last.length
            full = full if self.most is None else min(full, self.most)
            if start + CHUNK < len(order) and last.used < full:
                rest = batches.pop().indices.tolist()
            for batch in batches:
                yield batch, [read[number] for number in batch.indices.tolist()]
            read = {number: read[number] for number in rest}

    def _plan(self, read: Mapping[int, np.ndarray]) -> list[Batch]:
        """Returns batches of the texts' numbers; those whose texts share rows come last."""
        numbers, lengths = np.array([*read]), np.array([len(ids) for ids in read.values()])
        shared = lengths <= self.packing
        alone = plan(lengths[~shared].tolist(), self.reader.longest, self.budget, self.most)
        packed = plan_packed(lengths[shared].tolist(), self.packing, self.budget, self.most)
        return [
            batch._replace(indices=texts[batch.indices])
            for texts, batches in ((numbers[~shared], alone), (numbers[shared], packed))
            for batch in batches
        ]

    def _dispatch(self, batch: Batch, ids: list[np.ndarray]) -> Any:
        if batch.places is None:
            function, static = _alone, (self.with_tokens,)
            rows = padded(ids, batch._replace(indices=np.arange(len(ids))), self.reader.pad)
            which = np.zeros(batch.rows, np.int32)
            which[: len(ids)] = [len(row) for row in ids]
        else:
            function, static = _packed, ()
            rows, which = packed_rows(ids, batch, self.reader.pad)
        checked_indices("input_ids", rows, self.model.config.vocab_size, "vocab_size")
        leaves, treedef = self.programs.leaves, self.programs.treedef
        given = jax.device_put((rows, which, np.int32(self.prompt_length)), self.device)
        shapes = tuple(map(jax.typeof, given))
        results = program(function, treedef, *static, shapes=shapes)(leaves, *given)
        for array in results:
            array.copy_to_host_async()
        return results

    def _fetched(
        self, batch: Batch, ids: list[np.ndarray], results: tuple[Array, ...]
    ) -> EncodedBatch:
        places: Any = slice(len(ids)) if batch.places is None else tuple(batch.places.T)
        arrays = [widen(array[places]) for array in jax.device_get(results)]
        vectors, tokens = arrays[0], []
        if self.with_tokens:  # without padding
            tokens = [row[: len(own)] for row, own in zip(arrays[1], ids, strict=True)]
        wrong = set(rows_not_finite(vectors)) | set(rows_not_finite(tokens))
        if wrong:
            numbers = sorted(int(batch.indices[row]) for row in wrong)
            text = quoted(self.texts[numbers[0]])
            raise TextNotFiniteError(
                numbers, f"the vector of {text} is NaN or infinite: {cause(self.model)}"
            )
        return EncodedBatch(batch.indices, ids, vectors, tokens)


def _alone(
    model: SentenceModel,
    input_ids: Array,
    lengths: Array,
    prompt_length: int | Array,
    with_tokens: bool,
) -> tuple[Array, ...]:
    """Returns text vectors, and token vectors if requested, of rows padded on the right.

    Args:
        model: the model.
        input_ids: `(batch, seq)`.
        lengths: `(batch,)`, the number of tokens of each row.
        prompt_length: the number of prompt tokens at the start of each text.
        with_tokens: whether to return token vectors.
    """
    mask = jnp.arange(input_ids.shape[1], dtype=lengths.dtype)[None] < lengths[:, None]
    tokens, vectors = model(input_ids, mask, prompt_length)
    return (vectors, tokens) if with_tokens else (vectors,)


def _packed(
    model: SentenceModel, input_ids: Array, segments: Array, prompt_length: int | Array
) -> tuple[Array, ...]:
    """Returns the vectors `(batch, slots, features)` of texts that share rows."""
    return (model.packed(input_ids, segments, prompt_length),)


OUTPUTS = ("sentence_embedding", "token_embeddings", None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """The output arguments of `SentenceEncoder.encode`, validated.

    Raises:
        InputError: if an argument is invalid, or arguments do not fit each other.
    """

    output_value: str | None
    precision: str
    ranges: Any
    normalize_embeddings: Any
    truncate_dim: Any
    features: int  # the width of a text's vector

    def __post_init__(self) -> None:
        check_choice("output_value", self.output_value, OUTPUTS)
        check_choice("precision", self.precision, PRECISIONS)
        flag("normalize_embeddings", self.normalize_embeddings)
        if self.ranges is not None and self.precision not in ("int8", "uint8"):
            raise InputError(
                "ranges: expected None unless precision is 'int8' or 'uint8', found precision="
                f"{shown(self.precision)}"
            )
        if self.output_value is None and self.precision != "float32":
            raise InputError(
                "precision: expected 'float32' with output_value=None, found "
                f"{shown(self.precision)}"
            )
        if self.output_value != "sentence_embedding" and self.normalize_embeddings:
            raise InputError(
                "normalize_embeddings: applies only to sentence embeddings; expected output_value="
                f'"sentence_embedding", found {shown(self.output_value)}'
            )
        if self.truncate_dim is not None:
            width = whole("truncate_dim", self.truncate_dim, 1, self.features)
            assign(self, {"truncate_dim": width})

    @property
    def tokens(self) -> bool:
        """Whether token vectors are needed."""
        return self.output_value != "sentence_embedding"

    def outputs(self, run: Run) -> Any:
        """Returns the requested outputs of all texts, in input order."""
        if not self.tokens:
            return self._vectors(run)
        found: list[Any] = [None] * len(run.texts)
        for done in run:
            rows = zip(done.numbers, done.ids, done.vectors, done.tokens, strict=True)
            for number, ids, vector, tokens in rows:
                if self.output_value == "token_embeddings":
                    found[number] = tokens.copy()
                    continue
                also: dict[str, Any] = {"attention_mask": np.ones_like(ids)}
                if run.prompt_length:
                    also["prompt_length"] = run.prompt_length
                if run.reader.has_segments:
                    also["token_type_ids"] = np.zeros_like(ids)
                found[number] = {
                    "input_ids": ids,
                    **also,
                    "token_embeddings": tokens.copy(),
                    "sentence_embedding": vector[: self.truncate_dim],
                }
        if self.precision == "float32" or not found:
            return found
        ends = np.cumsum([len(tokens) for tokens in found])[:-1]
        return np.split(self._quantized(np.concatenate(found)), ends)

    def _vectors(self, run: Run) -> np.ndarray:
        rows = np.zeros((len(run.texts), self.features), np.float32)
        for done in run:
            if done.vectors.dtype != rows.dtype:
                rows = rows.astype(done.vectors.dtype)
            rows[done.numbers] = done.vectors
        rows = rows[:, : self.truncate_dim]
        if self.normalize_embeddings:
            rows = unit(rows)
        return rows if self.precision == "float32" else self._quantized(rows)

    def _quantized(self, rows: np.ndarray) -> np.ndarray:
        return quantize_embeddings(rows, self.precision, self.ranges)
