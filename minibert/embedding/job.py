"""Embedding a file of any size: in parts, so that a job that was killed can be resumed.

The parts are written to `OUTPUT.parts`. When all exist they become the output, which exists as a
whole or not at all. A part always holds the same texts in the same batches, so that a job that was
killed and resumed writes the same bytes as one that was not.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from minibert.core.atomic import flush_path
from minibert.core.checks import as_array, check_text, elements
from minibert.embedding.job_parts import (
    AGAIN,
    FinishedJob,
    Part,
    Parts,
    digest_of,
    finished_job,
    has_parts,
    job_lock,
)
from minibert.errors import (
    InputError,
    SourceError,
    TargetError,
    TextError,
    TextNotFiniteError,
    shown,
    writing,
)
from minibert.nn.numerics import rows_not_finite

ROWS_A_PART = 2048
ENDINGS = (".npy", ".parquet")


class EmbeddingResult(NamedTuple):
    """The result of a job.

    Attributes:
        rows: the number of texts.
        computed: how many of them this call computed; the others were in an earlier job's parts.
        cut: how many of all were truncated, according to `embed_file`'s `cut`.
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
) -> EmbeddingResult:
    """Embeds texts into a file, resuming an earlier job if there is one.

    Args:
        texts: read once, a part at a time.
        encode: from some texts to an array `(texts, dim)` of finite numbers, of the same `dim` and
            dtype at every call.
        output: `.npy`, an array `(texts, dim)`; or `.parquet`, with columns `row` and `embedding`.
        made_by: what the output depends on besides the texts, as JSON can represent it.
        finish: applied to each part in the end, with the min and max of every column of all,
            `(2, dim)`; for example a quantisation.
        cut: returns how many of the texts of the last `encode` were truncated.
        least_rows: the smallest number of texts; two, if `finish` needs ranges.
        rows_a_part: the number of texts of a part.
        overwrite: whether to replace an existing output.
        restart: whether to discard the parts of an earlier job.
        progress: called with the rows of every part, and whether they were computed.
        warn: called with a message about a damaged part, which is computed again.

    Raises:
        TargetError: the output exists or cannot be written; or its parts are of another job, or of
            vectors of another width or dtype.
        SourceError: there are too few texts.
        TextError: raised by `encode`, with the number of the text among all.
        TextNotFiniteError: the same, or a vector is not finite.
        InputError: `texts` are not texts, or `encode` or `finish` did not return a row for each.
    """
    texts = elements("texts", texts, expected="texts")
    check_output(output, overwrite)
    with job_lock(output):
        check_output(output, overwrite)  # another job may have written it in the meantime
        parts = Parts(output, {"rows_a_part": rows_a_part, **made_by}, warn)
        parts.check()
        chunks = iter(lambda: list(islice(texts, rows_a_part)), [])
        finished = finished_job(output)
        if restart or (overwrite and finished):
            parts.discard()
        elif finished:
            return _already_finished(parts, chunks, finished, output)
        parts.begin()
        with _removed_if_empty(parts, output):
            result, digests = _compute_parts(parts, chunks, encode, cut, progress)
        _check_rows(parts, result.rows, least_rows)
        if parts.has(len(digests)):
            raise parts.changed(len(digests))
        _assemble(parts, digests, result, output, finish)
        parts.discard()
    return result


def check_output(output: str, overwrite: bool, source: str | None = None) -> None:
    """Raises the errors that are known before anything is computed.

    Args:
        output: the file to write.
        overwrite: whether it may exist.
        source: the file of the texts, which it must not be.

    Raises:
        TargetError: the output exists, is a link or the source, or cannot be written at all.
    """
    if "\0" in output:
        raise TargetError(f"{shown(output)}: expected a path, found a NUL character in it")
    if _ending(output) not in ENDINGS:
        raise TargetError(f"{output}: expected a file that ends in {' or '.join(ENDINGS)}")
    if _ending(output) == ".parquet":
        _pyarrow(output)
    if os.path.isdir(output):
        raise TargetError(f"{output}: is a folder")
    if os.path.islink(output):  # two names of one file would be two jobs
        raise TargetError(f"{output}: is a link; give the file itself, {os.path.realpath(output)}")
    if source is not None and os.path.exists(output) and os.path.samefile(source, output):
        raise TargetError(f"{output}: is the input, {source}; choose another")
    if os.path.lexists(output) and not overwrite and finished_job(output) is None:
        raise _exists(output)


def _exists(output: str) -> TargetError:
    return TargetError(f"{output}: exists; choose another, or --overwrite to replace it")


def _already_finished(
    parts: Parts, chunks: Iterator[list[str]], finished: FinishedJob, output: str
) -> EmbeddingResult:
    """Removes the parts of a job that was killed after its output was complete, if it is this job.

    Raises:
        TargetError: it is another job.
    """
    if finished.job != parts.job or digest_of([digest_of(some) for some in chunks]) != (
        finished.texts
    ):
        raise _exists(output)
    parts.discard()
    return EmbeddingResult(finished.rows, 0, finished.cut)


@contextlib.contextmanager
def _removed_if_empty(parts: Parts, output: str) -> Generator[None]:
    """Removes the folder of parts after an error, unless a later run can resume from it."""
    try:
        yield
    except BaseException:
        if not has_parts(output):
            parts.discard()
        raise


def _check_rows(parts: Parts, rows: int, least_rows: int) -> None:
    if rows >= least_rows:
        return
    parts.discard()
    if not rows:
        raise SourceError("no texts: there is nothing to embed")
    raise SourceError(f"too few texts: expected at least {least_rows}, found {rows}")


def _compute_parts(
    parts: Parts,
    chunks: Iterator[list[str]],
    encode: Callable[[list[str]], Any],
    cut: Callable[[], int],
    progress: Callable[[int, bool], None],
) -> tuple[EmbeddingResult, list[str]]:
    """Computes the parts that do not exist; returns also the digest of each part's texts."""
    result, digests = EmbeddingResult(0, 0, 0), []
    like: np.ndarray | None = None
    for number, some in enumerate(chunks):
        for index, text in enumerate(some, start=result.rows):
            check_text(text, f"text {index}")
        digests.append(digest_of(some))
        part = parts.find(number, digests[-1])
        new = part is None
        with _of_earlier_job(parts, not new or result.computed < result.rows):
            if part is None:
                part = Part(_encoded(encode, some, result.rows, like), cut())
                parts.store(number, part, digests[-1])
            like = _rows(f"part {number}", part.vectors, len(some), like)[:0]
        rows, computed = result.rows + len(some), result.computed + new * len(some)
        result = EmbeddingResult(rows, computed, result.cut + part.cut)
        progress(len(some), new)
    return result, digests


@contextlib.contextmanager
def _of_earlier_job(parts: Parts, resumed: bool) -> Generator[None]:
    """If vectors differ from those of an earlier job's parts, says how to do without these.

    Raises:
        TargetError: they do.
    """
    try:
        yield
    except _UnlikeError as reason:
        if not resumed:
            raise
        raise TargetError(
            f"{reason}. Parts of an earlier job are in {parts.folder}: {AGAIN}, or remove that "
            "folder"
        ) from None


def _encoded(
    encode: Callable[[list[str]], Any], texts: list[str], start: int, like: np.ndarray | None
) -> np.ndarray:
    """The vectors of a part, whose first text is number `start` of all."""
    try:
        vectors = _rows("encode", encode(texts), len(texts), like)
        _check_finite(vectors)
    except TextError as reason:
        raise TextError(start + reason.number, reason.why) from None
    except TextNotFiniteError as reason:
        raise TextNotFiniteError([start + n for n in reason.numbers], reason.why) from None
    return vectors


class _UnlikeError(InputError):
    """Vectors are of another width or dtype than those before."""


def _rows(name: str, found: Any, count: int, like: np.ndarray | None) -> np.ndarray:
    """Returns what `name` returned for `count` texts, if it is a row of numbers for each.

    Args:
        name: for messages.
        found: what was returned.
        count: the number of rows expected.
        like: other rows, whose width and dtype are expected.

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
        raise _UnlikeError(
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
    result: EmbeddingResult,
    output: str,
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    def vectors() -> Iterator[np.ndarray]:
        return (parts.vectors(number) for number in range(len(digests)))

    with writing(output):
        ranges = np.array([(part.min(axis=0), part.max(axis=0)) for part in vectors()])
        ranges = np.stack([ranges[:, 0].min(axis=0), ranges[:, 1].max(axis=0)])
        whole = os.path.join(parts.folder, "whole")
        write = _write_npy if _ending(output) == ".npy" else _write_parquet
        with open(whole, "wb") as file:
            write(file, result.rows, _finish_parts(vectors(), finish, ranges))
        flush_path(whole)
        parts.finish(whole, digest_of(digests), result.rows, result.cut)
        os.replace(whole, output)
        flush_path(os.path.dirname(os.path.abspath(output)))


def _finish_parts(
    parts: Iterator[np.ndarray],
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ranges: np.ndarray,
) -> Iterator[np.ndarray]:
    like: np.ndarray | None = None
    for part in parts:
        rows = _rows("finish", finish(part, ranges), len(part), like)
        like = rows[:0]
        yield np.ascontiguousarray(rows)


def _ending(path: str) -> str:
    """Returns a file's extension in lower case."""
    return os.path.splitext(path)[1].lower()


def _write_npy(file: Any, rows: int, parts: Iterator[np.ndarray]) -> None:
    first = next(parts)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, *first.shape[1:])})
    file.write(first.tobytes())
    for part in parts:
        file.write(part.tobytes())


def _write_parquet(file: Any, rows: int, parts: Iterator[np.ndarray]) -> None:
    pyarrow, parquet = _pyarrow(file.name)
    start, writer = 0, None
    for part in parts:
        flat = pyarrow.array(part.reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, part.shape[1])
        numbers = pyarrow.array(np.arange(start, start + len(part)))
        table = pyarrow.table({"row": numbers, "embedding": vectors})
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
        start += len(part)
    if writer is not None:
        writer.close()


def _pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise TargetError(
            f"{shown(path)}: parquet needs pyarrow: pip install 'minibert-jax[data]'"
        ) from None
    return pyarrow, parquet
