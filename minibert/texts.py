"""Texts out of files, one after the other, however large the file: txt, jsonl, csv, parquet."""

import contextlib
import csv
import json
import os
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

from minibert.errors import InputError, SourceError, shown
from minibert.strict_json import unique_keys

KINDS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
ROWS = 1024  # read at a time from a table
LONGEST_CELL = 2**31 - 1  # characters of a csv file's cell; the csv module's own limit is 2**17


class TextFile:
    """An open file of texts; iterate over it once.

    Attributes:
        path: where it is.
        total: its size, in bytes or, of a parquet file, in rows.
        done: how much of that has been read.
    """

    def __init__(self, path: str, kind: str, texts: Iterator[tuple[str, int]], total: int):
        self.path, self.total, self.done = path, total, 0
        self._kind, self._texts = kind, texts

    def __iter__(self) -> Iterator[str]:
        try:
            for text, done in self._texts:
                self.done = done
                yield text
        except OSError as reason:
            raise SourceError(
                f"{self.path}: cannot be read ({reason.strerror or reason})"
            ) from None

    def place(self, row: int) -> str:
        """Where in the file text number `row` is, for a message; counted from 1, as editors do."""
        return f"{self.path}: {'line' if self._kind in ('txt', 'jsonl') else 'row'} {row + 1}"


@contextlib.contextmanager
def open_texts(path: str, column: str | None = None) -> Generator[TextFile]:
    """Opens a file of texts; its ending says what it is.

    Args:
        path: `.txt`, a text a line; `.jsonl` (or `.ndjson`), an object a line; `.csv`, with a
            header; `.parquet`.
        column: the field of a jsonl object, or the column of a table: `text` by default.

    Raises:
        SourceError: there is no such file, or its ending is none of these.
        InputError: while it is read: a line is no text, or there is no such column.
    """
    if path == "-":
        raise SourceError("-: standard input does not say what it holds; give a file")
    kind = KINDS.get(os.path.splitext(path)[1].lower())
    if kind is None:
        raise SourceError(f"{path}: expected a file that ends in {', '.join(KINDS)}")
    if kind == "txt" and column is not None:
        raise InputError(f"column: {path} has no columns, a line is a text")
    try:
        file = open(path, "rb")  # noqa: SIM115  # closed below
    except OSError as reason:
        raise SourceError(f"{path}: cannot be read ({reason.strerror})") from None
    with file:
        total = os.fstat(file.fileno()).st_size
        match kind:
            case "txt":
                texts = _lines(path, file)
            case "jsonl":
                texts = _objects(path, file, column or "text")
            case "csv":
                texts = _csv(path, file, column or "text")
            case _:
                texts, total = _parquet(path, file, column or "text")
        yield TextFile(path, kind, texts, total)


def _decoded(path: str, file: BinaryIO) -> Iterator[tuple[str, int]]:
    """The lines, with their ends."""
    done = 0
    for number, line in enumerate(file, start=1):
        done += len(line)
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8"), done
        except UnicodeDecodeError as reason:
            raise InputError(f"{path}: line {number}: not UTF-8 ({reason.reason})") from None


def _lines(path: str, file: BinaryIO) -> Iterator[tuple[str, int]]:
    for line, done in _decoded(path, file):
        yield line.removesuffix("\n").removesuffix("\r"), done


def _objects(path: str, file: BinaryIO, column: str) -> Iterator[tuple[str, int]]:
    for number, (line, done) in enumerate(_lines(path, file), start=1):
        where = f"{path}: line {number}"
        if not line.strip():
            raise InputError(f"{where}: is blank; expected an object with {column!r}")
        try:
            row = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as reason:
            raise InputError(f"{where}: not JSON ({reason})") from None
        if not isinstance(row, dict) or column not in row:
            raise InputError(f"{where}: expected an object with {column!r}, found {shown(row)}")
        yield _text(row[column], f"{where}: {column}"), done


def _csv(path: str, file: BinaryIO, column: str) -> Iterator[tuple[str, int]]:
    csv.field_size_limit(LONGEST_CELL)
    done = 0

    def lines() -> Iterator[str]:
        nonlocal done
        for line, done in _decoded(path, file):  # noqa: B007  # it is for the loop below
            yield line

    rows = csv.reader(lines(), strict=True)
    number = 0  # of the row that is being read; the header's is 0
    try:
        header = next(rows, [])
        place = _column(path, column, header)
        number = 1
        for row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(header):
                raise csv.Error(f"expected {len(header)} cells, found {len(row)}")
            yield row[place], done
            number += 1
    except csv.Error as reason:
        where = f"row {number}" if number else "its header"
        raise InputError(f"{path}: not a readable csv file: {where}: {reason}") from None


def _column(path: str, column: str, columns: list[str]) -> int:
    """Which of the columns has that name."""
    if columns.count(column) > 1:
        raise InputError(f"{path}: {columns.count(column)} columns have the name {column!r}")
    if column not in columns:
        raise InputError(f"{path}: no column {column!r}; it has {shown(columns)}")
    return columns.index(column)


def _parquet(path: str, file: BinaryIO, column: str) -> tuple[Iterator[tuple[str, int]], int]:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as reason:  # of damaged bytes it raises OSError too
        raise InputError(f"{path}: not a parquet file ({shown(str(reason))})") from None
    _column(path, column, table.schema_arrow.names)

    def texts() -> Iterator[tuple[str, int]]:
        row = 0
        try:
            for batch in table.iter_batches(ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text(value, f"{path}: row {row}: {column}"), row
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as reason:
            raise InputError(f"{path}: damaged behind row {row} ({shown(str(reason))})") from None

    return texts(), table.metadata.num_rows


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, found {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where}: half a surrogate pair in {shown(value)}") from None
    return value


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise SourceError(
            f"{path}: reading it needs pyarrow: pip install 'minibert-jax[data]'"
        ) from None
    return pyarrow
