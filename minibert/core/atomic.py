"""Atomic writing of the files of a folder: all of them are written, or none.

A folder that does not exist is written under a sibling name, flushed to the disk, checked, and
renamed into place. In a folder that exists, the new files are written into a staging folder inside
it and then exchanged for the old ones; all other files and the folder itself are left alone. The
exchange consists of renames only, and each of its steps is visible in the names in the folder:

    .minibert-new-TOKEN   staged files. If their writer is dead, they are removed.
    .minibert-old-TOKEN   old files, moved out of the way. If their writer is dead, they are moved
                          back, unless there is also
    .minibert-put-TOKEN   the complete staged files, after all old files have been moved out. If
                          their writer is dead, the rest of them is moved in.

The files in `LAST` are moved out first and moved in last: during an exchange, or after its process
was killed, no reader finds a config.json, and none can mistake files of two saves for one model.
The next process that writes into the folder completes the exchange or undoes it.

A mount point, and a folder whose parent cannot be written, are folders that exist: nothing is
written next to them. File systems limit what is promised:

    without locks (flock)     staged files of killed writers are not removed, and two processes
                              must not save into one folder at the same time
    without flushing folders  after a power failure, the folder may be in an earlier state or in
                              the midst of an exchange; files are flushed in any case
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Iterable
from os.path import dirname, isdir, isfile, islink, join, lexists

from minibert.core.atomic_file import UNSUPPORTED, lock_file
from minibert.core.paths import path_text
from minibert.errors import MinibertError, TargetError, writing

PREFIX = ".minibert-"
LAST = ("modules.json", "adapter_config.json", "config.json")
# Returns the paths in a folder that a save may replace or remove.
Owned = Callable[[str], list[str]]
LOCK_WAIT = 10.0  # seconds to wait for the exchange of another process, which takes milliseconds


@contextlib.contextmanager
def atomic_folder(
    target: str | os.PathLike[str],
    *,
    owned: Owned,
    overwrite: bool = False,
    check: Callable[[str], None] | None = None,
) -> Generator[str]:
    """Yields an empty folder whose files are moved to `target` if the block ends without an error.

    Args:
        target: the folder to write. Files in it that are neither replaced nor `owned` are kept.
        owned: returns the paths in a folder that the new files supersede, such as those of
            `matching_files`. Those that are not replaced by new files are removed.
        overwrite: whether to replace or remove existing files.
        check: called with the staging folder before its files are moved; raises if they are wrong.

    Errors raised in the block are propagated. In the messages of all errors, resolved and temporary
    paths are replaced by `target` as it was passed.

    Raises:
        InputError: `target` is not a path.
        TargetError: without `overwrite`, a file in `target` would be replaced or removed; or the
            target cannot be written.
    """
    given = path_text("folder", target)
    if not given:
        raise TargetError("'': expected the name of a folder")
    target = os.path.realpath(given)
    with _named(given, target), writing(target):
        folder, lock = _begin(target, owned, overwrite)
    unchanged = "; its files are unchanged" if lexists(target) else "; nothing was created"
    try:
        with _named(given, target, folder, unwritten=unchanged):
            yield folder
            with writing(target):
                if check is not None:
                    check(folder)
                _flush(folder)
        with _named(given, target, folder), writing(target):
            _move_in(folder, target, owned, overwrite)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def _named(given: str, *resolved: str, unwritten: str = "") -> Generator[None]:
    """Replaces paths in the messages of errors by the path that the caller passed.

    Args:
        given: that path.
        resolved: the paths.
        unwritten: what to append to a message about something that cannot be written.
    """
    try:
        yield
    except MinibertError as reason:
        longest_first = sorted((given, *resolved), key=len, reverse=True)
        paths = "|".join(map(re.escape, longest_first))
        text = re.sub(paths, lambda _: given, str(reason))
        failed = isinstance(reason, TargetError) and "cannot be written" in text
        reason.args = (text + unwritten * failed,)
        raise


def _begin(target: str, owned: Owned, overwrite: bool) -> tuple[str, int]:
    """Settles and checks the target, and returns a staging folder and its lock."""
    parent, name = os.path.split(target)
    beside = f"{PREFIX}new-{name}-"
    if isdir(target):
        if is_unsettled(target):
            with _exclusive(target):
                _settle(target)
        _sweep(parent, beside)
        _sweep(target, f"{PREFIX}new-")
        _replaced(target, owned, (), overwrite)
        return _staging_folder(target, f"{PREFIX}new-")
    if lexists(target):
        raise TargetError(f"{target}: exists and is not a folder")
    try:
        os.makedirs(parent, exist_ok=True)
        _sweep(parent, beside)
        return _staging_folder(parent, beside)
    except OSError as reason:
        raise TargetError(
            f"{target}: cannot be written: no folder can be created in {parent} "
            f"({reason.strerror or reason})"
        ) from reason


def matching_files(folder: str, pattern: re.Pattern[str]) -> list[str]:
    """Returns the entries of a folder and its direct subfolders whose paths match a pattern.

    Args:
        folder: the folder.
        pattern: matched with `fullmatch` against `file`, `subfolder/file`, and `subfolder/`, which
            stands for a whole subfolder. Links are treated as files.

    Returns:
        Paths inside the folder, sorted; those of subfolders without the slash.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                found.append(entry.name)
            elif pattern.fullmatch(f"{entry.name}/"):
                found.append(f"{entry.name}/")
            elif not entry.name.startswith("."):
                with contextlib.suppress(OSError), os.scandir(entry.path) as inner:
                    files = [f.name for f in inner if not f.is_dir(follow_symlinks=False)]
                    found += [f"{entry.name}/{name}" for name in files]
    return sorted(path.removesuffix("/") for path in found if pattern.fullmatch(path))


def remove_files(folder: str, owned: Owned) -> None:
    """Removes the owned paths from a folder, and the folder itself if it is then empty."""
    for path in sorted(owned(folder), key=_rank, reverse=True):
        whole = join(folder, path)
        shutil.rmtree(whole) if isdir(whole) else os.remove(whole)
        _remove_empty(folder, dirname(path))
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def is_unsettled(folder: str) -> bool:
    """Returns whether files of a folder are being exchanged, or an exchange was interrupted."""
    with contextlib.suppress(OSError):
        return any(name.startswith((f"{PREFIX}old-", f"{PREFIX}put-")) for name in _names(folder))
    return False


def _names(folder: str) -> list[str]:
    return sorted(os.listdir(folder))


def _rank(path: str) -> int:
    return LAST.index(path) + 1 if path in LAST else 0


def _replaced(target: str, owned: Owned, new: Iterable[str], overwrite: bool) -> list[str]:
    """Returns the paths in an existing folder that new files replace or make stale.

    Raises:
        TargetError: there are such paths and `overwrite` is False; or a folder exists where a file
            is to be written, or a file where a folder is.
    """
    found = owned(target)
    whole = set(found)
    for path in new:
        top = path.split("/")[0]
        if top in whole:
            continue
        for name in dict.fromkeys((top, path)):
            there = join(target, name)
            if not lexists(there):
                break
            expected = "file" if name == path else "folder"
            found_there = "folder" if isdir(there) and not islink(there) else "file"
            if found_there != expected:
                raise TargetError(
                    f"{there}: expected a {expected}, found a {found_there}; move it elsewhere, or "
                    "choose another folder"
                )
        else:
            found += [path] if path not in whole else []
    if found and not overwrite:
        names = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise TargetError(
            f"{target}: already holds {names}; choose another folder, or pass overwrite=True "
            "(minibert convert: --overwrite) to replace these files; all other files are kept"
        ).advising("overwrite=True")
    return found


def _staging_folder(home: str, stem: str) -> tuple[str, int]:
    while True:
        folder = join(home, stem + secrets.token_hex(4))
        os.mkdir(folder)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process has removed it
        if lock_file(lock) is not False and isdir(folder):  # else another process removes it
            return folder, lock
        os.close(lock)


@contextlib.contextmanager
def _exclusive(folder: str) -> Generator[None]:
    """Holds the lock for exchanging files in a folder; waits while another process holds it."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + LOCK_WAIT
        while lock_file(file) is False:
            if time.monotonic() > end:
                raise TargetError(
                    f"{folder}: another process has held a lock on the folder for {LOCK_WAIT:g} "
                    "seconds; save again when it has ended"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(file)


def _move_in(folder: str, target: str, owned: Owned, overwrite: bool) -> None:
    if not lexists(target):
        try:
            os.rename(folder, target)
        except OSError:
            if not isdir(target):  # else another process has just created it
                raise
        else:
            flush_path(dirname(target))
            return
    if dirname(folder) != target:
        inner = join(target, f"{PREFIX}new-{secrets.token_hex(4)}")
        os.rename(folder, inner)
        folder = inner
    try:
        _exchange(folder, target, owned, overwrite)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _exchange(folder: str, target: str, owned: Owned, overwrite: bool) -> None:
    """Exchanges staged files for those that they replace or make stale."""
    token = secrets.token_hex(4)
    old, put = join(target, f"{PREFIX}old-{token}"), join(target, f"{PREFIX}put-{token}")
    with _exclusive(target):
        _settle(target)
        staged = [
            os.path.relpath(join(root, name), folder)
            for root, _, names in os.walk(folder)
            for name in names
        ]
        replaced = _replaced(target, owned, staged, overwrite)
        for path in replaced:
            before, after = join(target, path), join(folder, path)
            if isfile(before) and not islink(before) and isfile(after):
                shutil.copymode(before, after)  # a private file must stay private
        try:
            os.mkdir(old)
            for path in sorted(replaced, key=_rank, reverse=True):
                os.makedirs(dirname(join(old, path)), exist_ok=True)
                os.rename(join(target, path), join(old, path))
                _remove_empty(target, dirname(path))
            flush_path(target)
            os.rename(folder, put)
        except BaseException:  # including KeyboardInterrupt
            _settle(target)
            raise
        try:
            _settle(target)
        except OSError:
            _settle(target)
        except BaseException:
            _settle(target)
            raise


def _settle(target: str) -> None:
    """Completes an exchange whose staged files are complete, and undoes any other exchange."""
    names = _names(target)
    for name in names:
        if name.startswith(f"{PREFIX}put-"):
            put = join(target, name)
            flush_path(target)
            _move_all(put, target)
            flush_path(target)
            token = name.rpartition("-")[2]
            if f"{PREFIX}old-{token}" in names:  # a partially deleted folder must not be moved back
                discarded = join(target, f"{PREFIX}new-{token}")
                os.rename(join(target, f"{PREFIX}old-{token}"), discarded)
                shutil.rmtree(discarded, ignore_errors=True)
            os.rmdir(put)
    for name in _names(target):
        if name.startswith(f"{PREFIX}old-"):
            _move_all(join(target, name), target)
            flush_path(target)
            os.rmdir(join(target, name))


def _move_all(source: str, target: str) -> None:
    for name in sorted(_names(source), key=_rank):
        one, other = join(source, name), join(target, name)
        if isdir(one) and not islink(one) and isdir(other):
            _move_all(one, other)
            os.rmdir(one)
        else:
            os.rename(one, other)


def _remove_empty(folder: str, inner: str) -> None:
    if inner:
        with contextlib.suppress(OSError):
            os.rmdir(join(folder, inner))


def _sweep(folder: str, stem: str) -> None:
    """Removes staged files of killed writers, if the folder can be read."""
    try:
        names = _names(folder)
    except OSError:
        return
    for entry in names:
        if not entry.startswith(stem) or "-" in entry.removeprefix(stem):
            continue
        path = join(folder, entry)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # just removed, not a folder, or not readable
        try:
            if lock_file(lock):  # else its writer is alive, or locks are not supported
                shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _flush(folder: str) -> None:
    for root, _, files in os.walk(folder):
        for file in files:
            flush_path(join(root, file))
        flush_path(root)


def flush_path(path: str) -> None:
    """Flushes a file to the disk, or the entries of a folder if they can be read and flushed."""
    try:
        file = os.open(path, os.O_RDONLY)
    except PermissionError:
        if isdir(path):
            return
        raise
    try:
        os.fsync(file)
    except OSError as reason:
        if not (isdir(path) and reason.errno in UNSUPPORTED):
            raise
    finally:
        os.close(file)
