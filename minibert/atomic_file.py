"""Single files that are replaced as a whole, and locks on open files; links are never followed."""

import contextlib
import errno
import os
import secrets
from collections.abc import Generator
from typing import Any, BinaryIO

from minibert.errors import TargetError

# What file systems answer that cannot lock a file, or flush a folder.
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)


@contextlib.contextmanager
def reported(target: Any) -> Generator[None]:
    """Turns an error of the operating system into a `TargetError` that names the target."""
    try:
        yield
    except OSError as reason:
        raise TargetError(f"{target}: cannot be written ({reason.strerror or reason})") from reason


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """Yields a new file that replaces `path` when the block ends without an error.

    It is written beside `path`, as `PATH.TOKEN.new` with eight random digits, and flushed to the
    disk before it is renamed. Whatever has any of these names, a link above all, is not written
    to: a link called `path` is replaced, and what it points to is left alone.
    """
    path = os.fspath(path)
    while True:
        temporary = f"{path}.{secrets.token_hex(4)}.new"
        with contextlib.suppress(FileExistsError):
            file = open(temporary, "xb")  # noqa: SIM115  # closed below
            break
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)  # while it is open, so that a lock on it never lapses
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def lock_file(file: int) -> bool | None:
    """Locks an open file or folder for as long as it is open.

    Returns:
        Whether it was free to be locked; None if the file system has no locks.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as reason:
        if reason.errno not in UNSUPPORTED:
            raise
        return None
    return True
