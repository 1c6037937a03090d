"""The errors that minibert raises.

All are subclasses of `MinibertError`, which is a `ValueError`. Messages state the file, tensor,
field or argument, what was expected and what was found.
"""

import contextlib
import difflib
import reprlib
from collections.abc import Generator, Iterable, Sequence
from typing import Any

LONGEST = 160  # maximum number of characters of a value in a message

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = LONGEST


def shown(value: object) -> str:
    """Returns the repr of a value for a message: on one line, and shortened in the middle."""
    try:
        text = _REPR.repr(value).replace("\n", " ")
    except ValueError:  # Python refuses to print an integer of thousands of digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 30]} … {text[-20:]}"


def suggest(name: str, known: Iterable[str], count: int = 1) -> str:
    """Returns a hint at the known names that are closest to an unknown one; "" if none is close."""
    near = difflib.get_close_matches(name[:LONGEST], sorted(known), count)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


class MinibertError(ValueError):
    """Base class of the errors of minibert.

    Attributes:
        arguments: the arguments that the message recommends, as written there: `truncation=True`.
            The command line replaces them by its flags.
    """

    arguments: tuple[str, ...] = ()

    def advising(self, *arguments: str) -> "MinibertError":
        """Sets `arguments` and returns the error, as `with_traceback` does."""
        self.arguments = arguments
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # exceptions pass `args`, which is the message, to the constructor, whose arguments differ
        return _without_constructor, (type(self), self.args), self.__dict__


def _without_constructor(cls: type[MinibertError], args: tuple[Any, ...]) -> MinibertError:
    return cls.__new__(cls, *args)


class ConfigError(MinibertError):
    """A config.json or a config object contains an invalid value."""


class UnsupportedConfigError(ConfigError):
    """A config requests something that would change results and is not implemented."""


class SourceError(MinibertError):
    """A model source (folder or hub id) does not exist or contains no weights."""


class WeightsFileError(MinibertError):
    """A weights file is damaged, malformed or in the wrong format."""


class PickleRefusedError(WeightsFileError):
    """A weights file is a pickle, which can run code, and the caller did not allow pickles."""


class ShardIndexError(WeightsFileError):
    """A shard index lists files or tensors that are missing or not allowed."""


def _by_reason(faults: Sequence[str]) -> list[str]:
    """Returns the first fault of each reason (the text after its name), and how many are alike."""
    found: dict[str, list[str]] = {}
    for fault in faults:
        found.setdefault(fault.partition(": ")[2] or fault, []).append(fault)
    return [
        f"{first} (and {len(others)} more like it)" if others else first
        for first, *others in found.values()
    ]


class CheckpointMismatchError(MinibertError):
    """The tensors of a checkpoint and the leaves of a model are not in one-to-one correspondence.

    It is also raised by saving if the parameters of the model are not those of its config.

    Attributes:
        faults: every fault found, one sentence each.
    """

    def __init__(self, where: str, faults: list[str], hint: str = ""):
        self.faults: tuple[str, ...] = tuple(faults)
        lines = [f"  - {fault}" for fault in faults]
        if len(lines) > 20:
            lines = [f"  - {fault}" for fault in _by_reason(faults)]
        if len(lines) > 20:  # keep both ends: faults are sorted by name and differ in kind
            lines[10:-10] = [f"  … and {len(lines) - 20} more …"]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n".join([f"{where}: {count}:", *lines]) + hint)


class MissingHeadError(CheckpointMismatchError):
    """The checkpoint lacks the model's head, and the caller did not request a new one."""


class InputError(MinibertError):
    """An argument is out of range, of the wrong type or shape, or contradicts another."""


class TextError(InputError):
    """One of several texts cannot be encoded.

    Attributes:
        number: the index of the text.
        why: the reason.
    """

    number: int
    why: str

    def __init__(self, number: int, why: str):
        self.number, self.why = number, why
        super().__init__(f"sentence {number}: {why}")


class NotFiniteError(MinibertError):
    """A model computed NaN or infinity where a finite number is required."""


class TextNotFiniteError(NotFiniteError):
    """The vectors of some texts are NaN or infinite.

    Attributes:
        numbers: the indices of the texts.
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


class TargetError(MinibertError):
    """An output folder or file exists already, is in use, or cannot be written."""


@contextlib.contextmanager
def reading(path: object, error: type[MinibertError] = SourceError) -> Generator[None]:
    """Converts an error of the operating system to an `error` whose message names the path."""
    try:
        yield
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from None


@contextlib.contextmanager
def writing(path: object) -> Generator[None]:
    """Converts an error of the operating system to a `TargetError` whose message names the path."""
    try:
        yield
    except OSError as reason:
        raise TargetError(f"{path}: cannot be written ({reason.strerror or reason})") from reason
