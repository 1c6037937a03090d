"""Writing a folder so that it is there complete, or not at all.

The folder is written under a sibling name of ours, flushed to the disk, checked, and renamed into
place. The writer holds a lock on its folder as long as it lives, so that a later run can tell what
was left behind by one that was killed: it puts back an old folder that was moved aside, and removes
the rest.
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Generator

from minibert.errors import TargetError, shown

PREFIX = ".minibert-"


@contextlib.contextmanager
def atomic_folder(
    target: str, *, overwrite: bool = False, check: Callable[[str], None] | None = None
) -> Generator[str]:
    """Yields a new, empty folder that becomes `target` when the block ends without an error.

    Args:
        target: where the folder shall be. It may exist if it is empty, or with `overwrite`.
        overwrite: whether to replace an existing folder, as a whole.
        check: called with the finished folder before it is moved; it raises if it is not right.

    Raises:
        TargetError: the target exists and is not empty, or cannot be written.
    """
    if not target or "\0" in target:
        raise TargetError(f"{shown(target)}: not the name of a folder")
    target = os.path.realpath(target)
    parent, name = os.path.split(target)
    with reported(target):
        os.makedirs(parent, exist_ok=True)
        _recover(parent, name)
        _refuse_occupied(target, overwrite)
        folder, lock = _locked_folder(parent, f"{PREFIX}new-{name}-")
    try:
        with reported(target):
            yield folder
            if check is not None:
                check(folder)
            _flush(folder)
            _move_in(folder, target, overwrite)
            flush_path(parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def reported(target: str) -> Generator[None]:
    """Turns an error of the system into a `TargetError` that names the target."""
    try:
        yield
    except OSError as reason:
        raise TargetError(f"{target}: cannot be written ({reason.strerror or reason})") from reason


def _refuse_occupied(target: str, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not os.path.isdir(target):
        raise TargetError(f"{target}: exists and is not a folder")
    if os.listdir(target) and not overwrite:
        raise TargetError(
            f"{target}: exists and is not empty; choose another, or pass overwrite=True "
            "(python -m convert: --overwrite) to replace it as a whole"
        )


def _locked_folder(parent: str, prefix: str) -> tuple[str, int]:
    while True:
        folder = os.path.join(parent, prefix + secrets.token_hex(4))
        os.mkdir(folder)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # a sweep was faster
        if _lock(lock) and os.path.isdir(folder):  # else a sweep was faster
            return folder, lock
        os.close(lock)


def _lock(file: int) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _move_in(folder: str, target: str, overwrite: bool) -> None:
    _refuse_occupied(target, overwrite)
    if not os.path.isdir(target) or not os.listdir(target):
        os.rename(folder, target)
        return
    parent, name = os.path.split(target)
    token = secrets.token_hex(4)
    aside, rubbish = (os.path.join(parent, f"{PREFIX}{k}-{name}-{token}") for k in ("old", "new"))
    lock = os.open(target, os.O_RDONLY)  # the lock follows the folder through its renames
    try:
        _lock(lock)
        os.rename(target, aside)
        try:
            os.rename(folder, target)
        except BaseException:  # an interrupt, too
            os.rename(aside, target)
            raise
        os.rename(aside, rubbish)  # what is half deleted must never be put back
        shutil.rmtree(rubbish, ignore_errors=True)
    finally:
        os.close(lock)


def _recover(parent: str, name: str) -> None:
    """Undoes what a killed run left: puts an old folder back, and sweeps the rest."""
    target = os.path.join(parent, name)
    for entry in sorted(os.listdir(parent)):
        kind, _, rest = entry.removeprefix(PREFIX).partition("-")
        ours = entry.startswith(PREFIX) and kind in ("new", "old")
        if not ours or rest.rpartition("-")[0] != name:
            continue
        path = os.path.join(parent, entry)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another run was faster; or it is no folder, or not ours to open
        try:
            if not _lock(lock):
                continue  # its owner lives
            if kind == "new" or (os.path.isdir(target) and os.listdir(target)):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.isdir(target) or not os.path.lexists(target):
                os.rename(path, target)
        finally:
            os.close(lock)


def _flush(folder: str) -> None:
    for root, _, files in os.walk(folder):
        for file in files:
            flush_path(os.path.join(root, file))
        flush_path(root)


def flush_path(path: str) -> None:
    """A file, or the names in a folder, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
