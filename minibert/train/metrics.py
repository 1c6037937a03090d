"""What a run says of itself: a line of JSON a step, a bar on stderr, tokens and FLOPs a second."""

import contextlib
import errno
import itertools
import json
import math
import os
import stat
import time
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import jax
import numpy as np

from minibert.core.atomic_file import lock_file, new_file
from minibert.core.progress import progress_bar
from minibert.core.types import Path
from minibert.errors import InputError, TargetError, writing

if TYPE_CHECKING:
    from minibert.train.trainer import Trainer

# Dense bfloat16 FLOP/s of a device, by the makers' data sheets; a v2 or v3 device is half a chip.
PEAKS = {
    "TPU v2": 23e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}

OVER_WORDS = (
    "causal_lm",
    "continuation",
    "masked_lm",
    "pretraining",
)  # the table scores every word


Metrics = dict[str, Any]  # of a step, by name
BEGINNING = b'{"step": '  # of a line of metrics

# How the bar shows metrics.
SHOWN = {
    "loss": "loss {:.4g}",
    "eval_loss": "eval {:.4g}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "examples_per_second": "{:,.1f} examples/s",
    "mfu": "MFU {:.1%}",
}


class MetricsLog:
    """A JSONL file of metrics, a flushed line a step; and the same as a list, `history`.

    Args:
        path: of the file; None for the list alone.
        step: how many steps are done. Later lines are of a run that was killed behind its
            checkpoint, and dropped.
        restored: whether they are those of a checkpoint. Else lines of later steps are another
            run's.
        resume: whether another run's file is to be moved out of the way, to `PATH.1` and so on;
            else it is refused.

    The file is locked until it is closed, so that no two runs write one log.

    Raises:
        TargetError: the file is another run's, is a link, or cannot be written.
        InputError: it holds what is no line of metrics.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None, step: int, restored: bool, resume: bool
    ):
        self.path: Any = path
        self._file: BinaryIO | None = None
        self.history: list[Metrics] = []
        if path is None or jax.process_index():
            return
        with writing(path):
            self._file = _locked(path)
            try:
                self._begin(path, step, restored, resume)
            except BaseException:
                self.close()
                raise

    def _begin(self, path: Path, step: int, restored: bool, resume: bool) -> None:
        """Takes over the lines of earlier steps, or moves another run's out of the way."""
        lines = _lines(path)
        if not lines and not os.path.getsize(path):
            return
        self.history = [line for line in lines if line["step"] <= step]
        if restored or (step and len(self.history) == len(lines)):
            self._rewrite()
        elif resume:
            self.history = []
            names = (f"{os.fspath(path)}.{number}" for number in itertools.count(1))
            os.rename(path, next(name for name in names if not os.path.lexists(name)))
            self.close()
            self._file = _locked(path)
        else:
            raise TargetError(f"{path}: exists; choose another, or remove it")

    def add(self, line: Metrics) -> None:
        """Adds a step's metrics; to its line, if that is the last."""
        amended = bool(self.history) and self.history[-1]["step"] == line["step"]
        if amended:
            self.history[-1] |= line
        else:
            self.history.append(line)
        if self._file is None:
            return
        with writing(self.path):
            if amended:
                self._rewrite()
            else:
                self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
                self._file.flush()

    def _rewrite(self) -> None:
        """Replaces the file by one with the present lines, which is locked before it is there."""
        with new_file(self.path) as new:
            lock_file(new.fileno())
            new.writelines(json.dumps(line).encode() + b"\n" for line in self.history)
            copy = os.fdopen(os.dup(new.fileno()), "ab")  # of one open file, and so of one lock
        self.close()
        self._file = copy

    def sync(self) -> None:
        """Waits until all lines are on the disk: no checkpoint knows of more than the log."""
        if self._file is not None:
            with writing(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _lines(path: Path) -> list[Metrics]:
    with open(path, "rb") as file:
        *texts, tail = file.read().split(b"\n")
    lines = []
    if not tail.startswith(BEGINNING[: len(tail)]):  # else it was being written
        texts.append(tail)
    for number, text in enumerate(texts, start=1):
        line = None
        with contextlib.suppress(ValueError):
            line = json.loads(text)
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            raise InputError(f"{path}: line {number}: expected metrics with a step")
        lines.append(line)
    return lines


def _locked(path: Path) -> BinaryIO:
    """Opens a log to add lines to it, for one run alone.

    Raises:
        TargetError: another run is writing it, or it is no plain file.
    """
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        except OSError as reason:
            if reason.errno == errno.ELOOP:
                raise TargetError(
                    f"{path}: expected a file, found a symbolic link, which is not followed; pass "
                    "the path that it points to"
                ) from None
            raise
        file = os.fdopen(number, "ab")
        state = os.fstat(number)
        why = ""
        if not stat.S_ISREG(state.st_mode):
            why = "expected a file, found something else"
        elif lock_file(number) is False:
            why = "another run is writing this log; choose another file"
        else:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), state):
                    return file  # else it was replaced meanwhile
        file.close()
        if why:
            raise TargetError(f"{path}: {why}")


def sizes(batch: Mapping[str, Any]) -> dict[str, int]:
    """How many `examples`, `tokens` (without padding) and `places` (with it) a batch has.

    `squares` is the sum over rows of places², which attention takes.
    """
    found = dict.fromkeys(("examples", "tokens", "places", "squares"), 0)
    for name in batch:
        if name.endswith("input_ids"):
            shape = np.shape(batch[name])
            places = math.prod(shape)
            mask = batch.get(f"{name.removesuffix('input_ids')}attention_mask")
            if mask is not None and np.ndim(mask) == 3:  # a token is what some token looks at
                mask = np.any(mask, axis=1)
            found["examples"] = max(found["examples"], shape[0])
            found["tokens"] += places if mask is None else int(np.sum(mask))
            found["places"] += places
            found["squares"] += places * shape[-1]
    return found


class Speed:
    """Counts what is done, and in what time; the first step, which compiles, does not count."""

    def __init__(self, trainer: "Trainer"):
        self._since: float | None = None
        self._seconds, self._done = 0.0, dict.fromkeys(("tokens", "examples", "flops"), 0.0)
        self._flops, self._peak = (0.0, 0.0), None
        if not trainer.frozen:  # else some gradients are not computed
            over_words = trainer.objective.name in OVER_WORDS
            self._flops = operations(trainer.state.params, trainer.config, over_words)
            self._peak = _peak(trainer)
        sharding = trainer.sharding
        self._shares = 1 if sharding is None else sharding.share[1]  # other processes' are alike

    def pause(self) -> None:
        """What is done until now, behind the last step, does not count."""
        if self._since is not None:
            self._since = time.perf_counter()

    def step(self, size: Mapping[str, int]) -> None:
        """A step is done."""
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            linear, square = self._flops
            done = {**size, "flops": linear * size["places"] + square * size["squares"]}
            for name in self._done:
                self._done[name] += self._shares * done[name]
        self._since = now

    def rates(self) -> dict[str, float]:
        """A second's worth of what was done since the last call; empty if that is nothing."""
        if not self._seconds:
            return {}
        rates = {f"{name}_per_second": done / self._seconds for name, done in self._done.items()}
        self._seconds, self._done = 0.0, dict.fromkeys(self._done, 0.0)
        flops = rates.pop("flops_per_second")
        return rates if self._peak is None else {**rates, "mfu": flops / self._peak}


def operations(params: Mapping[str, Any], config: Any, over_words: bool) -> tuple[float, float]:
    """A step's FLOPs, by place and by place²: 6·N and 12·layers·hidden (Chowdhery et al., PaLM, B).

    N are the numbers that are multiplied with every place: kernels, and the table of words where it
    is the output's too.

    Args:
        params: the model's arrays, by path.
        config: its config.
        over_words: whether every place is scored against every word.
    """
    kernels = {path: leaf for path, leaf in params.items() if path.endswith("kernel")}
    count = sum(leaf.size for leaf in kernels.values())
    words = getattr(config, "vocab_size", 0)
    if over_words and not any(words in leaf.shape for leaf in kernels.values()):
        count += words * config.hidden_size
    return 6.0 * count, 12.0 * config.num_hidden_layers * config.hidden_size


def _peak(trainer: "Trainer") -> float | None:
    """FLOP/s of the devices that the parameters are on; None if they are not in the table."""
    devices = next(iter(trainer.state.params.values())).sharding.device_set
    peaks: list[Any] = [PEAKS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)


@contextlib.contextmanager
def training_bar(
    step: int, steps: int, show: bool | None
) -> Generator[Callable[[int, Metrics], None]]:
    """Shows a bar on stderr, and yields a callback that moves it.

    Args:
        step: how many steps are done.
        steps: how many there are in all.
        show: whether there is a bar; None for one if stderr is a terminal.
    """
    known: Metrics = {}
    with progress_bar(None, steps, show, initial=step, unit="step", postfix="compiling") as advance:

        def move(reached: int, metrics: Metrics) -> None:
            nonlocal step
            known.update(metrics)
            said = [text.format(known[name]) for name, text in SHOWN.items() if name in known]
            advance(reached - step, " · ".join(said))
            step = reached

        yield move
