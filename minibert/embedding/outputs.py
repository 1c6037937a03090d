"""What an encoding returns: vectors of texts, vectors of tokens, or everything."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from minibert.core.checks import flag, whole
from minibert.core.progress import ticking
from minibert.embedding.encoding import Computed
from minibert.embedding.quantization import PRECISIONS, quantize_embeddings
from minibert.errors import InputError, shown
from minibert.nn.norms import unit

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


def progressing(run: Iterable[Computed], count: int, show: bool) -> Iterator[Computed]:
    """The results as they come, with a progress bar of texts on stderr if asked for."""
    with ticking("texts", count, show) as tick:
        for done in run:
            yield done
            tick(len(done.numbers))
