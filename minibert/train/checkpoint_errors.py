"""Errors of writing checkpoints, in one line that names what is still good."""

import contextlib
import errno
import logging
import os
import re
import shutil
from collections.abc import Generator

import jax

from minibert.core.types import Path
from minibert.errors import MinibertError, TargetError, shown

METADATA = 1 << 20  # bytes of a checkpoint besides its arrays, at most
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # errors of a full or broken disk
_ERROR_NUMBER = re.compile(r"os_error_code='(\d+)'")  # in messages of TensorStore


@contextlib.contextmanager
def written(folder: Path) -> Generator[None]:
    """Converts the errors of writing a checkpoint to one that names the last complete checkpoint.

    Raises:
        TargetError: a checkpoint cannot be written.
    """
    try:
        yield
    except MinibertError:
        raise
    except Exception as reason:  # Orbax raises nothing narrower
        code = _ERROR_NUMBER.search(str(reason))
        why = getattr(reason, "strerror", None) or (code and os.strerror(int(code[1])))
        raise unwritten(folder, why or shown(str(reason))) from None


def unwritten(folder: Path, why: str) -> TargetError:
    """Returns the error for a checkpoint that cannot be written."""
    with contextlib.suppress(OSError):
        if steps := [int(name) for name in os.listdir(folder) if name.isdecimal()]:
            good = f"the checkpoint of step {max(steps)} is complete, and training can resume there"
            return TargetError(f"{folder}: a checkpoint cannot be written ({why}); {good}")
    return TargetError(f"{folder}: a checkpoint cannot be written ({why}); there is none before it")


def check_free_space(folder: Path, arrays: object) -> None:
    """Checks that the disk has space for arrays, before Orbax fails in the middle of several files.

    Raises:
        TargetError: they are larger than the free space.
    """
    size = METADATA + sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    free = shutil.disk_usage(folder).free
    if size > free:
        raise unwritten(folder, f"it needs {size:,} bytes, and {free:,} are free")


@contextlib.contextmanager
def without_tracebacks() -> Generator[None]:
    """Drops the tracebacks that Orbax logs of errors that it also raises.

    After an error this lasts, also beyond later successes, since Orbax's threads log theirs later.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    added = [one for one in loggers if _is_not_of_orbax not in one.filters]
    for one in added:
        one.addFilter(_is_not_of_orbax)
    yield
    for one in added:
        one.removeFilter(_is_not_of_orbax)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    if not record.exc_info:
        return True
    reason = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    full = isinstance(reason, OSError) and reason.errno in FULL
    return not (full or "orbax" in record.pathname or _ERROR_NUMBER.search(str(reason)))
