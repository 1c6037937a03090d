"""Embedding a file of any size: in parts, so that a job that was killed goes on where it was.

The parts lie in `OUTPUT.parts`. Each is written under another name, flushed and renamed, and knows
the digest of the texts it was made of; what it was made by is in `job.json`. When all are there
they become the output, which is there complete or not at all. A part always holds the same texts
in the same batches: a job that was killed and resumed gives the bytes of one that was not.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from minibert.errors import SourceError, TargetError, shown

ROWS_A_PART = 2048
OUTPUTS = (".npy", ".parquet")


def embed_file(
    texts: Iterable[str],
    encode: Callable[[list[str]], np.ndarray],
    output: str,
    *,
    made_by: dict[str, Any],
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda vectors, ranges: vectors,
    rows_a_part: int = ROWS_A_PART,
    overwrite: bool = False,
    restart: bool = False,
    progress: Callable[[int, bool], None] = lambda rows, computed: None,
) -> tuple[int, int]:
    """Embeds texts into a file, going on with an earlier job if there is one.

    Args:
        texts: read once, a part at a time.
        encode: from some texts to an array with a row for each.
        output: `.npy`, an array `(texts, dim)`; or `.parquet`, with columns `row` and `embedding`.
        made_by: what the embeddings depend on besides the texts; as JSON holds it.
        finish: what is done to the embeddings in the end, when the smallest and the largest number
            of every column are known, `(2, dim)`: quantised, for example.
        rows_a_part: how many texts at a time.
        overwrite: whether to replace an existing output.
        restart: whether to throw away the parts of an earlier job.
        progress: told the rows of every part, and whether they were computed (or found).

    Returns:
        How many rows there are, and how many of them were computed.

    Raises:
        TargetError: the output exists, cannot be written, or was begun with something else.
    """
    check_output(output, overwrite)
    parts = f"{output}.parts"
    with _reported(output):
        if _was_just_finished(parts, output):
            _remove(parts)
            return _rows_of(output), 0
        if restart:
            shutil.rmtree(parts, ignore_errors=True)
        os.makedirs(parts, exist_ok=True)
        with _locked(parts):
            _begin(parts, {"rows_a_part": rows_a_part, **made_by})
            rows = computed = count = 0
            source = iter(texts)
            while some := list(islice(source, rows_a_part)):
                new = _part(_name(parts, count), some, encode)
                rows, computed, count = rows + len(some), computed + new * len(some), count + 1
                progress(len(some), new)
            if not count:
                _remove(parts)
                raise SourceError("no texts: there is nothing to embed")
            if os.path.exists(_name(parts, count)):
                raise _changed(_name(parts, count))
            _assemble(parts, count, rows, output, finish)
            _remove(parts)
    return rows, computed


def check_output(output: str, overwrite: bool) -> None:
    """Raises what can be known before anything is computed.

    Raises:
        TargetError: the output exists, or has an ending that is not known.
    """
    if os.path.splitext(output)[1] not in OUTPUTS:
        raise TargetError(f"{output}: expected a file that ends in {' or '.join(OUTPUTS)}")
    if os.path.isdir(output):
        raise TargetError(f"{output}: is a folder")
    exists = os.path.exists(output) and not _was_just_finished(f"{output}.parts", output)
    if exists and not overwrite:
        raise TargetError(f"{output}: exists; choose another, or --overwrite to replace it")


def _part(path: str, texts: list[str], encode: Callable[[list[str]], np.ndarray]) -> bool:
    """Makes a part, unless it is there; whether it had to be made."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0\n")
    if os.path.exists(path):
        with np.load(path) as part:
            if str(part["digest"]) != digest.hexdigest():
                raise _changed(path)
        return False
    vectors = encode(texts)
    with open(f"{path}.new", "wb") as file:
        np.savez(file, vectors=vectors, digest=np.array(digest.hexdigest()))
        _flush(file)
    os.replace(f"{path}.new", path)
    return True


def _assemble(
    parts: str,
    count: int,
    rows: int,
    output: str,
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    def vectors() -> Iterator[np.ndarray]:
        return (_vectors(_name(parts, number)) for number in range(count))

    ranges = np.array([(part.min(axis=0), part.max(axis=0)) for part in vectors()])
    ranges = np.stack([ranges[:, 0].min(axis=0), ranges[:, 1].max(axis=0)])
    new = os.path.join(parts, "whole")
    write = _write_npy if output.endswith(".npy") else _write_parquet
    write(new, rows, (np.ascontiguousarray(finish(part, ranges)) for part in vectors()))
    state = os.stat(new)
    with open(os.path.join(parts, "finished"), "w") as file:
        json.dump([state.st_ino, state.st_size, rows], file)
        _flush(file)
    os.replace(new, output)
    folder = os.open(os.path.dirname(os.path.abspath(output)), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def _write_npy(path: str, rows: int, parts: Iterator[np.ndarray]) -> None:
    first = next(parts)
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (rows, *first.shape[1:])})
        file.write(first.tobytes())
        for part in parts:
            file.write(part.tobytes())
        _flush(file)


def _write_parquet(path: str, rows: int, parts: Iterator[np.ndarray]) -> None:
    pyarrow, parquet = _pyarrow(path)
    start, writer = 0, None
    with open(path, "wb") as file:
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
        _flush(file)


def _rows_of(output: str) -> int:
    if output.endswith(".npy"):
        return len(np.load(output, mmap_mode="r"))
    return _pyarrow(output)[1].ParquetFile(output).metadata.num_rows


def _vectors(path: str) -> np.ndarray:
    with np.load(path) as part:
        return part["vectors"]


def _name(parts: str, number: int) -> str:
    return os.path.join(parts, f"{number:07}.npz")


def _begin(parts: str, job: dict[str, Any]) -> None:
    path = os.path.join(parts, "job.json")
    wanted = json.dumps(job, sort_keys=True, indent=1)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            found = file.read()
        if found == wanted:
            return
        begun = json.loads(found)
        names = sorted(n for n in begun.keys() | job.keys() if begun.get(n) != job.get(n))
        raise TargetError(
            f"{parts}: was begun with another {', '.join(names)}; go on with that, or --restart to "
            "throw it away"
        )
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.write(wanted)
        _flush(file)
    os.replace(f"{path}.new", path)


def _was_just_finished(parts: str, output: str) -> bool:
    """Whether a job was killed between its last rename and the removal of its parts."""
    path = os.path.join(parts, "finished")
    if not (os.path.isdir(parts) and os.path.exists(output)):
        return False
    if not os.path.exists(path):
        return not os.listdir(parts)
    with open(path, encoding="utf-8") as file:
        inode, size, _ = json.load(file)
    state = os.stat(output)
    return (state.st_ino, state.st_size) == (inode, size)


def _remove(parts: str) -> None:
    """Removes the parts, and last what says that the job is finished."""
    for name in sorted(os.listdir(parts), key=lambda name: name == "finished"):
        os.unlink(os.path.join(parts, name))
    os.rmdir(parts)


@contextlib.contextmanager
def _locked(parts: str) -> Generator[None]:
    with open(os.path.join(parts, "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TargetError(f"{parts}: another job is at work on it") from None
        yield


@contextlib.contextmanager
def _reported(output: str) -> Generator[None]:
    try:
        yield
    except OSError as reason:
        raise TargetError(f"{output}: cannot be written ({reason.strerror or reason})") from reason


def _changed(path: str) -> TargetError:
    return TargetError(
        f"{path}: was made of other texts: the input has changed; --restart to begin again"
    )


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _pyarrow(path: str) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise TargetError(
            f"{shown(path)}: parquet needs pyarrow: pip install 'minibert-jax[data]'"
        ) from None
    return pyarrow, parquet
