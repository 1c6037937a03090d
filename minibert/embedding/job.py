"""Embedding a file of any size: in parts, so that a job that was killed can be resumed.

The parts are written to `OUTPUT.parts`. When all exist they are merged into the output, which is
written completely or not at all. A part always holds the same texts in the same batches, so that a
job that was killed and resumed writes the same bytes as one that was not.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from minibert.core.atomic import flush_path
from minibert.core.atomic_file import keep_mode
from minibert.core.checks import as_array, check_text, elements
from minibert.core.paths import path_text
from minibert.embedding.job_parts import (
    AGAIN,
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

Encode = Callable[[list[str]], Any]
Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]


class EmbeddingResult(NamedTuple):
    """The result of a job.

    Attributes:
        rows: the number of texts.
        computed: how many of them this call computed; the others were in an earlier job's parts.
        cut: how many were truncated, according to `embed_file`'s `cut`.
    """

    rows: int
    computed: int
    cut: int


def embed_file(
    texts: Iterable[str],
    encode: Encode,
    output: str,
    *,
    made_by: Mapping[str, Any],
    finish: Finish = lambda vectors, ranges: vectors,
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
        encode: returns an array `(texts, dim)` of finite numbers for a list of texts, with the same
            `dim` and dtype at every call.
        output: `.npy`, an array `(texts, dim)`; or `.parquet`, with columns `row` and `embedding`.
        made_by: what the output depends on besides the texts, as values that JSON can represent.
        finish: applied to each part at the end, with the min and max of each column over all parts,
            `(2, dim)`; for example a quantization.
        cut: returns how many of the texts of the last `encode` were truncated.
        least_rows: the smallest number of texts; 2 if `finish` needs ranges.
        rows_a_part: the number of texts of a part.
        overwrite: whether to replace an existing output.
        restart: whether to discard the parts of an earlier job.
        progress: called with the rows of every part, and whether they were computed.
        warn: called with a message about a damaged part, which is computed again.

    Raises:
        TargetError: if the output exists or cannot be written; or its parts belong to another job,
            or have vectors of a different width or dtype.
        SourceError: if there are too few texts.
        TextError: if `encode` raises it; the number of the text is changed to that among all texts.
        TextNotFiniteError: in the same way, or if a vector is not finite.
        InputError: if `texts` are not texts, or `encode` or `finish` does not return a row for
            each text.
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
        elif finished:  # the job was killed when it only had to remove its parts
            same = finished.job == parts.job
            if not same or finished.texts != digest_of([digest_of(some) for some in chunks]):
                raise _exists(output)
            parts.discard()
            return EmbeddingResult(finished.rows, 0, finished.cut)
        parts.begin()
        try:
            result, digests = _compute_parts(parts, chunks, encode, cut, progress)
        except BaseException:
            if not has_parts(output):  # else a later run resumes from them
                parts.discard()
            raise
        if result.rows < least_rows:
            parts.discard()
            if not result.rows:
                raise SourceError("no texts: there is nothing to embed")
            raise SourceError(f"too few texts: expected at least {least_rows}, found {result.rows}")
        if os.path.exists(parts.path(len(digests))):
            raise parts.changed(len(digests))
        _assemble(parts, digests, result, output, finish)
        parts.discard()
    return result


def check_output(output: str, overwrite: bool, source: str | None = None) -> None:
    """Raises errors that can be detected before any computation.

    Args:
        output: the file to write.
        overwrite: whether it may exist.
        source: the file of the texts, which must be another file.

    Raises:
        InputError: if the output is not a path.
        TargetError: if it exists, is a link or the source, or has an unsupported type.
    """
    path_text("output", output)
    if _ending(output) not in ENDINGS:
        raise TargetError(f"{output}: expected a file that ends in {' or '.join(ENDINGS)}")
    if _ending(output) == ".parquet":
        _pyarrow(output)
    if os.path.isdir(output):
        raise TargetError(f"{output}: is a folder")
    if os.path.islink(output):  # jobs and their locks are identified by the path
        raise TargetError(f"{output}: is a link; pass the file itself, {os.path.realpath(output)}")
    if source is not None and os.path.exists(output) and os.path.samefile(source, output):
        raise TargetError(f"{output}: is the input, {source}; choose another")
    if os.path.lexists(output) and not overwrite and finished_job(output) is None:
        raise _exists(output)


def _exists(output: str) -> TargetError:
    return TargetError(f"{output}: exists; choose another, or --overwrite to replace it")


def _compute_parts(
    parts: Parts,
    chunks: Iterator[list[str]],
    encode: Encode,
    cut: Callable[[], int],
    progress: Callable[[int, bool], None],
) -> tuple[EmbeddingResult, list[str]]:
    """Computes the parts that do not exist; also returns the digest of each part's texts."""
    result, digests = EmbeddingResult(0, 0, 0), []
    like: np.ndarray | None = None
    for number, some in enumerate(chunks):
        for index, text in enumerate(some, start=result.rows):
            check_text(text, f"text {index}")
        digests.append(digest_of(some))
        part = parts.find(number, digests[-1])
        new = part is None
        try:
            if part is None:
                vectors = _rows("encode", encode(some), len(some), like)
                if wrong := rows_not_finite(vectors):
                    why = "its vector is not finite: it holds NaN or infinity"
                    raise TextNotFiniteError(wrong, why)
                part = Part(vectors, cut(), parts.job, digests[-1])
                parts.store(number, part)
            like = _rows(f"part {number}", part.vectors, len(some), like)
        except TextError as reason:
            raise TextError(result.rows + reason.number, reason.why) from None
        except TextNotFiniteError as reason:
            numbers = [result.rows + number for number in reason.numbers]
            raise TextNotFiniteError(numbers, reason.why) from None
        except _MismatchError as reason:
            if new and result.computed == result.rows:
                raise
            raise TargetError(
                f"{reason}. Parts of an earlier job are in {parts.folder}: {AGAIN}, or remove that "
                "folder"
            ) from None
        rows, computed = result.rows + len(some), result.computed + new * len(some)
        result = EmbeddingResult(rows, computed, result.cut + part.cut)
        progress(len(some), new)
    return result, digests


class _MismatchError(InputError):
    """Vectors have a different width or dtype from previous ones."""


def _rows(name: str, found: object, count: int, like: np.ndarray | None) -> np.ndarray:
    """Returns `found` as an array, after checking that it has a row of numbers for each text.

    Args:
        name: the source of `found`, for messages.
        found: the value to check.
        count: the expected number of rows.
        like: other rows, with the expected width and dtype.

    Raises:
        InputError: if `found` has a different shape, width or dtype.
    """
    array = np.asarray(as_array(name, found))
    if array.ndim != 2 or len(array) != count or not array.size or array.dtype.kind not in "iuf":
        raise InputError(
            f"{name}: expected an array of numbers of shape ({count}, dim), a row for each text; "
            f"found {array.dtype} of shape {array.shape}"
        )
    if like is not None and (array.shape[1], array.dtype) != (like.shape[1], like.dtype):
        raise _MismatchError(
            f"{name}: expected {like.dtype} of shape ({count}, {like.shape[1]}), as for previous "
            f"texts; found {array.dtype} of shape {array.shape}"
        )
    return array


def _assemble(
    parts: Parts,
    digests: list[str],
    result: EmbeddingResult,
    output: str,
    finish: Finish,
) -> None:
    with writing(output):
        each = [(part.min(axis=0), part.max(axis=0)) for part in parts.vectors(len(digests))]
        least, greatest = zip(*each, strict=True)
        ranges = np.stack([np.min(least, axis=0), np.max(greatest, axis=0)])

        def finished() -> Iterator[np.ndarray]:
            like: np.ndarray | None = None
            for part in parts.vectors(len(digests)):
                like = _rows("finish", finish(part, ranges), len(part), like)
                yield np.ascontiguousarray(like)

        whole = os.path.join(parts.folder, "whole")
        write = _write_npy if _ending(output) == ".npy" else _write_parquet
        with open(whole, "wb") as file:
            keep_mode(output, file)
            write(file, result.rows, finished())
        flush_path(whole)
        parts.finish(whole, digest_of(digests), result.rows, result.cut)
        os.replace(whole, output)
        flush_path(os.path.dirname(os.path.abspath(output)))


def _ending(path: str) -> str:
    """Returns a file's extension in lower case."""
    return os.path.splitext(path)[1].lower()


def _write_npy(file: BinaryIO, rows: int, parts: Iterator[np.ndarray]) -> None:
    first = next(parts)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, *first.shape[1:])})
    file.write(first.tobytes())
    for part in parts:
        file.write(part.tobytes())


def _write_parquet(file: BinaryIO, rows: int, parts: Iterator[np.ndarray]) -> None:
    pyarrow = _pyarrow(file.name)
    start, writer = 0, None
    for part in parts:
        flat = pyarrow.array(part.reshape(-1))
        vectors = pyarrow.FixedSizeListArray.from_arrays(flat, part.shape[1])
        numbers = pyarrow.array(np.arange(start, start + len(part)))
        table = pyarrow.table({"row": numbers, "embedding": vectors})
        writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
        start += len(part)
    if writer is not None:
        writer.close()


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise TargetError(
            f"{shown(path)}: parquet needs pyarrow: pip install 'minibert-jax[data]'"
        ) from None
    return pyarrow
