"""Atomic replacement of single files, and locks on files; symbolic links are never followed."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Generator
from typing import BinaryIO

from minibert.errors import TargetError, writing

# Errors of file systems that cannot lock a file, or flush a folder.
UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """Yields a new file that replaces `path` if the block ends without an error.

    It is written next to `path`, as `PATH.TOKEN.new` with eight random hexadecimal digits, and
    flushed to the disk before it is renamed. A file at `path` keeps its permissions. A link at
    `path` is replaced; its target is never written to.
    """
    path = os.fspath(path)
    while True:
        temporary = f"{path}.{secrets.token_hex(4)}.new"
        with contextlib.suppress(FileExistsError):
            file = open(temporary, "xb")  # noqa: SIM115  # closed below
            break
    try:
        with file:
            keep_mode(path, file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)  # before it is closed, which would release a lock on it
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def keep_mode(path: str, file: BinaryIO) -> None:
    """Gives an open file the permissions of the file at `path`, which it will replace, if any."""
    with contextlib.suppress(FileNotFoundError):
        state = os.lstat(path)
        if stat.S_ISREG(state.st_mode):
            os.fchmod(file.fileno(), stat.S_IMODE(state.st_mode))


@contextlib.contextmanager
def locked_path(path: str, busy: str) -> Generator[None]:
    """Holds the lock of an empty file, which is created, and removed at the end.

    If the process is killed, the file remains, unlocked: it can be locked again.

    Args:
        path: the path of the file.
        busy: the message of the error that is raised if another process holds the lock.

    Raises:
        TargetError: another process holds the lock; or the file cannot be created, or is not empty.
    """
    with writing(path):
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            try:
                state = os.fstat(lock)
                if state.st_size or not stat.S_ISREG(state.st_mode):
                    raise TargetError(
                        f"{path}: expected an empty file (a lock); move this one elsewhere"
                    )
                if lock_file(lock) is False:
                    raise TargetError(busy)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(path), state):
                        break
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)  # the process that held the lock has just removed the file
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(lock)


def lock_file(file: int) -> bool | None:
    """Locks an open file or folder for as long as it is open.

    Returns:
        Whether the lock was acquired; None if the file system has no locks.
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
