"""Metrics of a run: JSONL log, progress bar, throughput and MFU."""

import collections
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

# Dense bfloat16 FLOP/s per device, from the vendors' data sheets; a v2 or v3 device is half a chip.
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

# The objectives whose model computes logits over the vocabulary.
OVER_VOCABULARY = (
    "causal_lm",
    "continuation",
    "masked_lm",
    "pretraining",
    "sentence_order_pretraining",
)


Metrics = dict[str, Any]  # of a step, by name
LINE_START = b'{"step": '

# The format of metrics in the progress bar.
SHOWN = {
    "loss": "loss {:.4g}",
    "eval_loss": "eval {:.4g}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "examples_per_second": "{:,.1f} examples/s",
    "mfu": "MFU {:.1%}",
}


class MetricsLog:
    """A JSONL file of metrics, with one flushed line per step; `history` is the same as a list.

    The file is locked until it is closed, so that two runs cannot write the same log.

    Args:
        path: the file; None to keep only the list.
        step: the number of completed steps. Lines of later steps are from a run that was killed
            after its last checkpoint, and are dropped.
        restored: whether the run resumes from a checkpoint. Otherwise lines of later steps are
            another run's.
        resume: whether to move another run's file out of the way, to `PATH.1` and so on; otherwise
            it is an error.

    Raises:
        TargetError: the file is another run's, is a link, or cannot be written.
        InputError: a line of the file is not a line of metrics.
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
        """Keeps the lines of earlier steps, or moves another run's file out of the way."""
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
            raise TargetError(f"{path}: already exists; choose another file, or remove it")

    def add(self, line: Metrics) -> None:
        """Adds the metrics of a step, to the last line if that is of the same step."""
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
        """Replaces the file with one of the current lines, which is locked before the rename."""
        with new_file(self.path) as new:
            lock_file(new.fileno())
            new.writelines(json.dumps(line).encode() + b"\n" for line in self.history)
            copy = os.fdopen(os.dup(new.fileno()), "ab")  # shares the open file and its lock
        self.close()
        self._file = copy

    def sync(self) -> None:
        """Waits until all lines are on disk, so that no checkpoint is ahead of the log."""
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
    if not tail.startswith(LINE_START[: len(tail)]):  # otherwise the line was being written
        texts.append(tail)
    for number, text in enumerate(texts, start=1):
        line = None
        with contextlib.suppress(ValueError):
            line = json.loads(text)
        if not (isinstance(line, dict) and isinstance(line.get("step"), int)):
            raise InputError(
                f"{path}: line {number}: expected a JSON object of metrics with a step"
            )
        lines.append(line)
    return lines


def _locked(path: Path) -> BinaryIO:
    """Opens a log for appending, and locks it.

    Raises:
        TargetError: another run is writing the log, or it is not a regular file.
    """
    while True:
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        except OSError as reason:
            if reason.errno == errno.ELOOP:
                raise TargetError(
                    f"{path}: expected a file, found a symbolic link, which is not followed; pass "
                    "the path of its target"
                ) from None
            raise
        file = os.fdopen(number, "ab")
        state = os.fstat(number)
        why = ""
        if not stat.S_ISREG(state.st_mode):
            why = "expected a regular file"
        elif lock_file(number) is False:
            why = "another run is writing this log; choose another file"
        else:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), state):
                    return file  # otherwise it has just been replaced
        file.close()
        if why:
            raise TargetError(f"{path}: {why}")


def sizes(batch: Mapping[str, Any]) -> dict[str, int]:
    """Returns the numbers of `examples`, `tokens` (without padding) and `positions` (with padding).

    `squares` is the sum over rows of positions², to which the work of attention is proportional.
    """
    found = dict.fromkeys(("examples", "tokens", "positions", "squares"), 0)
    for name in batch:
        if name.endswith("input_ids"):
            shape = np.shape(batch[name])
            positions = math.prod(shape)
            mask = batch.get(f"{name.removesuffix('input_ids')}attention_mask")
            if mask is not None:  # may be an array of another library, or on a device
                mask = np.asarray(jax.device_get(mask))
            if mask is not None and mask.ndim == 3:  # positions that are attended to
                mask = np.any(mask, axis=1)
            found["examples"] = max(found["examples"], shape[0])
            found["tokens"] += positions if mask is None else int(np.sum(mask))
            found["positions"] += positions
            found["squares"] += positions * shape[-1]
    return found


class Speed:
    """Measures throughput; the first step, which includes compilation, does not count."""

    def __init__(self, trainer: "Trainer"):
        self._since: float | None = None
        self._seconds, self._done = 0.0, dict.fromkeys(("tokens", "examples", "flops"), 0.0)
        self._flops, self._peak = (0.0, 0.0), None
        if not trainer.frozen:  # otherwise some gradients are not computed
            over_vocabulary = trainer.objective.name in OVER_VOCABULARY
            self._flops = operations(trainer.state.params, trainer.config, over_vocabulary)
            self._peak = _peak(trainer)
        sharding = trainer.sharding
        self._shards = 1 if sharding is None else sharding.share[1]  # of equal size

    def pause(self) -> None:
        """Excludes the time since the last step from the measurement."""
        if self._since is not None:
            self._since = time.perf_counter()

    def step(self, size: Mapping[str, int]) -> None:
        """Counts a completed step."""
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            linear, square = self._flops
            done = {**size, "flops": linear * size["positions"] + square * size["squares"]}
            for name in self._done:
                self._done[name] += self._shards * done[name]
        self._since = now

    def rates(self) -> dict[str, float]:
        """Returns the rates per second since the last call; empty if no step was counted."""
        if not self._seconds:
            return {}
        rates = {f"{name}_per_second": done / self._seconds for name, done in self._done.items()}
        self._seconds, self._done = 0.0, dict.fromkeys(self._done, 0.0)
        flops = rates.pop("flops_per_second")
        return rates if self._peak is None else {**rates, "mfu": flops / self._peak}


def operations(
    params: Mapping[str, Any], config: Any, over_vocabulary: bool
) -> tuple[float, float]:
    """Returns a step's FLOPs per position, 6·N, and per position², 12·layers·hidden.

    (Chowdhery et al., PaLM, appendix B.) N is the number of parameters that are multiplied at every
    position: kernels, as often as their block is executed, and the token embedding matrix if the
    output is tied to it.

    Args:
        params: the model's arrays by path.
        config: the model's config.
        over_vocabulary: whether logits over the vocabulary are computed at every position.
    """
    kernels = {path: leaf for path, leaf in params.items() if path.endswith("kernel")}
    blocks = collections.Counter(getattr(config, "layer_paths", ()))  # a toy's has none
    count = sum(
        leaf.size * max((blocks[name] for name in blocks if f".{name}." in path), default=1)
        for path, leaf in kernels.items()
    )
    vocab_size = getattr(config, "vocab_size", 0)
    if over_vocabulary and not any(vocab_size in leaf.shape for leaf in kernels.values()):
        count += vocab_size * getattr(config, "embedding_size", config.hidden_size)
    layers = blocks.total() or config.num_hidden_layers
    return 6.0 * count, 12.0 * layers * config.hidden_size


def _peak(trainer: "Trainer") -> float | None:
    """Returns the peak FLOP/s of the parameters' devices; None if one is not in `PEAKS`."""
    devices = next(iter(trainer.state.params.values())).sharding.device_set
    peaks: list[Any] = [PEAKS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peaks)


@contextlib.contextmanager
def training_bar(
    step: int, steps: int, show: bool | None
) -> Generator[Callable[[int, Metrics], None]]:
    """Shows a progress bar on stderr, and yields the callback that advances it.

    Args:
        step: the number of completed steps.
        steps: the total number of steps.
        show: whether to show the bar; None shows it if stderr is a terminal.
    """
    known: Metrics = {}
    with progress_bar(None, steps, show, initial=step, unit="step", postfix="compiling") as advance:

        def move(reached: int, metrics: Metrics) -> None:
            nonlocal step
            known.update(metrics)
            parts = [text.format(known[name]) for name, text in SHOWN.items() if name in known]
            advance(reached - step, " · ".join(parts))
            step = reached

        yield move
