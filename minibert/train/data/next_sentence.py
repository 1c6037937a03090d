"""Pairs of sentences: for next-sentence prediction, and for sentence-order prediction.

(Devlin et al., arXiv:1810.04805, 3.1; Lan et al., arXiv:1909.11942, 3.1.)
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from minibert.core.checks import elements
from minibert.data.files import kind_of, open_texts
from minibert.data.records import checked_text, read_texts
from minibert.errors import InputError
from minibert.train.data.batching import Example
from minibert.train.data.encoding import (
    Encoder,
    Frame,
    Sentence,
    frame_of,
    framed,
    joined,
    sentence_of,
)


def read_documents(source: object, column: str | None) -> tuple[list[list[str]], list[str]]:
    """Returns documents, each a list of sentences, and the name of each for messages.

    Args:
        source: a path to a `.txt` file with one sentence per line and a blank line between
            documents; or to another file of texts, whose lines are sentences; or an iterable of
            such texts or of lists of sentences.
        column: the column of a file that has columns; `text` by default.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if kind_of(path) == "txt":
            with open_texts(path, column) as opened:
                return _by_blank_lines(path, opened)
        texts, places = read_texts(path, column)
        return [_lines(text) for text in texts], places
    documents, places = [], []
    for document in elements("documents", source, expected="a path or documents"):
        place = f"document {len(documents)}"
        if isinstance(document, str):
            sentences = iter(_lines(document))
        else:
            sentences = elements(place, document, expected="a text or sentences")
        documents.append(
            [checked_text(s, f"{place}: sentence {i}") for i, s in enumerate(sentences)]
        )
        places.append(place)
    return documents, places


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _by_blank_lines(path: str, lines: Iterable[str]) -> tuple[list[list[str]], list[str]]:
    documents, places = [], []
    number = 1
    for is_text, group in itertools.groupby(lines, lambda line: bool(line.strip())):
        block = list(group)
        if is_text:
            documents.append(block)
            places.append(f"{path}: line {number}")
        number += len(block)
    return documents, places


@dataclasses.dataclass(frozen=True)
class SentencePairs:
    """Runs of sentences, from each of which an example is drawn.

    A run has at least two sentences and fills an example if possible. It is split at random; with
    probability 0.5 the second part is replaced by sentences of another document.
    """

    documents: list[list[Sentence]]
    runs: list[tuple[int, int, int]]
    frame: Frame
    room: int  # the capacity in tokens; field names are part of the identity in checkpoints
    label: ClassVar[str] = "next_sentence_label"

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Example:
        return {"example": np.int64(index)}

    def __call__(self, example: Example, generator: np.random.Generator) -> Example:
        """Returns a pair; its label is 0 if the second part follows the first."""
        document, start, stop = self.runs[int(example["example"])]
        sentences = self.documents[document][start:stop]
        split = int(generator.integers(1, len(sentences)))
        first, second = joined(sentences[:split]), joined(sentences[split:])
        is_changed = bool(generator.random() < 0.5)
        if is_changed:
            first, second = self._changed(document, first, second, generator)
        first, second = _fitting(first, second, self.room)
        found = framed(self.frame, first, second)
        head = len(self.frame.before) + len(first[0]) + len(self.frame.between)
        in_first = np.arange(len(found["input_ids"])) < head
        return found | {
            "token_type_ids": np.where(in_first, *self.frame.types).astype(np.int32),
            self.label: np.int32(is_changed),
            "example": example["example"],
        }

    def _changed(
        self, document: int, first: Sentence, second: Sentence, generator: np.random.Generator
    ) -> tuple[Sentence, Sentence]:
        """Returns a pair whose second part does not follow the first."""
        capacity = max(self.room - len(first[0]), 1)
        return first, self._random_sentences(document, capacity, generator)

    def _random_sentences(
        self, own: int, capacity: int, generator: np.random.Generator
    ) -> Sentence:
        """Returns as many sentences of another document as fit; the first may be truncated."""
        other = int(generator.integers(len(self.documents) - 1))
        document = self.documents[other + (other >= own)]
        start = int(generator.integers(len(document)))
        ends = np.cumsum([len(ids) for ids, _ in document[start:]])
        count = max(int((ends <= capacity).sum()), 1)
        ids, starts = joined(document[start : start + count])
        return ids[:capacity], starts[:capacity]


class SwappedPairs(SentencePairs):
    """Runs of sentences, of whose examples half have their two parts swapped."""

    label: ClassVar[str] = "sentence_order_label"

    def _changed(
        self, document: int, first: Sentence, second: Sentence, generator: np.random.Generator
    ) -> tuple[Sentence, Sentence]:
        return second, first


def pairs_of(
    encoder: Encoder,
    documents: Sequence[Sequence[str]],
    places: Sequence[str],
    kind: type[SentencePairs] = SentencePairs,
) -> SentencePairs:
    """Tokenizes documents, checks their lengths and returns them as runs of sentences."""
    frame = frame_of(encoder.backend, pair=True)
    capacity = encoder.max_length - frame.length
    if capacity < 2:
        raise InputError(
            f"max_length: expected at least {frame.length + 2}, the special tokens and one of each "
            f"sentence; found {encoder.max_length}"
        )
    if len(documents) < 2 and kind is SentencePairs:
        raise InputError(f"documents: expected at least two, found {len(documents)}")
    for place, document in zip(places, documents, strict=True):
        if len(document) < 2:
            raise InputError(f"{place}: expected at least two sentences, found {len(document)}")
    flat = map(sentence_of, encoder.encoded(list(itertools.chain(*documents)), special=False))
    read = [list(itertools.islice(flat, len(document))) for document in documents]
    for document, place in zip(read, places, strict=True):
        for number, (ids, _) in enumerate(document):
            if not ids.size:
                raise InputError(f"{place}: sentence {number} has no token")
    runs = []
    for number, document in enumerate(read):
        lengths = [len(ids) for ids, _ in document]
        for start, stop in _runs(lengths, capacity):
            if not encoder.truncation:
                place = f"{places[number]}: sentences {start} to {stop - 1}"
                encoder.check_length(place, sum(lengths[start:stop]) + frame.length)
            runs.append((number, start, stop))
    return kind(read, runs, frame, capacity)


def _runs(lengths: Sequence[int], capacity: int) -> Iterator[tuple[int, int]]:
    """Splits a document into runs of at least two sentences that fit, if two do.

    A single sentence at the end makes a run with the one before, which is then in two runs.
    """
    start = 0
    while start < len(lengths):
        stop = start + 1
        while stop < len(lengths) and sum(lengths[start : stop + 1]) <= capacity:
            stop += 1
        if stop == start + 1:  # a single sentence makes a run with the one before or after
            start, stop = (start - 1, stop) if stop == len(lengths) else (start, stop + 1)
        yield start, stop
        start = stop


def _fitting(first: Sentence, second: Sentence, capacity: int) -> tuple[Sentence, Sentence]:
    """Truncates the longer of two texts at its end until both fit."""
    one, two = len(first[0]), len(second[0])
    while one + two > capacity:
        one, two = (one - 1, two) if one > two else (one, two - 1)
    return (first[0][:one], first[1][:one]), (second[0][:two], second[1][:two])
