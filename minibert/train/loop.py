"""The loop: steps, evaluations, metrics and checkpoints, until it is done or has to stop.

The device is never waited for but one step late: while it computes a step, the metrics of the one
before are read. Evaluations and checkpoints do wait.
"""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from math import isfinite
from types import UnionType
from typing import Any, NamedTuple

import jax
import numpy as np

from minibert.core.checks import whole
from minibert.core.fields import COUNT, check, field
from minibert.core.types import ArrayLike
from minibert.errors import InputError, NotFiniteError, shown
from minibert.train.checkpoints import Checkpoints, Standing, Store, opened
from minibert.train.metrics import Metrics, MetricsLog, Speed, sizes, training_bar
from minibert.train.trainer import Trainer


@contextlib.contextmanager
def interruption() -> Generator[threading.Event]:
    """Yields what is set when SIGINT or SIGTERM comes; the second one raises."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and on what a model is evaluated; at the last step, it is in any case.

    (Not after an interruption: a run that goes on from there comes to its own last step.)

    Attributes:
        batches: as `Trainer.evaluate` takes them; iterated over each time.
        every: how many steps from one to the next.
        patience: after how many evaluations without a smaller `eval_loss` the run stops; None for
            never.

    Raises:
        InputError: an attribute is wrong.
    """

    batches: Any
    every: Any = field(COUNT)
    patience: Any = field(COUNT, None)

    def __post_init__(self) -> None:
        check(self, InputError)
        if not isinstance(self.batches, Iterable) or iter(self.batches) is self.batches:
            raise InputError(
                "batches: expected what can be iterated over more than once (a list, a dataset), "
                f"found {shown(type(self.batches))}"
            )


Callback = Callable[[int, Metrics], Any]
END: Any = object()  # of the data; None is no batch, and an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run.

    Attributes:
        trainer: with the last step's state.
        step: how many steps are done in all.
        stopped: why it stopped: `steps` (all are done), `patience`, `data` (it ended), or
            `interrupted` (by Ctrl-C or SIGTERM).
        history: the metrics, a dictionary for each logged step.
        best_step: the step of the smallest `eval_loss`; None without an evaluation.
    """

    trainer: Any
    step: int
    stopped: str
    history: list[Metrics]
    best_step: int | None

    @property
    def model(self) -> Any:
        """The trained model, in evaluation mode."""
        return self.trainer.model


def fit(
    trainer: "Trainer",
    data: Iterable[Mapping[str, ArrayLike]],
    *,
    steps: int,
    evaluation: Evaluation | None = None,
    checkpoints: Checkpoints | None = None,
    log: str | os.PathLike[str] | None = None,
    log_every: int = 1,
    callbacks: Iterable[Callback] = (),
    on_train_begin: Callable[[], Any] | None = None,
    show_progress: bool | None = None,
) -> Result:
    """Trains.

    The metrics of a step are `step`, what `Trainer.step` returns, `tokens_per_second` (padding does
    not count) and `examples_per_second` since the line before, `mfu` on devices that
    `metrics.PEAKS` knows, and with `eval_` before it what `Trainer.evaluate` returns.

    With `wandb`, a callback is `lambda step, metrics: wandb.log(metrics, step=step)`; with a
    `SummaryWriter` of TensorBoard, `lambda step, metrics: [writer.add_scalar(name, value, step)
    for name, value in metrics.items()]`.

    Ctrl-C and SIGTERM are waited with until the step is done: then a checkpoint is written, and the
    run stops. A second one stops at once. (With several processes, they are left to the caller.)

    Args:
        trainer: a `Trainer`.
        data: batches: a dataset of Grain, or any iterable; with `checkpoints`, one whose iterator
            has `get_state` and `set_state`, as Grain's have.
        steps: how many steps in all, counted from the trainer's first.
        evaluation: on what to evaluate.
        checkpoints: where to write and find the run's checkpoints.
        log: a JSONL file for the metrics. A run that goes on from a checkpoint drops the lines
            behind it; lines of a run that left no checkpoint are moved to a file beside it.
        log_every: how many steps from one line of metrics to the next; evaluations and the last
            step always have one.
        callbacks: each is called with the step and its metrics.
        on_train_begin: called before the first step, after the checkpoint that is resumed from has
            been accepted and restored and the log has been opened.
        show_progress: whether there is a bar on stderr; None for one if it is a terminal.

    Raises:
        NotFiniteError: a metric is NaN or infinite; it names the step and the batch. Nothing of it
            is in a checkpoint.
        InputError: an argument or a batch is wrong.
        CheckpointMismatchError: the checkpoints are another run's.
        TargetError: a file or folder is another run's, or cannot be written.
    """
    whole("steps", steps, 1)
    whole("log_every", log_every, 1)
    _check_kind("trainer", trainer, Trainer)
    _check_kind("evaluation", evaluation, Evaluation | None)
    _check_kind("checkpoints", checkpoints, Checkpoints | None)
    if not isinstance(data, Iterable):
        raise InputError(f"data: expected batches, found {shown(type(data))}")
    iterator, standing, start = iter(data), Standing(), int(trainer.state.step)
    with contextlib.ExitStack() as stack:
        store, restored = None, False
        if checkpoints is not None:
            store = stack.enter_context(opened(checkpoints, trainer, data, iterator))
            restored = store.latest is not None
            if restored:
                trainer.state, standing, resumed = store.restore(trainer.state, iterator)
                start = 0 if resumed else int(trainer.state.step)
        step = int(trainer.state.step)
        resume = checkpoints is not None and bool(checkpoints.resume)
        written = stack.enter_context(contextlib.closing(MetricsLog(log, step, restored, resume)))
        if on_train_begin is not None:
            on_train_begin()
        bar = stack.enter_context(training_bar(step, steps, show_progress))
        interrupted = stack.enter_context(interruption())
        run = _Run(
            trainer=trainer,
            iterator=iterator,
            step=step,
            standing=standing,
            steps=steps,
            evaluation=evaluation,
            store=store,
            log=written,
            log_every=log_every,
            start=start,
            callbacks=[*callbacks, bar],
            speed=Speed(trainer),
        )
        stopped = run.until_stopped(interrupted)
    return Result(
        trainer=trainer,
        step=run.step,
        stopped=stopped,
        history=written.history,
        best_step=standing.best_step,
    )


class _Pending(NamedTuple):
    """A step that may not be computed yet."""

    step: int
    batch: Mapping[str, Any]
    metrics: Metrics


@dataclasses.dataclass(kw_only=True)
class _Run:
    trainer: Any
    iterator: Any
    step: int
    standing: Standing
    steps: int
    evaluation: Evaluation | None
    store: Store | None
    log: MetricsLog
    log_every: int
    start: int  # the step before the data's first batch
    callbacks: list[Callback]
    speed: Speed
    pending: _Pending | None = None
    unwritten: Metrics | None = None  # the last step's line, if it is not to be logged

    def until_stopped(self, interrupted: threading.Event) -> str:
        """Steps, until there is a reason not to; the reason."""
        restored = self.store is not None and self.store.latest == self.step > 0
        if restored and self.standing.evaluated != self.step and self._evaluation_due():
            self._evaluate()  # the run that is gone on with could not
        first = self.step
        while (reason := self._reason(interrupted)) is None:
            batch = next(self.iterator, END)
            if batch is END:
                reason = "data"
                break
            if not isinstance(batch, Mapping):
                raise InputError(f"data: expected arrays by name, found {shown(batch)}")
            metrics = self.trainer.step(batch)
            self.step += 1
            self._settle()
            self.pending = _Pending(self.step, batch, metrics)
            best = self._evaluation_due() and self._evaluate()
            if self.store is not None and (best or self.step % self.store.options.every == 0):
                self._save()
        if reason == "data" and self.step == first and not restored:
            raise InputError(
                "data: expected batches, found none; an iterator that was used up has no more"
            )
        self._settle()
        if reason == "data" and self.evaluation and self.standing.evaluated != self.step > 0:
            self._evaluate()
        elif self.unwritten is not None:
            self._write(self.unwritten)
        if self.step:
            self._save(wait=True)
        return reason

    def _reason(self, interrupted: threading.Event) -> str | None:
        patience = None if self.evaluation is None else self.evaluation.patience
        if self.step >= self.steps:
            return "steps"
        if patience is not None and self.standing.since >= patience:
            return "patience"
        return "interrupted" if interrupted.is_set() else None

    def _settle(self) -> None:
        """Waits for the last step, and writes its metrics down if they are to be."""
        self._read()
        if self.unwritten is not None and (
            self.unwritten["step"] == self.steps or self.unwritten["step"] % self.log_every == 0
        ):
            self._write(self.unwritten)

    def _read(self) -> None:
        if self.pending is None:
            return
        (step, batch, metrics), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        wrong = [f"{name} is {value}" for name, value in metrics.items() if not isfinite(value)]
        if wrong:
            examples = np.asarray(batch.get("example", ())).reshape(-1)
            named = f", of the examples {shown(examples.tolist())}" if examples.size else ""
            raise NotFiniteError(
                f"step {step}: {', '.join(wrong)}; it is the data's batch "
                f"{step - self.start}{named}. A smaller learning rate, a longer warmup or "
                "clipped gradients may help"
            )
        self.speed.step(sizes(batch))
        self.unwritten = {"step": step, **metrics}

    def _write(self, line: Metrics) -> None:
        self.unwritten = None
        line = {**line, **self.speed.rates()}
        self.log.add(line)
        for callback in self.callbacks:
            callback(int(line["step"]), dict(line))

    def _evaluation_due(self) -> bool:
        if self.evaluation is None:
            return False
        return self.step % self.evaluation.every == 0 or self.step == self.steps

    def _evaluate(self) -> bool:
        """Evaluates; whether it was the best until now."""
        assert self.evaluation is not None
        self._read()
        try:
            found = self.trainer.evaluate(self.evaluation.batches)
        except Exception as reason:
            if self.unwritten is not None:
                self._write(self.unwritten)
            # the steps until here are good, unless the weights are not
            with contextlib.suppress(NotFiniteError):
                self._save(wait=True)
            if isinstance(reason, NotFiniteError):
                raise NotFiniteError(f"evaluation at step {self.step}: {reason}") from None
            raise
        metrics = {f"eval_{name}": value for name, value in found.items()}
        value, standing = metrics["eval_loss"], self.standing
        standing.evaluated = self.step
        if standing.best is None or value < standing.best:
            standing.best_step, standing.best, standing.since = self.step, value, 0
        else:
            standing.since += 1
        self._write({"step": self.step, **(self.unwritten or {}), **metrics})
        self.speed.pause()
        return standing.since == 0

    def _save(self, *, wait: bool = False) -> None:
        if self.store is None:
            return
        self._settle()
        self.log.sync()
        self.store.save(self.trainer.state, self.step, self.iterator, self.standing)
        self.speed.pause()
        if wait:
            self.store.wait()


def _check_kind(name: str, value: object, kind: type | UnionType) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{name}: expected {shown(kind)}, found {shown(type(value))}")
