"""Embedding a file of any size: in parts, so that a job that was killed goes on where it was.

The parts lie in `OUTPUT.parts`. When all are there they become the output, which is there complete
or not at all. A part always holds the same texts in the same batches: a job that was killed and
resumed gives the bytes of one that was not.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from minibert.atomic import flush_path
from minibert.atomic_file import reported
from minibert.checks import as_array
from minibert.embedding_outputs import check_ending, ending, write_rows
from minibert.embedding_parts import (
    Finished,
    Part,
    Parts,
    digest_of,
    finished,
    has_parts,
    locked,
)
from minibert.errors import (
    InputError,
    SourceError,
    TargetError,
    TextError,
    TextNotFiniteError,
    shown,
)
from minibert.finite import rows_not_finite
from minibert.text_lists import check_text, elements

ROWS_A_PART = 2048


class Embedded(NamedTuple):
    """What a job did.

    Attributes:
        rows: how many texts there are.
        computed: how many of them were computed, and not found done.
        cut: how many of all were cut, as `encode`'s `cut` says.
    """

    rows: int
    computed: int
    cut: int


def embed_file(
    texts: Iterable[str],
    encode: Callable[[list[str]], Any],
    output: str,
    *,
    made_by: Mapping[str, Any],
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda vectors, ranges: vectors,
    cut: Callable[[], int] = lambda: 0,
    least_rows: int = 1,
    rows_a_part: int = ROWS_A_PART,
    overwrite: bool = False,
    restart: bool = False,
    progress: Callable[[int, bool], None] = lambda rows, computed: None,
    warn: Callable[[str], object] = warnings.warn,
) -> Embedded:
    """Embeds texts into a file, going on with an earlier job if there is one.

    Args:
        texts: read once, a part at a time.
        encode: from some texts to an array `(texts, dim)` of finite numbers, of the same `dim` and
            dtype at every call.
        output: `.npy`, an array `(texts, dim)`; or `.parquet`, with columns `row` and `embedding`.
        made_by: what the output depends on besides the texts; as JSON holds it.
        finish: what is done to the embeddings in the end, when the smallest and the largest number
            of every column are known, `(2, dim)`: quantised, for example.
        cut: how many of the texts of the last `encode` were cut.
        least_rows: how many texts there must be; two, if `finish` needs ranges.
        rows_a_part: how many texts at a time.
        overwrite: whether to replace an existing output.
        restart: whether to throw away the parts of an earlier job.
        progress: told the rows of every part, and whether they were computed (or found).
        warn: told of a part of an earlier job that is damaged, and so computed again.

    Raises:
        TargetError: the output exists, cannot be written, or was begun with something else.
        SourceError: there are too few texts.
        TextError: `encode` raised one; it says which of all the texts it is.
        TextNotFiniteError: the same, or a vector is not finite.
        InputError: `texts` are not texts, or `encode` or `finish` returned something else than a
            row for each.
    """
    texts = elements("texts", texts, expected="texts")
    check_output(output, overwrite)
    with locked(output):
        check_output(output, overwrite)  # while we waited, another may have written it
        parts = Parts(output, {"rows_a_part": rows_a_part, **made_by}, warn)
        parts.check()
        chunks = iter(lambda: list(islice(texts, rows_a_part)), [])
        found = finished(output)
        if restart or (overwrite and found):
            parts.discard()
        elif found:
            return _found_done(parts, chunks, found, output)
        parts.begin()
        try:
            done, digests = _computed(parts, chunks, encode, cut, progress)
        except BaseException:
            if not has_parts(output):  # nothing that another run could go on with
                parts.discard()
            raise
        if done.rows < least_rows:
            parts.discard()
            if not done.rows:
                raise SourceError("no texts: there is nothing to embed")
            raise SourceError(f"too few texts: expected at least {least_rows}, found {done.rows}")
        if parts.has(len(digests)):
            raise parts.changed(len(digests))
        _assemble(parts, digests, done, output, finish)
        parts.discard()
    return done


def check_output(output: str, overwrite: bool, source: str | None = None) -> None:
    """Raises what can be known before anything is computed.

    Args:
        output: what shall be written.
        overwrite: whether it may exist.
        source: the file the texts are in, which it must not be.

    Raises:
        TargetError: the output exists, is a link or the source, or cannot be written at all.
    """
    if "\0" in output:
        raise TargetError(f"{shown(output)}: expected a path, found a NUL character in it")
    check_ending(output)
    if os.path.isdir(output):
        raise TargetError(f"{output}: is a folder")
    if os.path.islink(output):  # two names of one file would be two jobs
        raise TargetError(f"{output}: is a link; give the file itself, {os.path.realpath(output)}")
    if source is not None and os.path.exists(output) and os.path.samefile(source, output):
        raise TargetError(f"{output}: is the input, {source}; choose another")
    if os.path.lexists(output) and not overwrite and finished(output) is None:
        raise _exists(output)


def _exists(output: str) -> TargetError:
    return TargetError(f"{output}: exists; choose another, or --overwrite to replace it")


def _found_done(parts: Parts, chunks: Iterator[list[str]], done: Finished, output: str) -> Embedded:
    """Clears up behind a job that was killed when all was done, if it was this one."""
    if done.job != parts.job or digest_of([digest_of(some) for some in chunks]) != done.texts:
        raise _exists(output)
    parts.discard()
    return Embedded(done.rows, 0, done.cut)


def _computed(
    parts: Parts,
    chunks: Iterator[list[str]],
    encode: Callable[[list[str]], Any],
    cut: Callable[[], int],
    progress: Callable[[int, bool], None],
) -> tuple[Embedded, list[str]]:
    """Makes the parts that are not there; also the digest of each part's texts."""
    done, digests = Embedded(0, 0, 0), []
    like: np.ndarray | None = None
    for number, some in enumerate(chunks):
        for place, text in enumerate(some, start=done.rows):
            check_text(text, f"text {place}")
        digests.append(digest_of(some))
        part = parts.find(number, digests[-1])
        new = part is None
        if part is None:
            try:
                vectors = _rows("encode", encode(some), len(some), like)
                _check_finite(vectors)
            except TextError as reason:
                raise TextError(done.rows + reason.number, reason.why) from None
            except TextNotFiniteError as reason:
                numbers = [done.rows + number for number in reason.numbers]
                raise TextNotFiniteError(numbers, reason.why) from None
            part = Part(vectors, cut())
            parts.store(number, part, digests[-1])
        like = _rows(f"part {number}", part.vectors, len(some), like)[:0]
        done = Embedded(done.rows + len(some), done.computed + new * len(some), done.cut + part.cut)
        progress(len(some), new)
    return done, digests


def _rows(name: str, found: Any, count: int, like: np.ndarray | None) -> np.ndarray:
    """What `name` returned for `count` texts, if it is a row of numbers for each.

    Args:
        name: for messages.
        found: what was returned.
        count: how many rows there must be.
        like: other rows, whose width and dtype these must have.

    Raises:
        InputError: it is something else.
    """
    array = np.asarray(as_array(name, found))
    if array.ndim != 2 or len(array) != count or not array.size or array.dtype.kind not in "iuf":
        raise InputError(
            f"{name}: expected an array of numbers of shape ({count}, dim), a row for each text; "
            f"found {array.dtype} of shape {array.shape}"
        )
    if like is not None and (array.shape[1], array.dtype) != (like.shape[1], like.dtype):
        raise InputError(
            f"{name}: expected {like.dtype} of shape ({count}, {like.shape[1]}), as for the texts "
            f"before; found {array.dtype} of shape {array.shape}"
        )
    return array


def _check_finite(vectors: np.ndarray) -> None:
    if rows := rows_not_finite(vectors):
        raise TextNotFiniteError(rows, "its vector is not finite: it holds NaN or infinity")


def _assemble(
    parts: Parts,
    digests: list[str],
    done: Embedded,
    output: str,
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    def vectors() -> Iterator[np.ndarray]:
        return (parts.vectors(number) for number in range(len(digests)))

    with reported(output):
        ranges = np.array([(part.min(axis=0), part.max(axis=0)) for part in vectors()])
        ranges = np.stack([ranges[:, 0].min(axis=0), ranges[:, 1].max(axis=0)])
        whole = os.path.join(parts.folder, "whole")
        write_rows(whole, ending(output), done.rows, _finished(vectors(), finish, ranges))
        parts.finish(whole, digest_of(digests), done.rows, done.cut)
        os.replace(whole, output)
        flush_path(os.path.dirname(os.path.abspath(output)))


def _finished(
    parts: Iterator[np.ndarray],
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ranges: np.ndarray,
) -> Iterator[np.ndarray]:
    like: np.ndarray | None = None
    for part in parts:
        rows = _rows("finish", finish(part, ranges), len(part), like)
        like = rows[:0]
        yield np.ascontiguousarray(rows)
