"""Files of vectors, written a part at a time: npy or parquet."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from minibert.errors import TargetError, shown

ENDINGS = (".npy", ".parquet")


def ending(path: str) -> str:
    """Returns a file's extension in lower case."""
    return os.path.splitext(path)[1].lower()


def check_ending(path: str) -> None:
    """Raises a `TargetError` if files of this extension cannot be written."""
    if ending(path) not in ENDINGS:
        raise TargetError(f"{path}: expected a file that ends in {' or '.join(ENDINGS)}")
    if ending(path) == ".parquet":
        _pyarrow(path)


def write_rows(path: str, kind: str, rows: int, parts: Iterator[np.ndarray]) -> None:
    """Writes vectors to a file, and flushes it to the disk.

    Args:
        path: the file to write.
        kind: one of `ENDINGS`: `.npy`, an array `(rows, dim)`; `.parquet`, with columns `row` and
            `embedding`.
        rows: the number of rows of all parts.
        parts: arrays `(some, dim)`, at least one.
    """
    with open(path, "wb") as file:
        (_write_npy if kind == ".npy" else _write_parquet)(file, rows, parts)
        flush(file)


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


def flush(file: Any) -> None:
    """Flushes a file to the disk."""
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
