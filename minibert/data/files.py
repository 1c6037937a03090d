"""Streaming of rows or texts from txt, jsonl, csv, tsv and parquet files of any size.

The files may be compressed by gzip, except parquet files, which are compressed in themselves. A
JSON array is read as a whole.
"""

import contextlib
import csv
import dataclasses
import gzip
import json
import os
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

from minibert.core.checks import check_text
from minibert.core.paths import open_file, path_text
from minibert.core.strict_json import unique_keys
from minibert.errors import InputError, MinibertError, SourceError, reading, shown

TABLES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
GZIP = ".gz"
KINDS = {".txt": "txt", **TABLES}
ROWS = 1024  # read at a time from a parquet file
LONGEST_CELL = 2**31 - 1  # characters in a cell of a csv file; the csv module's default is 2**17

Item = TypeVar("Item")
Row = tuple[dict[str, Any], int]  # the values by column; bytes or rows read so far


def kind_of(path: str, kinds: Mapping[str, str] = KINDS) -> str:
    """Returns the format of a file, by its extension, which `.gz` may follow.

    Raises:
        SourceError: the extension is not one of `kinds`.
    """
    kind = kinds.get(os.path.splitext(path.lower().removesuffix(GZIP))[1])
    if kind is None or (kind == "parquet" and _is_packed(path)):
        raise SourceError(
            f"{path}: expected a file that ends in {', '.join(kinds)}, or, but for parquet, "
            f"{GZIP} after it"
        )
    return kind


def _is_packed(path: str) -> bool:
    return path.lower().endswith(GZIP)


def _unpacked(path: str, file: BinaryIO) -> Any:
    """Returns an open file, or, if it is compressed, one of its contents."""
    return gzip.GzipFile(fileobj=file) if _is_packed(path) else file


@contextlib.contextmanager
def _unpacking(path: str) -> Generator[None]:
    """Converts the errors of damaged gzip files to `InputError`s that name the file."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as reason:
        raise InputError(f"{path}: not a whole gzip file ({shown(str(reason))})") from None


def read_rows(path: str, file: BinaryIO, columns: Sequence[str]) -> tuple[Iterator[Row], int]:
    """Returns an iterator over the rows of an open file, and the file's size.

    The extension of the path decides the format. The size is in bytes; of a parquet file, in rows.

    Raises:
        InputError: at once or during the iteration: a column is missing, or a row is malformed.
        SourceError: a library is not installed; or the file changes while it is read.
    """
    kind, total = kind_of(path, TABLES), os.fstat(file.fileno()).st_size
    match kind:
        case "parquet":
            rows, total = _parquet(path, file, columns)
        case "json":
            rows = _array(path, file, columns)
        case "jsonl":
            rows = _objects(path, file, columns)
        case _:
            rows = _csv(path, file, columns, DELIMITERS[kind])
    return while_unchanged(path, file, rows), total


def while_unchanged(path: str, file: BinaryIO, parts: Iterator[Item]) -> Iterator[Item]:
    """Yields the parts of an open file, and checks at the end that the file has not changed.

    A file that is truncated or written to while it is read would otherwise yield a part of its
    contents, or a mixture, without an error. A file that is replaced by renaming another is read in
    its old state.

    Raises:
        SourceError: the size or modification time of the file differs from that at the call. This
            replaces any error of `parts`, which may be a consequence.
    """
    before = os.fstat(file.fileno())

    def check() -> None:
        now = os.fstat(file.fileno())
        same = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        if not same:
            raise SourceError(
                f"{path}: changed while it was read: it had {before.st_size:,} bytes and has "
                f"{now.st_size:,}; read it again when no process writes to it"
            )

    def checked() -> Iterator[Item]:
        try:
            yield from parts
        except MinibertError:
            check()
            raise
        check()

    return checked()


def decoded(path: str, file: BinaryIO) -> Iterator[tuple[str, int]]:
    """Yields the lines of a file, with their line ends, and the number of bytes read so far.

    Raises:
        InputError: a line is not UTF-8, or cannot be decompressed.
    """
    done, lines = 0, _unpacked(path, file)
    with _unpacking(path):
        for number, line in enumerate(lines, start=1):
            done = done + len(line) if lines is file else file.tell()
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as reason:
                raise InputError(f"{path}: line {number}: not UTF-8 ({reason.reason})") from None
            yield text, done


def _objects(path: str, file: BinaryIO, columns: Sequence[str]) -> Iterator[Row]:
    names = shown(list(columns)) if len(columns) > 1 else repr(columns[0])
    for number, (line, done) in enumerate(decoded(path, file), start=1):
        where = f"{path}: line {number}"
        if not line.strip():
            raise InputError(f"{where}: is blank; expected an object with {names}")
        try:
            row = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as reason:
            raise InputError(f"{where}: not JSON ({reason})") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object with {names}, found {shown(row)}")
        yield picked(row, columns, where), done


def _array(path: str, file: BinaryIO, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of a JSON array of objects."""
    text = "".join(line for line, _ in decoded(path, file))
    try:
        rows = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as reason:
        raise InputError(f"{path}: not JSON ({reason})") from None
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected an array of objects, found {shown(rows)}")
    size = os.fstat(file.fileno()).st_size
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected an object, found {shown(row)}")
        yield picked(row, columns, where), size * number // len(rows)


def picked(row: Mapping[Any, Any], columns: Iterable[str], where: str) -> dict[str, Any]:
    """Returns some columns of a row.

    Raises:
        InputError: the row lacks a column.
    """
    for column in columns:
        if column not in row:
            raise InputError(
                f"{where}: no column {column!r}; it has {shown(sorted(map(str, row)))}"
            )
    return {column: row[column] for column in columns}


def _csv(path: str, file: BinaryIO, columns: Sequence[str], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    done = 0

    def lines() -> Iterator[str]:
        nonlocal done
        for line, done in decoded(path, file):  # noqa: B007  # used by the loop below
            yield line

    rows = csv.reader(lines(), delimiter=delimiter, strict=True)
    number = 0  # the current row; 0 is the header
    try:
        header = next(rows, [])
        indices = {column: _column_index(path, column, header) for column in columns}
        number = 1
        for row in rows:
            if not row:
                continue  # an empty line
            if len(row) != len(header):
                raise csv.Error(f"expected {len(header)} cells, found {len(row)}")
            yield {column: row[index] for column, index in indices.items()}, done
            number += 1
    except csv.Error as reason:
        where = f"row {number}" if number else "its header"
        raise InputError(
            f"{path}: not a readable {kind_of(path)} file: {where}: {reason}"
        ) from None


def _column_index(path: str, column: str, columns: list[str]) -> int:
    """Returns the index of the only column of a name."""
    if columns.count(column) > 1:
        raise InputError(f"{path}: {columns.count(column)} columns have the name {column!r}")
    if column not in columns:
        raise InputError(f"{path}: no column {column!r}; it has {shown(columns)}")
    return columns.index(column)


def _parquet(path: str, file: BinaryIO, columns: Sequence[str]) -> tuple[Iterator[Row], int]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SourceError(
            f"{path}: reading it needs pyarrow; pip install 'minibert-jax[data]'"
        ) from None
    try:
        table = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as reason:  # OSError is raised for damaged bytes too
        raise InputError(f"{path}: not a parquet file ({shown(str(reason))})") from None
    for column in columns:
        _column_index(path, column, table.schema_arrow.names)

    def rows() -> Iterator[Row]:
        row = 0
        try:
            for batch in table.iter_batches(ROWS, columns=list(columns)):
                for found in batch.select(list(columns)).to_pylist():
                    row += 1
                    yield found, row
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as reason:
            raise InputError(f"{path}: damaged after row {row} ({shown(str(reason))})") from None

    return rows(), table.metadata.num_rows


@dataclasses.dataclass(eq=False)
class TextFile:
    """An open file of texts, over which one can iterate once.

    Attributes:
        path: the path of the file.
        kind: its format: "txt", "jsonl", "json", "csv", "tsv" or "parquet".
        texts: the texts, each with the number of bytes (or rows) read so far.
        total: the size of the file in bytes; for a parquet file, in rows.
        done: the part of `total` that has been read.
    """

    path: str
    kind: str
    texts: Iterator[tuple[str, int]]
    total: int
    done: int = 0

    def __iter__(self) -> Iterator[str]:
        with reading(self.path):
            for text, done in self.texts:
                self.done = done
                yield text

    def place(self, row: int) -> str:
        """Returns the path and the line or row of a text, for messages; see `place_of`."""
        return place_of(self.path, row)


def place_of(path: str, row: int) -> str:
    """Returns a path with the line or row of index `row`, counted from 1, for messages."""
    return f"{path}: {'line' if kind_of(path) in ('txt', 'jsonl') else 'row'} {row + 1}"


@contextlib.contextmanager
def open_texts(path: str, column: object = None) -> Generator[TextFile]:
    """Opens a file of texts, whose extension determines the format.

    Args:
        path: `.txt`, one text per line; `.jsonl` (or `.ndjson`), one object per line; `.json`, an
            array of objects; `.csv` or `.tsv`, with a header; `.parquet`; all but the last also
            with `.gz` after it.
        column: the field of objects, or the column of a table: `text` by default.

    Raises:
        SourceError: there is no such file, its extension is not one of these, or, during the
            iteration, the file changes.
        InputError: during the iteration: a line is not a text, or there is no such column.
    """
    path = path_text("path", path)
    if path == "-":
        raise SourceError("-: expected a file with an extension, found standard input")
    if column is not None and not (isinstance(column, str) and column):
        raise InputError(f"column: expected a name, found {shown(column)}")
    kind = kind_of(path)
    if kind == "txt" and column is not None:
        raise InputError(f"column: expected none, as {path} has one text per line")
    with open_file(path) as file:
        if kind == "txt":
            lines = (
                (line.removesuffix("\n").removesuffix("\r"), done)
                for line, done in decoded(path, file)
            )
            texts = while_unchanged(path, file, lines)
            total = os.fstat(file.fileno()).st_size
        else:
            column = column or "text"
            rows, total = read_rows(path, file, [column])
            texts = _texts(path, column, rows)
        yield TextFile(path, kind, texts, total)


def read_text(path: str) -> str:
    """Returns the contents of a text file with unchanged line ends.

    Raises:
        SourceError: the file cannot be read, or changes while it is read.
        InputError: the file is not UTF-8.
    """
    try:
        with open_file(path) as file, reading(path), _unpacking(path):
            whole = while_unchanged(path, file, iter(_unpacked(path, file).read, b""))
            return b"".join(whole).decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise InputError(f"{path}: byte {reason.start}: not UTF-8 ({reason.reason})") from None


def _texts(path: str, column: str, rows: Iterator[Row]) -> Iterator[Any]:
    for number, (row, done) in enumerate(rows):
        check_text(row[column], f"{place_of(path, number)}: {column}")
        yield row[column], done
