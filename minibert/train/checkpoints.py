"""Checkpoints of a run, written by Orbax: asynchronous and atomic; the last few and the best.

A checkpoint has three items: `state` (the `TrainState`: step, parameters and optimiser by path),
`data` (the position of each process's data iterator) and `run` (the run's identity, the state of
its evaluations, and checksums of everything that is saved). A run that resumes from a checkpoint
computes exactly what it would have computed without an interruption.
"""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from minibert.core.atomic import matching_files
from minibert.core.atomic_file import locked_path
from minibert.core.fields import COUNT, Rule, check, field
from minibert.core.types import Path
from minibert.errors import (
    CheckpointMismatchError,
    InputError,
    SourceError,
    TargetError,
    WeightsFileError,
    shown,
    writing,
)
from minibert.train.checkpoint_errors import check_free_space, without_tracebacks, written
from minibert.train.checkpoint_state import (
    as_dict,
    checksums,
    damaged,
    flat,
    from_dict,
    of_all_processes,
    position_of_json,
    readable,
    seal,
)
from minibert.train.data.identity import identity_of
from minibert.train.run_identity import (
    as_json,
    differences,
    identity,
    is_of_state,
    run_differences,
)
from minibert.train.trainer import TrainState

if TYPE_CHECKING:
    from minibert.train.trainer import Trainer

logger: logging.Logger = logging.getLogger(__name__)
ELSEWHERE = "elsewhere"
RUN_LOCK = ".minibert-run"  # the file in a run's folder that is locked while the run is active
# The folders of steps, and those that Orbax was writing when the process was killed.
_STEPS = re.compile(r"\d+(\.orbax-checkpoint-tmp[^/]*)?/")
PATH = Rule(
    "a path", lambda v: isinstance(v, str | os.PathLike) and "\0" not in os.fsdecode(os.fspath(v))
)
RESUME = Rule(f"True, False or {ELSEWHERE!r}", lambda v: isinstance(v, bool) or v == ELSEWHERE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run's checkpoints are stored, when they are written, and whether to resume from them.

    A checkpoint is also written at the end, at an interruption, and after each evaluation that is
    the best so far.

    With `resume=True` a run continues exactly from the last checkpoint, and must be the same run.
    These are compared:

    - the objective and its settings, `accumulate`, `seed`, LoRA, the dtypes of the computation, and
      the model's config;
    - the paths, shapes and dtypes of all arrays, and the values of those that are not trained;
    - the optimiser: the programs of its `init` and `update`, in which all hyperparameters and the
      schedule are constants (only if the versions of jax and optax are the same);
    - the number of processes, and the data: the examples and their order, the batch size, seed,
      transformations and tokenizer, see `minibert.train.data.batches`. The data of a custom
      iterator are compared only if it has a method `identity` that returns a mapping; otherwise a
      warning is logged.

    Callbacks, evaluations, `remat` and shardings may differ, except where tensor axes change the
    shape of a trained parameter: GPT-2's joint projection is `(in, 3, hidden)` with tensor axes
    that split its heads, and `(in, 3·hidden)` otherwise. The number of steps may differ too: to
    extend a run, call `fit` with more steps. With a constant schedule nothing else changes; a
    schedule that ends at the last step changes with it, which makes it a different run.

    With `resume="elsewhere"` differences are logged as warnings, except those in paths, shapes or
    dtypes of trained parameters and the optimiser's state, which remain errors. Parameters, moments
    and the number of completed steps are the checkpoint's. Hyperparameters are those of the new
    optimiser, and schedules continue at the current step. Data that are known to differ start at
    their first batch. Earlier evaluations do not count for `best_step` and `patience`.

    Checksums of everything are saved and compared: a damaged checkpoint raises an error that names
    the last earlier one that is intact. Nothing is removed, and no other checkpoint is used
    automatically.

    Attributes:
        folder: the folder; it may be missing or empty, or hold the checkpoints of this run
            (`resume`).
        every: the number of steps between checkpoints.
        keep: the number of last checkpoints that are kept, in addition to the best.
        resume: True to resume from the last checkpoint, if there is one; `"elsewhere"` to do so
            with other data or settings. With False the folder must not hold checkpoints.
        about: what else a run must have in common with the one it resumes, as JSON can represent
            it. Only values that this run states are compared.

    Raises:
        InputError: an attribute is wrong.
    """

    folder: Any = field(PATH)
    every: Any = field(COUNT, 1000)
    keep: Any = field(COUNT, 3)
    resume: Any = field(RESUME, False)
    about: Any = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, InputError)
        as_json("about", self.about)


@dataclasses.dataclass
class EvaluationState:
    """The state of a run's evaluations.

    Attributes:
        best_step: the step of the best evaluation; None before the first.
        best: the smallest `eval_loss`.
        since: the number of evaluations after the best one.
        evaluated: the step of the last evaluation.
    """

    best_step: int | None = None
    best: float | None = None
    since: int = 0
    evaluated: int | None = None


@dataclasses.dataclass(frozen=True)
class _StepCheckpoint:
    """The checkpoint of a step in a folder."""

    manager: Any
    folder: Any
    step: int

    @property
    def where(self) -> str:
        """The name of the checkpoint in messages."""
        return f"{self.folder}/{self.step}"

    def record(self) -> dict[str, Any]:
        """Returns everything in the checkpoint except its arrays.

        Raises:
            WeightsFileError: the checkpoint is damaged.
        """
        from orbax.checkpoint import args

        with readable(self.where):
            read = args.Composite(run=args.JsonRestore(), data=args.JsonRestore())
            found = self.manager.restore(self.step, args=read)
            record = {**found.run, "positions": found.data["positions"]}
            if "seal" in record and seal(record) != record["seal"]:
                raise damaged(self.where, "data/ or run/ differs from what was saved")
            for part in ("identity", "standing"):
                record[part].keys()
        return record

    def state(self, like: TrainState, record: Mapping[str, Any], fresh: bool = False) -> TrainState:
        """Returns the checkpoint's state after comparing it with its checksums.

        Args:
            like: a state with the same paths, shapes, dtypes and shardings.
            record: the checkpoint's record.
            fresh: whether to take hyperparameters in the optimiser's state from `like`.

        Raises:
            WeightsFileError: the checkpoint is damaged.
        """
        from orbax.checkpoint import args, utils

        plain = as_dict(like)
        shapes = jax.tree.map(utils.to_shape_dtype_struct, plain)  # with their shardings
        with readable(self.where):
            wanted = args.Composite(state=args.StandardRestore(shapes))
            read = self.manager.restore(self.step, args=wanted).state
        found = from_dict(read, like)
        if (step := int(found.step)) != self.step:
            raise damaged(self.where, f"it holds step {step}, as the copy of another does")
        if "checksums" not in record:
            logger.warning("%s: has no checksums, so damaged arrays are not detected", self.where)
        else:
            sums, saved = checksums(flat(found)), record["checksums"]
            if wrong := sorted(path for path in sums if sums[path] != saved.get(path)):
                more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
                why = f"{wrong[0]}{more}: the numbers differ from those that were saved"
                raise damaged(self.where, why)
        if fresh:
            ours = plain["opt_state"].items()
            hyperparams = {path: leaf for path, leaf in ours if ".hyperparams[" in path}
            found = from_dict({**read, "opt_state": {**read["opt_state"], **hyperparams}}, like)
        return found

    @contextlib.contextmanager
    def offering_earlier(self, like: TrainState) -> Generator[None]:
        """Adds to the error of a damaged checkpoint which earlier one is intact."""
        try:
            yield
        except WeightsFileError as reason:
            what = f"no earlier checkpoint in {self.folder} is intact"
            for step in sorted(
                (s for s in self.manager.all_steps() if s < self.step), reverse=True
            ):
                earlier = dataclasses.replace(self, step=step)
                with contextlib.suppress(WeightsFileError):
                    earlier.state(like, earlier.record())
                    what = (
                        f"the checkpoint of step {step} is intact: move {self.where} away to "
                        "resume from it"
                    )
                    break
            raise WeightsFileError(f"{reason}; {what}") from reason


class PreservationPolicy:
    """A preservation policy of Orbax that keeps the last checkpoints and the best."""

    last: int

    def __init__(self, last: int):
        self.last, self.best = last, None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns whether to keep each of the checkpoints, in their order."""
        first = len(checkpoints) - self.last
        return [n >= first or one.step == self.best for n, one in enumerate(checkpoints)]


@dataclasses.dataclass
class Store:
    """The open checkpoints of a run; see `opened`.

    Attributes:
        manager: Orbax's checkpoint manager.
        policy: the manager's preservation policy, which needs to know the best step.
        options: where checkpoints are stored, and when they are written.
        run: the run's identity.
        data: the identity of its data; None if they have none.
        latest: the step of the last checkpoint.
    """

    manager: Any
    policy: PreservationPolicy
    options: Checkpoints
    run: dict[str, Any]
    data: dict[str, Any] | None
    latest: int | None

    def save(
        self, state: TrainState, step: int, iterator: Any, eval_state: EvaluationState
    ) -> None:
        """Starts writing a checkpoint, unless there is already one of this step.

        Raises:
            NotFiniteError: the state holds NaN or infinity.
            TargetError: this checkpoint, or the previous one, cannot be written.
        """
        if step == self.latest:
            return
        from orbax.checkpoint import args

        self.policy.best = eval_state.best_step
        record = {
            "identity": self.run,
            "standing": dataclasses.asdict(eval_state),
            "checksums": checksums(flat(state), step=step),
            "data": of_all_processes(self.data),
        }
        positions = {"positions": of_all_processes(iterator.get_state())}
        record["seal"] = seal(record | positions)
        arrays = as_dict(state)
        with written(self.options.folder):
            check_free_space(self.options.folder, arrays)
            self.manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(arrays),
                    data=args.JsonSave(positions),
                    run=args.JsonSave(record),
                ),
                force=True,
            )
        self.latest = step

    def restore(self, state: TrainState, iterator: Any) -> tuple[TrainState, EvaluationState, bool]:
        """Restores the last checkpoint, and sets the iterator to its position.

        Returns:
            The state, the state of the evaluations, and whether the iterator was set; it is not if
            the data differ (`resume="elsewhere"`).

        Raises:
            CheckpointMismatchError: the checkpoint is another run's.
            WeightsFileError: the checkpoint is damaged.
        """
        assert self.latest is not None
        saved = _StepCheckpoint(self.manager, self.options.folder, self.latest)
        with saved.offering_earlier(state):
            record = saved.record()
            faults = run_differences(record["identity"], self.run)
            of_data = self._data_differences(record)
            same = not self._refused(saved.where, faults + of_data)
            state = saved.state(state, record, fresh=not same)
            eval_state = EvaluationState(**record["standing"]) if same else EvaluationState()
            if not of_data:
                with readable(saved.where):
                    position = record["positions"][jax.process_index()]
                    iterator.set_state(position_of_json(position))
        self.policy.best = eval_state.best_step
        return state, eval_state, not of_data

    def _data_differences(self, record: Mapping[str, Any]) -> list[str]:
        count, now = len(record["positions"]), jax.process_count()
        if count != now:
            return [f"data: read by {count} processes in the checkpoint, by {now} here"]
        # None: an older format without identities, or an iterator of the caller without one
        saved = record.get("data")
        before = None if saved is None else position_of_json(saved[jax.process_index()])
        if before is None or self.data is None:
            missing = "the checkpoint" if before is None else "the argument data"
            logger.warning(
                "%s: rows, order and batch size are not compared, because %s has no data identity",
                self.options.folder,
                missing,
            )
            return []
        return differences({"data": before}, {"data": self.data})

    def _refused(self, where: str, faults: list[str]) -> bool:
        """Returns whether there are differences; raises unless all of them are allowed."""
        if not faults:
            return False
        impossible = any(map(is_of_state, faults))
        if self.options.resume != ELSEWHERE or impossible:
            hint = "" if impossible else f" (resume={ELSEWHERE!r} resumes from it nevertheless)"
            raise CheckpointMismatchError(
                f"{where}: the checkpoint of another run{hint}", faults
            ).advising(f"resume={ELSEWHERE!r}")
        for fault in faults:
            logger.warning("%s: resumed elsewhere: %s", where, fault)
        return True

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
            TargetError: a checkpoint cannot be written.
        """
        with written(self.options.folder):
            self.manager.wait_until_finished()


@contextlib.contextmanager
def opened(
    options: Checkpoints, trainer: "Trainer", data: object, iterator: Any
) -> Generator[Store]:
    """Opens a run's checkpoints, and on exit waits until they are written.

    Args:
        options: where they are stored, and whether to resume from them.
        trainer: the run's trainer.
        data: the run's batches.
        iterator: the iterator over the batches.

    Raises:
        InputError: the iterator cannot return to a saved position.
        TargetError: the folder holds checkpoints and `resume` is False, is in use by another run,
            or cannot be written.
    """
    if not hasattr(iterator, "get_state") or not hasattr(iterator, "set_state"):
        raise InputError(
            "checkpoints: the data cannot be resumed: expected a dataset of Grain, or an iterator "
            f"with get_state and set_state; found {shown(type(iterator))}"
        )
    policy = PreservationPolicy(options.keep)
    with one_run(options.folder), _manager(options.folder, policy) as manager:
        run, latest = identity(trainer, options.about), manager.latest_step()
        if latest is not None and not options.resume:
            raise TargetError(
                f"{options.folder}: holds checkpoints, the last of step {latest}; choose another "
                "folder, or pass resume=True"
            )
        yield Store(manager, policy, options, run, identity_of(data), latest)


def restore(
    trainer: "Trainer",
    folder: str | os.PathLike[str],
    step: int | None = None,
    *,
    about: Mapping[str, Any] | None = None,
) -> int:
    """Loads the state of a checkpoint into a trainer.

    Args:
        trainer: a trainer with the same model, objective and optimiser as the run's.
        folder: the folder of the run's checkpoints.
        step: the step of the checkpoint; None for the last.
        about: the run's `about`; None not to compare it.

    Returns:
        The step of the checkpoint.

    Raises:
        SourceError: there is no such checkpoint.
        CheckpointMismatchError: the checkpoint is another run's.
        WeightsFileError: the checkpoint cannot be read.
    """
    if not os.path.isdir(folder):
        raise SourceError(f"{folder}: no such folder")
    with _manager(folder, None) as manager:
        steps = sorted(manager.all_steps())
        if not steps or (step is not None and step not in steps):
            wanted = "any" if step is None else f"one of step {step}"
            raise SourceError(f"{folder}: expected checkpoints, {wanted}; found {steps}")
        saved = _StepCheckpoint(manager, folder, steps[-1] if step is None else step)
        with saved.offering_earlier(trainer.state):
            record = saved.record()
            before = record["identity"]
            ours = identity(trainer, before["about"] if about is None else about)
            if faults := run_differences(before, ours):
                where = f"{saved.where}: the checkpoint of another run"
                raise CheckpointMismatchError(where, faults)
            trainer.state = saved.state(trainer.state, record)
    return saved.step


@contextlib.contextmanager
def _manager(folder: Path, policy: PreservationPolicy | None) -> Generator[Any]:
    """Yields Orbax's manager of a folder's checkpoints; it is read-only without a policy."""
    from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

    if policy is None:
        options = CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
        options = CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
    with writing(folder):
        manager = CheckpointManager(os.path.abspath(folder), options=options)
    with without_tracebacks():
        try:
            yield manager
        except BaseException:
            with contextlib.suppress(Exception):  # it raises the error of a failed save again
                manager.close()
            raise
        manager.close()


def checkpoint_paths(folder: str) -> list[str]:
    """Returns the paths of checkpoints, complete or not, in a run's checkpoint folder."""
    return matching_files(folder, _STEPS)


@contextlib.contextmanager
def one_run(folder: Path) -> Generator[None]:
    """Creates a folder if it is missing, and locks it against a second run.

    The lock is on a file of its own, so that a model can be saved into the folder at the same time.

    Raises:
        TargetError: another run is using the folder, or it cannot be created.
    """
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
    busy = f"{folder}: another run is using it (it has locked {RUN_LOCK}); choose another folder"
    shared = jax.process_count() > 1  # by the processes of one run
    path = os.path.join(folder, RUN_LOCK)
    with contextlib.nullcontext() if shared else locked_path(path, busy):
        yield
