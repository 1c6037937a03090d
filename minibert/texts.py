"""Texts out of files, one after the other, however large the file: txt, jsonl, csv, parquet."""

import contextlib
import json
import os
from collections.abc import Generator, Iterator
from typing import Any, BinaryIO

from minibert.errors import InputError, SourceError, shown

KINDS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
ROWS = 1024  # read at a time from a table


class TextFile:
    """An open file of texts; iterate over it once.

    Attributes:
        path: where it is.
        total: its size, in bytes or, of a parquet file, in rows.
        done: how much of that has been read.
    """

    def __init__(self, path: str, texts: Iterator[tuple[str, int]], total: int):
        self.path, self.total, self.done = path, total, 0
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        for text, done in self._texts:
            self.done = done
            yield text


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
        yield TextFile(path, texts, total)


def _lines(path: str, file: BinaryIO) -> Iterator[tuple[str, int]]:
    done = 0
    for number, line in enumerate(file, start=1):
        done += len(line)
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as reason:
            raise InputError(f"{path}: line {number}: not UTF-8 ({reason.reason})") from None
        yield text.removesuffix("\n").removesuffix("\r"), done


def _objects(path: str, file: BinaryIO, column: str) -> Iterator[tuple[str, int]]:
    for number, (line, done) in enumerate(_lines(path, file), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as reason:
            raise InputError(f"{path}: line {number}: not JSON ({reason})") from None
        if not isinstance(row, dict) or column not in row:
            raise InputError(
                f"{path}: line {number}: expected an object with {column!r}, found {shown(row)}"
            )
        yield _text(row[column], f"{path}: line {number}: {column}"), done


def _csv(path: str, file: BinaryIO, column: str) -> Iterator[tuple[str, int]]:
    pyarrow = _pyarrow(path)
    from pyarrow import csv

    try:
        header = _header(path)
        if column not in header:
            raise _no_column(path, column, header)
        table = csv.open_csv(
            file,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=[column],
                column_types={column: pyarrow.string()},
                strings_can_be_null=False,
            ),
        )
        row = 0
        for batch in table:
            for value in batch.column(0).to_pylist():
                row += 1
                yield _text(value, f"{path}: row {row}: {column}"), file.tell()
    except pyarrow.ArrowException as reason:
        raise InputError(f"{path}: not a readable csv file ({shown(str(reason))})") from None


def _header(path: str) -> list[str]:
    import csv

    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            return next(csv.reader(file), [])
        except (csv.Error, UnicodeDecodeError) as reason:
            raise InputError(f"{path}: no readable header ({reason})") from None


def _parquet(path: str, file: BinaryIO, column: str) -> tuple[Iterator[tuple[str, int]], int]:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except pyarrow.ArrowException as reason:
        raise InputError(f"{path}: not a parquet file ({shown(str(reason))})") from None
    if column not in table.schema_arrow.names:
        raise _no_column(path, column, table.schema_arrow.names)

    def texts() -> Iterator[tuple[str, int]]:
        row = 0
        try:
            for batch in table.iter_batches(ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text(value, f"{path}: row {row}: {column}"), row
        except pyarrow.ArrowException as reason:
            raise InputError(f"{path}: damaged behind row {row} ({shown(str(reason))})") from None

    return texts(), table.metadata.num_rows


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: expected a text, found {shown(value)}")
    return value


def _no_column(path: str, column: str, columns: list[str]) -> InputError:
    return InputError(f"{path}: no column {column!r}; it has {shown(columns)}")


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise SourceError(
            f"{path}: reading it needs pyarrow: pip install 'minibert-jax[data]'"
        ) from None
    return pyarrow
