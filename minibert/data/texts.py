"""Texts out of files, one after the other, however large the file: txt, jsonl, csv, parquet."""

import contextlib
import functools
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any, BinaryIO

from minibert.core.text_lists import check_text
from minibert.data.files import KINDS as TABLES
from minibert.data.files import Row, decoded, read_rows, while_unchanged
from minibert.errors import InputError, SourceError, shown

KINDS = {".txt": "txt", **TABLES}
BLOCK = 1 << 20  # bytes that are read at once of a whole file


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
        return place_of(self.path, self._kind, row)


def place_of(path: str, kind: str, row: int) -> str:
    """Where in a file row number `row` is, for a message; counted from 1, as editors do."""
    return f"{path}: {'line' if kind in ('txt', 'jsonl') else 'row'} {row + 1}"


@contextlib.contextmanager
def open_texts(path: str, column: Any = None) -> Generator[TextFile]:
    """Opens a file of texts; its ending says what it is.

    Args:
        path: `.txt`, a text a line; `.jsonl` (or `.ndjson`), an object a line; `.csv`, with a
            header; `.parquet`.
        column: the field of a jsonl object, or the column of a table: `text` by default.

    Raises:
        SourceError: there is no such file, or its ending is none of these.
        InputError: while it is read: a line is no text, or there is no such column.

    If the file changes while it is read, the iteration ends with a `SourceError`.
    """
    if path == "-":
        raise SourceError("-: standard input does not say what it holds; give a file")
    if column is not None and not (isinstance(column, str) and column):
        raise InputError(f"column: expected a name, found {shown(column)}")
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
        if kind == "txt":
            lines = while_unchanged(path, file, _lines(path, file))
            yield TextFile(path, kind, lines, os.fstat(file.fileno()).st_size)
        else:
            column = "text" if column is None else column
            rows, total = read_rows(path, file, [column])
            place = functools.partial(place_of, path, kind)
            yield TextFile(path, kind, _texts(place, column, rows), total)


def read_text(path: str) -> str:
    """Returns the whole of a text file, its line ends as they are.

    Raises:
        SourceError: it cannot be read, or changes while it is read.
        InputError: it is not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            blocks = iter(functools.partial(file.read, BLOCK), b"")
            return b"".join(while_unchanged(path, file, blocks)).decode("utf-8-sig")
    except OSError as reason:
        raise SourceError(f"{path}: cannot be read ({reason.strerror or reason})") from None
    except UnicodeDecodeError as reason:
        raise InputError(f"{path}: byte {reason.start}: not UTF-8 ({reason.reason})") from None


def _lines(path: str, file: BinaryIO) -> Iterator[tuple[str, int]]:
    for line, done in decoded(path, file):
        yield line.removesuffix("\n").removesuffix("\r"), done


def _texts(place: Callable[[int], str], column: str, rows: Iterator[Row]) -> Iterator[Any]:
    for number, ((value,), done) in enumerate(rows):
        where = f"{place(number)}: {column}"
        check_text(value, where)
        yield value, done
