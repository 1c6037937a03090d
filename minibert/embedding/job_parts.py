"""The parts of an embedding job: a folder next to the output, and the job's lock.

Parts are written atomically. A part contains digests of its texts, its job and its contents, so
that no damaged or altered part is used. `job.json` records what the output depends on. Unrelated
files in the folder are never touched.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minibert.core.atomic_file import locked_path, new_file
from minibert.core.strict_json import read_json
from minibert.errors import MinibertError, TargetError, shown, writing

OWN = re.compile(r"(\d{7}\.npz|job\.json|finished)((\.[0-9a-f]{8})?\.new)?|whole")
AGAIN = "--restart to start over"


class FinishedJob(NamedTuple):
    """The record of a job whose output is complete.

    Attributes:
        inode, size: inode and size in bytes of the output.
        job, texts: the digests of the job's settings and of its texts.
        rows: the number of texts.
        cut: how many of them were truncated.
    """

    inode: int
    size: int
    job: str
    texts: str
    rows: int
    cut: int


class Part(NamedTuple):
    """The contents of a part.

    Attributes:
        vectors: `(rows, dim)`.
        cut: how many of its texts were truncated.
        job, texts: the digests of the job's settings and of its texts.
    """

    vectors: np.ndarray
    cut: int
    job: str
    texts: str

    def digest(self) -> str:
        """Returns a digest of the contents."""
        vectors = np.ascontiguousarray(self.vectors)
        header = f"{vectors.dtype.str} {vectors.shape} {self.cut} {self.job} {self.texts} "
        digest = hashlib.sha256(header.encode())
        digest.update(vectors.data)
        return digest.hexdigest()


class Parts:
    """The folder of a job's parts, `OUTPUT.parts`. The caller must hold the job's lock.

    A part that is damaged or altered is treated as missing, after `warn` was called with a message
    that names it.

    Args:
        output: the job's output.
        job: what the vectors depend on besides the texts, as JSON can represent it.
        warn: called with a message about a damaged part.

    Attributes:
        folder: the folder.
        job: the digest of what the vectors depend on.
    """

    folder: str

    def __init__(self, output: str, job: Mapping[str, Any], warn: Callable[[str], object]):
        self.folder, self._output, self._warn = f"{output}.parts", output, warn
        self._settings = json.dumps(job, sort_keys=True, indent=1)
        self.job: str = hashlib.sha256(self._settings.encode()).hexdigest()

    def check(self) -> None:
        """Raises a `TargetError` if the folder contains anything but a job's files."""
        if not os.path.lexists(self.folder):
            return
        if os.path.islink(self.folder) or not os.path.isdir(self.folder):
            raise TargetError(f"{self.folder}: expected a folder of parts, or nothing")
        with writing(self.folder):
            names = os.listdir(self.folder)
        strange = _strangers(self.folder) or sorted(names if "job.json" not in names else [])
        if strange:
            raise TargetError(
                f"{self.folder}: contains an unrelated file, {shown(strange[0])}; move it elsewhere"
            )

    def begin(self) -> None:
        """Creates the folder, or checks that the parts in it belong to this job.

        Raises:
            TargetError: if they belong to another job.
        """
        with writing(self._output):
            _remove_own(f"{self.folder}.old")
            os.makedirs(self.folder, exist_ok=True)
            if not has_parts(self._output):  # nothing was computed: another job may take over
                self._write("job.json", self._settings)
                return
            path = os.path.join(self.folder, "job.json")
            with open(path, "rb") as file:
                text = file.read()
        if text == self._settings.encode():
            return
        try:
            found = dict(json.loads(text))
        except (ValueError, TypeError, RecursionError):
            raise TargetError(f"{path}: is damaged; {AGAIN}") from None
        job = json.loads(self._settings)
        names = sorted(found.keys() | job.keys())
        other = ", ".join(name for name in names if found.get(name, ...) != job.get(name, ...))
        raise TargetError(
            f"{self.folder}: contains parts of a job with another {other}; use the same one, or "
            "--restart to discard them"
        )

    def find(self, number: int, texts: str) -> Part | None:
        """Returns a part; None if it does not exist or is damaged.

        Args:
            number: the part's number.
            texts: the expected digest of its texts.

        Raises:
            TargetError: if it is a part of another job, or of other texts.
        """
        path = self.path(number)
        if not os.path.exists(path):
            return None
        try:
            part = _read(path)
        except _DamagedError as reason:
            self._warn(f"{path}: is damaged ({reason}); it is computed again")
            return None
        if part.job != self.job:
            raise TargetError(f"{path}: is a part of another job; {AGAIN}")
        if part.texts != texts:
            raise self.changed(number)
        return part

    def store(self, number: int, part: Part) -> None:
        """Writes a part atomically."""
        with writing(self._output), new_file(self.path(number)) as file:
            np.savez(file, **part._asdict(), digest=part.digest())

    def vectors(self, count: int) -> Iterator[np.ndarray]:
        """Yields the rows of each of the first `count` parts.

        Raises:
            TargetError: if a part is damaged.
        """
        for path in map(self.path, range(count)):
            try:
                vectors = _read(path).vectors
            except _DamagedError as reason:
                raise TargetError(
                    f"{path}: is damaged ({reason}); start the job again to compute it again"
                ) from None
            yield vectors

    def changed(self, number: int) -> TargetError:
        """Returns the error about a part of other texts."""
        return TargetError(
            f"{self.path(number)}: is a part of other texts: the input has changed; {AGAIN}"
        )

    def finish(self, whole: str, texts: str, rows: int, cut: int) -> None:
        """Records that the file `whole` is the complete output."""
        state = os.stat(whole)
        done = FinishedJob(state.st_ino, state.st_size, self.job, texts, rows, cut)
        self._write("finished", json.dumps(done._asdict()))

    def discard(self) -> None:
        """Removes the folder atomically: a partly deleted one must not be taken for a job."""
        if not os.path.isdir(self.folder):
            return
        place = self.folder
        try:
            if not _strangers(place):
                place = f"{place}.old"
                _remove_own(place)
                os.rename(self.folder, place)
            _remove_own(place)
        except OSError as reason:
            why = reason.strerror or reason
            raise TargetError(f"{self.folder}: cannot be removed ({why})") from reason

    def _write(self, name: str, text: str) -> None:
        with new_file(os.path.join(self.folder, name)) as file:
            file.write(text.encode())

    def path(self, number: int) -> str:
        """Returns the path of a part."""
        return os.path.join(self.folder, f"{number:07}.npz")


def digest_of(texts: Sequence[str]) -> str:
    """Returns the SHA-256 digest of a sequence of texts and their boundaries."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class _DamagedError(Exception):
    """A part cannot be read, or its contents have changed."""


def _read(path: str) -> Part:
    try:
        # np.load does not close a file that it opened and cannot read
        with open(path, "rb") as raw, np.load(raw) as file:
            job, texts, digest = (str(file[name]) for name in ("job", "texts", "digest"))
            part = Part(file["vectors"], int(file["cut"]), job, texts)
    except Exception as reason:  # zipfile and numpy raise almost any error for a damaged archive
        raise _DamagedError(shown(str(reason))) from None
    if digest != part.digest():
        raise _DamagedError("its contents are not those that were written")
    return part


def has_parts(output: str) -> bool:
    """Returns whether a job has left parts of an output."""
    folder = f"{output}.parts"
    return os.path.isdir(folder) and any(name.endswith(".npz") for name in os.listdir(folder))


def finished_job(output: str) -> FinishedJob | None:
    """Returns the record of a job that was killed after its output was complete, if any."""
    try:
        done = FinishedJob(**read_json(os.path.join(f"{output}.parts", "finished")))
        state = os.stat(output)
    except (OSError, MinibertError, TypeError):
        return None
    return done if (state.st_ino, state.st_size) == (done.inode, done.size) else None


@contextlib.contextmanager
def job_lock(output: str) -> Generator[None]:
    """Holds `OUTPUT.lock`, so that no other job writes the output or removes its parts.

    Raises:
        TargetError: if another job holds the lock, or it cannot be written.
    """
    with writing(output):
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    with locked_path(f"{output}.lock", f"{output}: another job is writing it"):
        yield


def _strangers(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name
            for entry in entries
            if not (OWN.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))
        )


def _remove_own(folder: str) -> None:
    """Removes a job's files, and the folder unless it contains others."""
    if not os.path.isdir(folder):
        return
    for name in set(os.listdir(folder)) - set(_strangers(folder)):
        os.unlink(os.path.join(folder, name))
    with contextlib.suppress(OSError):
        os.rmdir(folder)
