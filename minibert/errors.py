"""Every error minibert raises on purpose.

All are `MinibertError`, itself a `ValueError`, and each message names the file, tensor, field or
argument, what was expected and what was found.
"""

import contextlib
import difflib
import reprlib
from collections.abc import Generator, Iterable, Sequence
from typing import Any

LONGEST = 160  # characters of one value in a message

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = LONGEST


def shown(value: object) -> str:
    """A value as a message quotes it: its repr, on one line, with the middle of a long one cut."""
    try:
        text = _REPR.repr(value).replace("\n", " ")
    except ValueError:  # Python refuses to print an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 30]} … {text[-20:]}"


def suggest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns a hint at the known names closest to an unknown one; empty if none is close."""
    near = difflib.get_close_matches(name[:LONGEST], sorted(known), count)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


class MinibertError(ValueError):
    """Base class of the library's own errors.

    Attributes:
        arguments: the arguments that the message advises, as it writes them: `truncation=True`. The
            command line replaces them by its own flags.
    """

    arguments: tuple[str, ...] = ()

    def advising(self, *arguments: str) -> "MinibertError":
        """Sets `arguments` and returns the error, as `with_traceback` does."""
        self.arguments = arguments
        return self


class ConfigError(MinibertError):
    """A config.json or a config object holds a value that cannot be right."""


class UnsupportedConfigError(ConfigError):
    """A config asks for something that would change the numbers and is not implemented."""


class SourceError(MinibertError):
    """A model source (folder or hub id) does not exist or holds no weights."""


class WeightsFileError(MinibertError):
    """A weights file is damaged, malformed or of the wrong kind."""


class PickleRefusedError(WeightsFileError):
    """A weights file is a pickle, which can run code; the caller has not allowed it."""


class ShardIndexError(WeightsFileError):
    """A shard index names files or tensors that are not there, or are not allowed."""


class CheckpointMismatchError(MinibertError):
    """The tensors of a checkpoint and the leaves of a model are not in one-to-one correspondence.

    Also of a model that is to be saved: its parameters are not those that its config describes.

    Attributes:
        faults: every fault found, one sentence each.
    """

    def __init__(self, where: str, faults: list[str], hint: str = ""):
        self.faults: tuple[str, ...] = tuple(faults)
        lines = [f"  - {fault}" for fault in faults]
        if len(lines) > 20:  # sorted by name, the first and the last are seldom of one kind
            lines[10:-10] = [f"  … and {len(lines) - 20} more …"]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n".join([f"{where}: {count}:", *lines]) + hint)


class MissingHeadError(CheckpointMismatchError):
    """The model has a head that the checkpoint lacks, and the caller did not ask for a new one."""


class InputError(MinibertError):
    """An argument of a model call is out of range, of the wrong shape or contradictory."""


class TextError(InputError):
    """One of many texts has no vector.

    Attributes:
        number: which one, from 0.
        why: what is wrong with it.
    """

    number: int
    why: str

    def __init__(self, number: int, why: str):
        self.number, self.why = number, why
        super().__init__(f"sentence {number}: {why}")


class NotFiniteError(MinibertError):
    """A model computed NaN or infinity where a number was needed."""


class TextNotFiniteError(NotFiniteError):
    """The vectors of some of many texts are NaN or infinite.

    Attributes:
        numbers: indices of the texts.
        why: what was found, and what to do.
    """

    numbers: tuple[int, ...]
    why: str

    def __init__(self, numbers: Sequence[int], why: str):
        self.numbers, self.why = tuple(numbers), why
        first, *others = self.numbers
        named = ", ".join(map(str, others[:3])) + (", …" if len(others) > 3 else "")
        more = f" (and {len(others)} more: {named})" if others else ""
        super().__init__(f"sentence {first}{more}: {why}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.numbers, self.why)


class TargetError(MinibertError):
    """An output folder cannot be written: it exists, is in use, or the disk refuses."""


@contextlib.contextmanager
def reading(path: object, error: type[MinibertError] = SourceError) -> Generator[None]:
    """Raises an error of the operating system as an `error` that names the path."""
    try:
        yield
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from None


@contextlib.contextmanager
def writing(path: object) -> Generator[None]:
    """Raises an error of the operating system as a `TargetError` that names the path."""
    try:
        yield
    except OSError as reason:
        raise TargetError(f"{path}: cannot be written ({reason.strerror or reason})") from reason
