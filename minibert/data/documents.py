"""Documents with titles: of a table, of a folder, or Python's own language reference."""

import os
import re
from collections.abc import Iterator

from minibert.core.types import Path
from minibert.data.files import read_text
from minibert.data.records import Records
from minibert.errors import InputError, shown

WIDTH = 70  # of a line of `pydoc_data.topics`
RULING = re.compile(r"[*=\-+|~^\s]+|\s*[|+].*")  # of headings and tables; and the rows of tables


def read_documents(
    source: Path | None = None, *, title: str = "title", text: str = "text"
) -> dict[str, str]:
    """Documents by title.

    Args:
        source: a table that ends in `.jsonl`, `.csv` or `.parquet`; or a folder of `.txt` files,
            whose names are the titles. None for the topics of Python's own help, unwrapped.
        title, text: the table's columns.

    Returns:
        The texts; of documents of the same title the second has ` (2)` behind it, and so on.

    Raises:
        SourceError: there is no such file, or its ending is none of these.
        InputError: a title or a text is missing or empty; or there are no documents.
    """
    if source is None:
        from pydoc_data.topics import topics

        return {name: unwrapped(topics[name]).strip() for name in sorted(topics)}
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"source: expected a path, found {shown(source)}")
    if os.path.isdir(source):
        pairs = _folder(source)
    else:
        rows = Records(source, (title, text))
        pairs = ((rows.text(i, title).strip(), rows.text(i, text)) for i in range(len(rows)))
    found: dict[str, str] = {}
    for name, words in pairs:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found[unique] = words
    if not found:
        raise InputError(f"{os.fspath(source)}: no documents: expected files that end in .txt")
    return found


def unwrapped(text: str) -> str:
    """A text without rulings and tables, its wrapped lines joined.

    With the rows of tables go all lines that begin with `|`, as some of grammars do. A line was
    broken by the wrapping if the next word would have passed the 70th column.
    """
    lines: list[str] = []
    width = 0
    for line in map(str.rstrip, text.split("\n")):
        if line and RULING.fullmatch(line):
            continue
        if line and width and width <= WIDTH < width + 1 + len(line.split()[0]):
            space = "" if re.search(r"\w-$", lines[-1]) else " "
            lines[-1] += space + line.lstrip()
        else:
            lines.append(line)
        width = len(line)
    return "\n".join(lines)


def _folder(source: Path) -> Iterator[tuple[str, str]]:
    for name in sorted(os.listdir(source)):
        if not name.endswith(".txt") or name.startswith("."):
            continue
        path = os.path.join(source, name)
        words = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
        if not words.strip():
            raise InputError(f"{path}: the text is empty")
        yield name.removesuffix(".txt"), words
