"""Pairs of sentences for next-sentence prediction (Devlin et al., arXiv:1810.04805, 3.1)."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from minibert.core.checks import elements
from minibert.data.files import open_texts
from minibert.data.records import checked_text, read_texts
from minibert.errors import InputError
from minibert.text.tokenizer import backend_of
from minibert.train.data.encoding import (
    Example,
    Frame,
    Sentence,
    check_length,
    encoded,
    frame_of,
    framed,
    word_starts,
)


def read_documents(source: Any, column: str | None) -> tuple[list[list[str]], list[str]]:
    """Returns documents, each a list of sentences, and the name of each for messages.

    Args:
        source: a path to a `.txt` file with one sentence per line and a blank line between
            documents; or to another file of texts, whose lines are sentences; or an iterable of
            such texts or of lists of sentences.
        column: the column of a file that has columns; `text` by default.
    """
    if isinstance(source, str | os.PathLike) and pathlib.Path(source).suffix.lower() == ".txt":
        with open_texts(os.fspath(source), column) as opened:
            return _by_blank_lines(os.fspath(source), opened)
    if isinstance(source, str | os.PathLike):
        texts, places = read_texts(source, column)
        return [_lines(text) for text in texts], places
    given = elements("documents", source, expected="a path or documents")
    documents: list[list[str]] = []
    for number, document in enumerate(given):
        place = f"document {number}"
        if isinstance(document, str):
            sentences = iter(_lines(document))
        else:
            sentences = elements(place, document, expected="a text or sentences")
        documents.append(
            [checked_text(s, f"{place}: sentence {i}") for i, s in enumerate(sentences)]
        )
    return documents, [f"document {number}" for number in range(len(documents))]


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _by_blank_lines(path: str, lines: Iterable[str]) -> tuple[list[list[str]], list[str]]:
    documents: list[list[str]] = []
    places: list[str] = []
    inside = False
    for number, line in enumerate(lines, start=1):
        if line.strip() and not inside:
            documents.append([])
            places.append(f"{path}: line {number}")
        if inside := bool(line.strip()):
            documents[-1].append(line)
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
    room: int

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: int) -> Example:
        return {"example": np.int64(index)}

    def __call__(self, example: Example, generator: np.random.Generator) -> Example:
        """Returns a pair; `next_sentence_label` is 0 if the second part follows the first."""
        document, start, stop = self.runs[int(example["example"])]
        sentences = self.documents[document][start:stop]
        split = int(generator.integers(1, len(sentences)))
        first, second = _joined(sentences[:split]), _joined(sentences[split:])
        is_random = bool(generator.random() < 0.5)
        if is_random:
            second = self._random_sentences(document, max(self.room - len(first[0]), 1), generator)
        first, second = _fitting(first, second, self.room)
        types = np.full(sum(map(len, (first[0], second[0]))) + self.frame.length, 1, np.int32)
        types *= self.frame.types[1]
        head = len(self.frame.before) + len(first[0]) + len(self.frame.between)
        types[:head] = self.frame.types[0]
        return framed(self.frame, first, second) | {
            "token_type_ids": types,
            "next_sentence_label": np.int32(is_random),
            "example": example["example"],
        }

    def _random_sentences(
        self, own: int, capacity: int, generator: np.random.Generator
    ) -> Sentence:
        """Returns as many sentences of another document as fit; the first may be truncated."""
        other = int(generator.integers(len(self.documents) - 1))
        document = self.documents[other + (other >= own)]
        start = int(generator.integers(len(document)))
        lengths = np.cumsum([len(ids) for ids, _ in document[start:]])
        count = max(int((lengths <= capacity).sum()), 1)
        ids, starts = _joined(document[start : start + count])
        return ids[:capacity], starts[:capacity]


def pairs_of(
    tokenizer: Any,
    documents: Sequence[Sequence[str]],
    places: Sequence[str],
    max_length: int,
    truncation: bool,
    show: bool | None,
) -> SentencePairs:
    """Tokenizes documents, checks their lengths and returns them as runs of sentences."""
    backend = backend_of(tokenizer)
    frame = frame_of(backend, pair=True)
    capacity = max_length - frame.length
    if capacity < 2:
        raise InputError(
            f"max_length: expected at least {frame.length + 2}, the special tokens and one of each "
            f"sentence; found {max_length}"
        )
    if len(documents) < 2:
        raise InputError(f"documents: expected at least two, found {len(documents)}")
    for place, document in zip(places, documents, strict=True):
        if len(document) < 2:
            raise InputError(f"{place}: expected at least two sentences, found {len(document)}")
    flat = iter(
        encoded(backend, [s for d in documents for s in d], special=False, show_progress=show)
    )
    read: list[list[Sentence]] = []
    for document, place in zip(documents, places, strict=True):
        found = [next(flat) for _ in document]
        for number, encoding in enumerate(found):
            if not encoding.ids:
                raise InputError(f"{place}: sentence {number} has no token")
        read.append([(np.array(e.ids, np.int32), word_starts(e)) for e in found])
    runs = []
    for number, document in enumerate(read):
        lengths = [len(ids) for ids, _ in document]
        for start, stop in _runs(lengths, capacity):
            if not truncation:
                place = f"{places[number]}: sentences {start} to {stop - 1}"
                check_length(place, sum(lengths[start:stop]) + frame.length, max_length)
            runs.append((number, start, stop))
    return SentencePairs(read, runs, frame, capacity)


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


def _joined(sentences: Sequence[Sentence]) -> Sentence:
    return np.concatenate([ids for ids, _ in sentences]), np.concatenate(
        [starts for _, starts in sentences]
    )


def _fitting(first: Sentence, second: Sentence, capacity: int) -> tuple[Sentence, Sentence]:
    """Truncates the longer of two texts at its end until both fit."""
    one, two = len(first[0]), len(second[0])
    while one + two > capacity:
        one, two = (one - 1, two) if one > two else (one, two - 1)
    return (first[0][:one], first[1][:one]), (second[0][:two], second[1][:two])
