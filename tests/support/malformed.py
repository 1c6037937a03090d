"""Builds malformed model folders, and asserts that they are refused with the right message."""

import contextlib
import copy
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import minibert
from checkout import PYTHONPATH, ROOT
from minibert.core.atomic import atomic_folder, matching_files
from minibert.errors import CheckpointMismatchError, MinibertError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLE = "pytorch_model.bin"
LONGEST_LINE = 600  # of a message: a path of the test, and three values cut short

Folder = pathlib.Path


class Pristine:
    """Valid folders of tiny models, each made once; `copy` returns one that may be damaged."""

    def __init__(self, home: Folder):
        self.home = home

    def folder(self, name: str = "BertModel", config: Any = None, **options: Any) -> Folder:
        changes = config or {}
        parts = [name, *(f"{key}={value}" for key, value in (changes | options).items())]
        folder = self.home / "-".join(parts)
        if not folder.exists():
            cls = getattr(minibert, name)
            model = cls(cls.config_class.tiny(**changes), rngs=nnx.Rngs(0))
            model.save_pretrained(folder, **options)
        return folder

    def copy(
        self, target: Folder, name: str = "BertModel", config: Any = None, **options: Any
    ) -> Folder:
        return pathlib.Path(shutil.copytree(self.folder(name, config, **options), target))


def load(folder: Folder, name: str = "BertModel", **options: Any) -> Any:
    return getattr(minibert, name).from_pretrained(folder, **options)


def refused(
    error: type[Exception], fragments: tuple[str, ...], call: Callable[[], object]
) -> Exception:
    """Calls a function, and asserts that it raises this error with these texts in one message."""
    with pytest.raises(MinibertError) as caught:
        call()
    message = str(caught.value)
    assert caught.type is error, message[:1000]
    for fragment in fragments:
        assert fragment in message, message[:1000]
    lines = message.split("\n")
    assert len(lines) <= (22 if isinstance(caught.value, CheckpointMismatchError) else 1)
    assert max(map(len, lines)) <= LONGEST_LINE, message[:1000]
    assert all(map(str.isprintable, lines)), repr(message[:1000])
    return caught.value


def split(weights: Folder) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file."""
    content = weights.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join(weights: Folder, header: Any, data: bytes) -> None:
    """Writes a safetensors file with this header, a dict or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_header(folder: Folder, change: Callable[[dict[str, Any]], object]) -> None:
    header, data = split(folder / WEIGHTS)
    change(header)
    join(folder / WEIGHTS, header, data)


def edit_json(path: Folder, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(folder: Folder, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)


def cases(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    """The rows of a table of cases, named by its keys."""
    return [pytest.param(*row, id=name) for name, row in table.items()]


class HangingError(BaseException):
    """Raised by `promptly`: no handler of the library catches it."""


@contextlib.contextmanager
def promptly(seconds: int = 30) -> Iterator[None]:
    """Fails where the block would hang, such as at the opening of a pipe."""

    def stop(*_: object) -> None:
        raise HangingError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# What may take the place of a file.


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_link(target):
    def apply(path):
        path.unlink()
        path.symlink_to(target)

    return apply


# Changes of a dict of tensors, for `edit_tensors`.

FLOATS = "expected floating-point numbers"
FINITE = "expected finite numbers, found NaN or infinity"
ONES = np.ones(24, np.float32)


def put(name, change):
    """One tensor changed."""
    return lambda tensors: tensors.update({name: change(tensors[name])})


def cast(dtype):
    return lambda array: array.astype(dtype)


def holding(value, dtype=np.float32):
    """The same numbers, and one that is not."""

    def change(array):
        array = array.astype(dtype)
        array.flat[array.size // 2] = value
        return array

    return change


def drop(*names):
    return lambda tensors: [tensors.pop(name) for name in names]


def rename(old, new):
    """Every tensor whose name begins with `old`, renamed."""

    def change(tensors):
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return change


def both(*changes):
    return lambda tensors: [change(tensors) for change in changes]


def add(name, array):
    return lambda tensors: tensors.update({name: array})


# Writing folders.

HOLDS = "already holds"
OWNED = functools.partial(matching_files, pattern=re.compile("[abc]"))


def contents(folder):
    """Every file below a folder, and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def write(target, text, **options):
    with (
        atomic_folder(str(target), owned=OWNED, **options) as new,
        open(os.path.join(new, "a"), "w") as file,
    ):
        file.write(text)


def full(path):
    path.mkdir(parents=True)
    (path / "mine").write_text("keep")


# Without what allows root to read and write everywhere; with a file system of its own in a folder.
UNPRIVILEGED = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
MOUNTED = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=40k none "$0" && exec "$@"']


def runs(command):
    """Returns a command that runs the one after it; skips the test where it is not allowed."""
    if (
        shutil.which(command[0]) is None
        or subprocess.run([*command, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip(f"{command[0]} is not allowed or not installed here")
    return command


def run_script(script, *arguments, before=()):
    """Runs a script in a process of its own, and returns the JSON it prints.

    Args:
        script: the script.
        arguments: its arguments.
        before: a command that runs the command after it, such as `setpriv`.
    """
    done = subprocess.run(
        [*map(str, before), sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def with_damaged_map(tokenizer):
    """A copy whose library panics at the first character that is not ASCII."""
    from tokenizers import normalizers

    damaged, size = copy.deepcopy(tokenizer), 512
    charsmap = size.to_bytes(4, "little") + bytes(size)
    damaged.backend_tokenizer.normalizer = normalizers.Precompiled(charsmap)
    return damaged
