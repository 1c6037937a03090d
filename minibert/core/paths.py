"""Paths that callers pass, and opening of regular files only."""

import os
import stat
from typing import BinaryIO

from minibert.errors import InputError, MinibertError, SourceError, reading, shown

NO_SIZE = 1 << 20  # bytes that are read of a file that states none, such as those in /proc


def path_text(name: str, path: object, expected: str = "a path") -> str:
    """Returns a path as a text, after checking that it is one and that it contains no NUL.

    Args:
        name: the argument, for messages.
        path: the path.
        expected: what the argument may be, for messages.

    Raises:
        InputError: it is not such a path.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise InputError(f"{name}: expected {expected}, found {shown(path)}")
    if "\0" in text:
        raise InputError(f"{name}: expected {expected}, found a NUL character in {shown(text)}")
    return text


def open_file(path: object, error: type[MinibertError] = SourceError) -> BinaryIO:
    """Opens a regular file for reading.

    Opening a FIFO would wait for a writer, and reading a device might never end.

    Raises:
        error: the file cannot be opened, or is not a regular file.
        InputError: `path` is not a path.
    """
    path = path_text("path", path)
    with reading(path, error):
        file = open(path, "rb", opener=_opened)  # noqa: SIM115  # closed by the caller
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise error(f"{path}: expected a regular file")
    return file


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_file(path: object, limit: int, error: type[MinibertError] = SourceError) -> bytes:
    """Reads a regular file.

    Raises:
        error: the file cannot be read, is not a regular file, or has more than `limit` bytes.
        InputError: `path` is not a path.
    """
    with open_file(path, error) as file, reading(path, error):
        size = os.fstat(file.fileno()).st_size
        most = min(limit, max(size, NO_SIZE))
        content = b"" if size > most else file.read(most + 1)
    if size > most or len(content) > most:
        raise error(f"{path}: larger than {most:,} bytes")
    return content
