"""Documents with titles, from a table, a folder, or Python's own help topics."""

import os
import re
from collections.abc import Iterator

from minibert.core.paths import path_text
from minibert.core.types import Path
from minibert.data.files import read_text
from minibert.data.records import Records
from minibert.errors import InputError

WIDTH = 70  # characters in a line of `pydoc_data.topics`
RULING = re.compile(r"[*=\-+|~^\s]+|\s*[|+].*")  # rulings of headings and tables; rows of tables


def read_documents(
    source: Path | None = None, *, title: str = "title", text: str = "text"
) -> dict[str, str]:
    """Returns documents by title.

    Args:
        source: a table, with the extension `.jsonl`, `.csv` or `.parquet`; or a folder of `.txt`
            files, whose names are the titles. None for the topics of Python's help, unwrapped.
        title, text: the names of the table's columns.

    Returns:
        The texts by title; ` (2)`, ` (3)`, … is appended to a title that occurs repeatedly.

    Raises:
        SourceError: there is no such file, or its extension is not one of these.
        InputError: a title or a text is missing or empty; or there are no documents.
    """
    if source is None:
        from pydoc_data.topics import topics

        return {name: unwrapped(topics[name]).strip() for name in sorted(topics)}
    source = path_text("source", source)
    if os.path.isdir(source):
        pairs = _folder(source)
    else:
        rows = Records(source, (title, text))
        pairs = ((rows.text(i, title).strip(), rows.text(i, text)) for i in range(len(rows)))
    found: dict[str, str] = {}
    for name, content in pairs:
        number, unique = 1, name
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found[unique] = content
    if not found:
        raise InputError(f"{source}: expected files that end in .txt, found none")
    return found


def unwrapped(text: str) -> str:
    """Returns a text without rulings and tables, with wrapped lines joined.

    All lines that begin with `|` count as rows of tables, even those of grammars. A line was
    wrapped if the first word of the next one would have exceeded column 70.
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


def _folder(source: str) -> Iterator[tuple[str, str]]:
    for name in sorted(os.listdir(source)):
        if not name.endswith(".txt") or name.startswith("."):
            continue
        path = os.path.join(source, name)
        content = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
        if not content.strip():
            raise InputError(f"{path}: the text is empty")
        yield name.removesuffix(".txt"), content
