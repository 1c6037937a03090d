"""Records, rows of values by column, from files or from mappings."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from minibert.core.checks import check_text, elements
from minibert.core.paths import open_file
from minibert.data.files import TABLES, kind_of, open_texts, picked, place_of, read_rows
from minibert.errors import InputError, reading, shown

ROWS = 'pass its rows, such as table.to_dict("records") of pandas or table.to_pylist() of pyarrow'


class Records(Sequence[dict[str, Any]]):
    """Rows of values by column, all in memory.

    Args:
        source: a path that ends in `.jsonl` (or `.ndjson`), `.json` (an array of objects), `.csv`,
            `.tsv` or `.parquet`, or, but for the last, in `.gz` after it; or an iterable of
            mappings.
        columns: the columns to read; every row must have them.

    Raises:
        SourceError: there is no such file, or its extension is not one of these.
        InputError: a row cannot be read or lacks a column; or there are no rows.
    """

    def __init__(self, source: object, columns: Iterable[Any]):
        columns = list(columns)
        for column in columns:
            if not isinstance(column, str):
                raise InputError(f"column: expected a name, found {shown(column)}")
        columns = list(dict.fromkeys(columns))
        self._path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
        if self._path is None:
            self._rows = list(self._given(source, columns))
        else:
            kind_of(self._path, TABLES)
            with open_file(self._path) as file, reading(self._path):
                self._rows = [row for row, _ in read_rows(self._path, file, columns)[0]]
        if not self._rows:
            raise InputError(f"{self._path or 'records'}: expected at least 1 record, found none")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def where(self, index: int, column: str = "") -> str:
        """Returns the name of a record, or of its value in a column, for messages."""
        named = f"record {index}" if self._path is None else place_of(self._path, index)
        return f"{named}: {column}" if column else named

    def text(self, index: int, column: str) -> str:
        """Returns the text in a column.

        Raises:
            InputError: the value is not a text, is empty, or contains half a surrogate pair.
        """
        return checked_text(self._rows[index][column], self.where(index, column))

    def _given(self, source: object, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        rows = elements("records", source, expected="a path or mappings", table=ROWS)
        for index, row in enumerate(rows):
            where = self.where(index)
            if not isinstance(row, Mapping):
                raise InputError(f"{where}: expected values by column, found {shown(row)}")
            yield picked(row, columns, where)


def checked_text(value: Any, where: str) -> str:
    """Returns a text after checking that it is not empty and that UTF-8 can encode it.

    Raises:
        InputError: `value` is not such a text.
    """
    check_text(value, where)
    if not value.strip():
        raise InputError(f"{where}: the text is empty")
    return value


def read_texts(source: object, column: object = None) -> tuple[list[str], list[str]]:
    """Returns texts, and the name of each text for messages.

    Args:
        source: a path that ends in `.txt` (one text per line; blank lines are skipped) or as those
            of `Records`; or an iterable of texts.
        column: the column of a file that has columns; `text` by default.

    Raises:
        SourceError: there is no such file, or its extension is not one of these.
        InputError: an element is not a text, or is empty; or there are no texts.
    """
    texts, places = [], []
    if isinstance(source, str | os.PathLike):
        with open_texts(os.fspath(source), column) as opened:
            for number, text in enumerate(opened):
                if text.strip() or opened.kind != "txt":
                    places.append(opened.place(number))
                    texts.append(checked_text(text, places[-1]))
    else:
        given = elements("texts", source, expected="a path or texts")
        if column is not None:
            raise InputError(f"column: expected None for texts, found {shown(column)}")
        for index, text in enumerate(given):
            places.append(f"text {index}")
            texts.append(checked_text(text, places[-1]))
        source = "texts"
    if not texts:
        raise InputError(f"{source}: expected at least 1 text, found none")
    return texts, places
