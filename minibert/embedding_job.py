"""Embedding a file of any size: in parts, so that a job that was killed goes on where it was.

The parts lie in `OUTPUT.parts`. When all are there they become the output, which is there complete
or not at all. A part always holds the same texts in the same batches: a job that was killed and
resumed gives the bytes of one that was not.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from minibert.atomic import flush_path, reported
from minibert.embedding_outputs import check_ending, ending, write_rows
from minibert.embedding_parts import Finished, Parts, digest_of, finished, has_parts, locked
from minibert.errors import SourceError, TargetError, TextError, TextNotFiniteError

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
    encode: Callable[[list[str]], np.ndarray],
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
) -> Embedded:
    """Embeds texts into a file, going on with an earlier job if there is one.

    Args:
        texts: read once, a part at a time.
        encode: from some texts to an array with a row for each.
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

    Raises:
        TargetError: the output exists, cannot be written, or was begun with something else.
        SourceError: there are too few texts.
        TextError: `encode` raised one; it says which of all the texts it is.
        TextNotFiniteError: the same.
    """
    check_output(output, overwrite)
    with locked(output):
        check_output(output, overwrite)  # while we waited, another may have written it
        parts = Parts(output, {"rows_a_part": rows_a_part, **made_by})
        parts.check()
        source = iter(texts)
        chunks = iter(lambda: list(islice(source, rows_a_part)), [])
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
    encode: Callable[[list[str]], np.ndarray],
    cut: Callable[[], int],
    progress: Callable[[int, bool], None],
) -> tuple[Embedded, list[str]]:
    """Makes the parts that are not there; also the digest of each part's texts."""
    done, digests = Embedded(0, 0, 0), []
    for number, some in enumerate(chunks):
        digests.append(digest_of(some))
        known = parts.find(number, digests[-1])
        new = known is None
        if known is None:
            try:
                vectors = encode(some)
            except TextError as reason:
                raise TextError(done.rows + reason.number, reason.why) from None
            except TextNotFiniteError as reason:
                numbers = [done.rows + number for number in reason.numbers]
                raise TextNotFiniteError(numbers, reason.why) from None
            known = cut()
            parts.store(number, vectors, digests[-1], known)
        done = Embedded(done.rows + len(some), done.computed + new * len(some), done.cut + known)
        progress(len(some), new)
    return done, digests


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
        rows = (np.ascontiguousarray(finish(part, ranges)) for part in vectors())
        write_rows(whole, ending(output), done.rows, rows)
        parts.finish(whole, digest_of(digests), done.rows, done.cut)
        os.replace(whole, output)
        flush_path(os.path.dirname(os.path.abspath(output)))
