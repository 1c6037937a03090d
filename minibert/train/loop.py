"""The training loop: steps, evaluations, metrics and checkpoints.

Metrics are read one step late, while the device computes the next step, so that the device is never
idle; only evaluations and checkpoints wait for it.
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
from minibert.core.fields import COUNT, check, field, or_null
from minibert.core.types import ArrayLike
from minibert.errors import InputError, NotFiniteError, shown
from minibert.models.arguments import refusing
from minibert.train.arguments import FIT
from minibert.train.checkpoints import PATH, Checkpoints, EvaluationState, Store, opened
from minibert.train.metrics import Metrics, MetricsLog, Speed, sizes, training_bar
from minibert.train.optimizers import MOST
from minibert.train.trainer import Trainer


@contextlib.contextmanager
def interruption() -> Generator[threading.Event]:
    """Yields an event that the first SIGINT or SIGTERM sets; the second one raises."""
    requested = threading.Event()

    def request(number: int, frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield requested
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and on which batches a model is evaluated; always also at the last step.

    (An interrupted run is not evaluated when it stops; the run that resumes it is, at its last
    step.)

    Attributes:
        batches: the batches for `Trainer.evaluate`, which are iterated over each time.
        every: the number of steps between evaluations.
        patience: the number of evaluations without a smaller `eval_loss` after which the run stops;
            None for no early stopping.

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
                "batches: expected an iterable that can be iterated over repeatedly (a list, a "
                "dataset), "
                f"found {shown(type(self.batches))}"
            )


Callback = Callable[[int, Metrics], Any]
END: Any = object()  # marks the end of the data; None would be an invalid batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run.

    Attributes:
        trainer: the trainer, with the state of the last step.
        step: the number of completed steps in total.
        stopped: why the run stopped: `steps` (all are completed), `patience`, `data` (the data
            ended), or `interrupted` (by Ctrl-C or SIGTERM).
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


@refusing(FIT)
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
    """Trains a model until all steps are completed, or the run has to stop earlier.

    The metrics of a step are `step`; what `Trainer.step` returns; `tokens_per_second` (without
    padding) and `examples_per_second` since the previous line; `mfu` on devices listed in
    `metrics.PEAKS`; and what `Trainer.evaluate` returns, with the prefix `eval_`.

    With `wandb`, a callback is `lambda step, metrics: wandb.log(metrics, step=step)`; with a
    `SummaryWriter` of TensorBoard, `lambda step, metrics: [writer.add_scalar(name, value, step)
    for name, value in metrics.items()]`.

    On Ctrl-C or SIGTERM the run completes the current step, writes a checkpoint and stops; a second
    signal stops it immediately. (With several processes, signals are left to the caller.)

    Args:
        trainer: a `Trainer`.
        data: batches: a dataset of Grain, or any iterable; with `checkpoints`, one whose iterator
            has `get_state` and `set_state`, as Grain's have.
        steps: the total number of steps, counted from the trainer's first.
        evaluation: when and on which batches to evaluate.
        checkpoints: where to write the run's checkpoints, and whether to resume from them.
        log: a JSONL file for the metrics. A run that resumes from a checkpoint drops the lines of
            later steps; lines of a run that left no checkpoint are moved to a file next to it.
        log_every: the number of steps between lines of metrics; evaluations and the last step are
            always logged.
        callbacks: functions that are called with the step and its metrics.
        on_train_begin: called before the first step, after the checkpoint to resume from has been
            accepted and restored and the log has been opened.
        show_progress: whether to show a progress bar; None shows it if stderr is a terminal.

    Raises:
        NotFiniteError: a metric is NaN or infinite; the message names the step and the batch. That
            step is in no checkpoint.
        InputError: an argument or a batch is wrong.
        CheckpointMismatchError: the checkpoints are another run's.
        TargetError: a file or folder is another run's, or cannot be written.
    """
    whole("steps", steps, 1, MOST)
    whole("log_every", log_every, 1)
    or_null(PATH).check("log", log, InputError)
    _check_kind("trainer", trainer, Trainer)
    _check_kind("evaluation", evaluation, Evaluation | None)
    _check_kind("checkpoints", checkpoints, Checkpoints | None)
    if not isinstance(data, Iterable):
        raise InputError(f"data: expected batches, found {shown(type(data))}")
    if not isinstance(callbacks, Iterable):
        raise InputError(f"callbacks: expected a list of functions, found {shown(callbacks)}")
    iterator, eval_state, start = iter(data), EvaluationState(), _step(trainer)
    with contextlib.ExitStack() as stack:
        store, restored = None, False
        if checkpoints is not None:
            store = stack.enter_context(opened(checkpoints, trainer, data, iterator))
            restored = store.latest is not None
            if restored:
                trainer.state, eval_state, resumed = store.restore(trainer.state, iterator)
                start = 0 if resumed else _step(trainer)
        step = _step(trainer)
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
            eval_state=eval_state,
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
        best_step=eval_state.best_step,
    )


def _step(trainer: Trainer) -> int:
    return int(jax.device_get(trainer.state.step))


class _Pending(NamedTuple):
    """A dispatched step, which may not be computed yet."""

    step: int
    batch: Mapping[str, Any]
    metrics: Metrics


@dataclasses.dataclass(kw_only=True)
class _Run:
    trainer: Any
    iterator: Any
    step: int
    eval_state: EvaluationState
    steps: int
    evaluation: Evaluation | None
    store: Store | None
    log: MetricsLog
    log_every: int
    start: int  # the step before the data's first batch
    callbacks: list[Callback]
    speed: Speed
    pending: _Pending | None = None
    unwritten: Metrics | None = None  # the last step's metrics, if they are not logged yet

    def until_stopped(self, interrupted: threading.Event) -> str:
        """Runs steps until there is a reason to stop, and returns the reason."""
        restored = self.store is not None and self.store.latest == self.step > 0
        if restored and self.eval_state.evaluated != self.step and self._evaluation_due():
            self._evaluate()  # the resumed run was stopped before it could evaluate
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
                "data: expected batches, found none; an iterator can be consumed only once"
            )
        self._settle()
        if reason == "data" and self.evaluation and self.eval_state.evaluated != self.step > 0:
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
        if patience is not None and self.eval_state.since >= patience:
            return "patience"
        return "interrupted" if interrupted.is_set() else None

    def _settle(self) -> None:
        """Waits for the last step, and logs its metrics if they are due."""
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
                f"step {step}: {', '.join(wrong)} at batch {step - self.start} of the data{named}. "
                "A smaller learning rate, a longer warmup or clipped gradients may help"
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
        """Evaluates the model, and returns whether the result is the best so far."""
        assert self.evaluation is not None
        self._read()
        try:
            found = self.trainer.evaluate(self.evaluation.batches)
        except Exception as reason:
            if self.unwritten is not None:
                self._write(self.unwritten)
            # keep the steps completed so far, unless the weights are not finite
            with contextlib.suppress(NotFiniteError):
                self._save(wait=True)
            if isinstance(reason, NotFiniteError):
                raise NotFiniteError(f"evaluation at step {self.step}: {reason}") from None
            raise
        metrics = {f"eval_{name}": value for name, value in found.items()}
        value, eval_state = metrics["eval_loss"], self.eval_state
        eval_state.evaluated = self.step
        if eval_state.best is None or value < eval_state.best:
            eval_state.best_step, eval_state.best, eval_state.since = self.step, value, 0
        else:
            eval_state.since += 1
        self._write({"step": self.step, **(self.unwritten or {}), **metrics})
        self.speed.pause()
        return eval_state.since == 0

    def _save(self, *, wait: bool = False) -> None:
        if self.store is None:
            return
        self._settle()
        self.log.sync()
        self.store.save(self.trainer.state, self.step, self.iterator, self.eval_state)
        self.speed.pause()
        if wait:
            self.store.wait()


def _check_kind(name: str, value: object, kind: type | UnionType) -> None:
    if not isinstance(value, kind):
        raise InputError(f"{name}: expected {shown(kind)}, found {shown(type(value))}")
