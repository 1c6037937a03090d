"""Checkpoints of a run, by Orbax: asynchronous, atomic, the last few and the best.

A checkpoint holds three things: `state` (the `TrainState`: step, parameters and optimiser by path),
`data` (where every process's data iterator is) and `run` (what the run is, how its evaluations
went, and checksums of all that is saved). A run that resumes from one computes what it would have
computed undisturbed.
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
RUN_LOCK = ".minibert-run"  # the file in a run's folder that is locked while the run is at work
# The folders of steps, and those that Orbax was writing when the process was killed.
_STEPS = re.compile(r"\d+(\.orbax-checkpoint-tmp[^/]*)?/")
PATH = Rule("a path", lambda v: isinstance(v, str | os.PathLike))
RESUME = Rule(f"True, False or {ELSEWHERE!r}", lambda v: isinstance(v, bool) or v == ELSEWHERE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run's checkpoints are, and when there is one.

    There is also one at the end, at an interruption, and whenever an evaluation was the best.

    With `resume=True` a run goes on exactly where the last checkpoint was made, and has to be the
    same run. These are compared:

    - the objective and its settings, `accumulate`, `seed`, LoRA, the dtypes that are computed in,
      and the model's config;
    - the paths, shapes and dtypes of all arrays, and the values of those that are not trained;
    - the optimiser, by the programs of its `init` and `update`, in which all hyperparameters and
      the schedule are constants (where jax and optax have the versions of before; an optimiser that
      needs more than gradients, such as the loss, by its arrays only);
    - the data: the examples and their order, the batch size, seed, transformations and tokenizer,
      as `minibert.train.data.batches` says. Of an iterator of your own they are compared only if it
      has a method `identity` that returns a mapping; else a warning says that they are not.

    Callbacks, evaluations, `remat` and shardings are free. So is the number of steps: to extend a
    run, call `fit` with more of them. With a constant schedule nothing else changes; a schedule
    that ends at the last step becomes another one, which makes another run.

    With `resume="elsewhere"` differences are allowed and logged as warnings, but for those in
    paths, shapes or dtypes. Parameters, moments and the number of steps done are the checkpoint's.
    Hyperparameters are those of the new optimiser, and schedules go on at the step reached. Data
    that are known to be other data begin at their first batch. Evaluations of before do not count
    for `best_step` and `patience`.

    Checksums of all arrays and of the rest are saved and compared: a damaged checkpoint is an error
    that names an earlier one which is whole. Nothing is removed, and no other is taken unasked.

    Attributes:
        folder: where; it may be missing or empty, or hold the checkpoints of this run (`resume`).
        every: how many steps from one to the next.
        keep: how many are kept: the last ones; and the best.
        resume: True to go on from the last checkpoint, if there is one; `"elsewhere"` to do so with
            other data or settings. With False there must be none.
        about: what else a run must have in common with the one it resumes, as JSON can hold it.

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
class Standing:
    """How a run's evaluations went so far.

    Attributes:
        best_step: the step of the best one; None before the first.
        best: its value.
        since: how many there were since.
        evaluated: the step of the last one.
    """

    best_step: int | None = None
    best: float | None = None
    since: int = 0
    evaluated: int | None = None


@dataclasses.dataclass(frozen=True)
class _Saved:
    """A checkpoint in a folder, by the step that it is of."""

    manager: Any
    folder: Any
    step: int

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.folder}/{self.step}"

    def record(self) -> dict[str, Any]:
        """Everything in it but its arrays.

        Raises:
            WeightsFileError: it is damaged.
        """
        from orbax.checkpoint import args

        with readable(self.where):
            read = args.Composite(run=args.JsonRestore(), data=args.JsonRestore())
            found = self.manager.restore(self.step, args=read)
            record = {**found.run, "positions": found.data["positions"]}
            if "seal" in record and seal(record) != record["seal"]:
                raise damaged(self.where, "data/ or run/ is not as it was saved")
            for part in ("identity", "standing"):
                record[part].keys()
        return record

    def state(self, like: TrainState, record: Mapping[str, Any], fresh: bool = False) -> TrainState:
        """Its state, compared with its checksums.

        Args:
            like: one of the same paths, shapes, dtypes and shardings.
            record: the checkpoint's.
            fresh: whether hyperparameters that stand in the optimiser's state are those of `like`.

        Raises:
            WeightsFileError: it is damaged.
        """
        from orbax.checkpoint import args, utils

        plain = as_dict(like)
        shapes = jax.tree.map(utils.to_shape_dtype_struct, plain)  # and their shardings
        with readable(self.where):
            wanted = args.Composite(state=args.StandardRestore(shapes))
            read = self.manager.restore(self.step, args=wanted).state
        found = from_dict(read, like)
        if "checksums" not in record:
            logger.warning("%s: has no checksums, so damage to its numbers is not seen", self.where)
        else:
            sums, saved = checksums(flat(found)), record["checksums"]
            if wrong := sorted(path for path in sums if sums[path] != saved.get(path)):
                more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
                why = f"{wrong[0]}{more}: the numbers are not those that were saved"
                raise damaged(self.where, why)
        if fresh:
            ours = plain["opt_state"].items()
            hyperparams = {path: leaf for path, leaf in ours if ".hyperparams[" in path}
            found = from_dict({**read, "opt_state": {**read["opt_state"], **hyperparams}}, like)
        return found

    @contextlib.contextmanager
    def offering_earlier(self, like: TrainState) -> Generator[None]:
        """Adds to the error of a damaged one which earlier one is whole; none is removed."""
        try:
            yield
        except WeightsFileError as reason:
            what = f"no earlier one in {self.folder} is whole"
            for step in sorted(
                (s for s in self.manager.all_steps() if s < self.step), reverse=True
            ):
                earlier = dataclasses.replace(self, step=step)
                with contextlib.suppress(WeightsFileError):
                    earlier.state(like, earlier.record())
                    what = (
                        f"the one of step {step} is whole: move {self.where} away to resume there"
                    )
                    break
            raise WeightsFileError(f"{reason}; {what}") from reason


class PreservationPolicy:
    """Keeps the last checkpoints and the best; one of Orbax's preservation policies."""

    last: int

    def __init__(self, last: int):
        self.last, self.best = last, None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns for each of the checkpoints, in their order, whether it is kept."""
        first = len(checkpoints) - self.last
        return [n >= first or one.step == self.best for n, one in enumerate(checkpoints)]


@dataclasses.dataclass
class Store:
    """A run's open checkpoints; made by `opened`.

    Attributes:
        manager: Orbax's.
        policy: the manager's, which is told the best step.
        options: where they are, and when there is one.
        run: the run's identity.
        data: its data's identity; None if they have none.
        latest: the step of the last one.
    """

    manager: Any
    policy: PreservationPolicy
    options: Checkpoints
    run: dict[str, Any]
    data: dict[str, Any] | None
    latest: int | None

    def save(self, state: TrainState, step: int, iterator: Any, standing: Standing) -> None:
        """Begins to write a checkpoint, unless there is one of this step.

        Raises:
            NotFiniteError: the state holds NaN or infinity.
            TargetError: this one, or the last, cannot be written.
        """
        if step == self.latest:
            return
        from orbax.checkpoint import args

        self.policy.best = standing.best_step
        record = {
            "identity": self.run,
            "standing": dataclasses.asdict(standing),
            "checksums": checksums(flat(state), step=step),
            "data": of_all_processes(self.data),
        }
        positions = {"positions": of_all_processes(iterator.get_state())}
        record["seal"] = seal(record | positions)
        with writing(self.options.folder):
            self.manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(as_dict(state)),
                    data=args.JsonSave(positions),
                    run=args.JsonSave(record),
                ),
                force=True,
            )
        self.latest = step

    def restore(self, state: TrainState, iterator: Any) -> tuple[TrainState, Standing, bool]:
        """Restores the last checkpoint; the iterator is set to where it was.

        Returns:
            The state, the standing, and whether the iterator was set; it is not if the data are
            other ones (`resume="elsewhere"`).

        Raises:
            CheckpointMismatchError: the checkpoint is another run's.
            WeightsFileError: it is damaged.
        """
        assert self.latest is not None
        saved = _Saved(self.manager, self.options.folder, self.latest)
        with saved.offering_earlier(state):
            record = saved.record()
            faults = run_differences(record["identity"], self.run)
            of_data = self._data_differences(record)
            same = not self._refused(saved.where, faults + of_data)
            state = saved.state(state, record, fresh=not same)
            standing = Standing(**record["standing"]) if same else Standing()
            if not of_data:
                with readable(saved.where):
                    position = record["positions"][jax.process_index()]
                    iterator.set_state(position_of_json(position))
        self.policy.best = standing.best_step
        return state, standing, not of_data

    def _data_differences(self, record: Mapping[str, Any]) -> list[str]:
        count, now = len(record["positions"]), jax.process_count()
        if count != now:
            return [f"data: read by {count} processes in the checkpoint, by {now} here"]
        # a format that had no identities, an iterator of the caller's, or the data's own
        saved = record.get("data")
        before = None if saved is None else position_of_json(saved[jax.process_index()])
        if before is None or self.data is None:
            missing = "the checkpoint" if before is None else "the data given"
            logger.warning(
                "%s: rows, order and batch size are not compared: %s has no identity of the data",
                self.options.folder,
                missing,
            )
            return []
        return differences({"data": before}, {"data": self.data})

    def _refused(self, where: str, faults: list[str]) -> bool:
        """Whether there are differences, all of which are allowed."""
        if not faults:
            return False
        impossible = any(map(is_of_state, faults))
        if self.options.resume != ELSEWHERE or impossible:
            hint = "" if impossible else f" (resume={ELSEWHERE!r} continues from it all the same)"
            raise CheckpointMismatchError(
                f"{where}: the checkpoint of another run{hint}", faults
            ).advising(f"resume={ELSEWHERE!r}")
        for fault in faults:
            logger.warning("%s: resumed elsewhere: %s", where, fault)
        return True

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
            TargetError: it cannot be written.
        """
        with writing(self.options.folder):
            self.manager.wait_until_finished()


@contextlib.contextmanager
def opened(
    options: Checkpoints, trainer: "Trainer", data: object, iterator: Any
) -> Generator[Store]:
    """Opens a run's checkpoints; what is being written is finished in the end.

    Args:
        options: where they are.
        trainer: the run's trainer.
        data: the run's batches.
        iterator: over them.

    Raises:
        InputError: the iterator cannot be set to where it was.
        TargetError: there are checkpoints, and this is no `resume`; or the folder is not ours.
    """
    if not hasattr(iterator, "get_state") or not hasattr(iterator, "set_state"):
        raise InputError(
            "checkpoints: the data cannot be taken up where it was left: expected a dataset of "
            f"Grain, or an iterator with get_state and set_state; found {shown(type(iterator))}"
        )
    policy = PreservationPolicy(options.keep)
    with one_run(options.folder), _manager(options.folder, policy) as manager:
        run, latest = identity(trainer, options.about), manager.latest_step()
        if latest is not None and not options.resume:
            raise TargetError(
                f"{options.folder}: holds checkpoints, the last of step {latest}; choose another "
                "folder, or resume"
            )
        yield Store(manager, policy, options, run, identity_of(data), latest)


def restore(
    trainer: "Trainer",
    folder: str | os.PathLike[str],
    step: int | None = None,
    *,
    about: Mapping[str, Any] | None = None,
) -> int:
    """Puts a checkpoint's state into a trainer.

    Args:
        trainer: made as the run's was.
        folder: of the run's checkpoints.
        step: which; None for the last.
        about: the run's `about`; None not to compare it.

    Returns:
        The step.

    Raises:
        SourceError: there is no such checkpoint.
        CheckpointMismatchError: it is another run's.
        WeightsFileError: it cannot be read.
    """
    if not os.path.isdir(folder):
        raise SourceError(f"{folder}: no such folder")
    with _manager(folder, None) as manager:
        steps = sorted(manager.all_steps())
        if not steps or (step is not None and step not in steps):
            wanted = "any" if step is None else f"one of step {step}"
            raise SourceError(f"{folder}: expected checkpoints, {wanted}; found {steps}")
        saved = _Saved(manager, folder, steps[-1] if step is None else step)
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
    """Yields Orbax's manager of a folder's checkpoints, which is read-only without a policy."""
    from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

    if policy is None:
        options = CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
        options = CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
    with writing(folder):
        manager = CheckpointManager(os.path.abspath(folder), options=options)
    with contextlib.closing(manager):
        yield manager


def checkpoint_paths(folder: str) -> list[str]:
    """The paths in a run's folder of checkpoints that are checkpoints, finished or not."""
    return matching_files(folder, _STEPS)


@contextlib.contextmanager
def one_run(folder: Path) -> Generator[None]:
    """Makes a folder if it is missing, and keeps a second run out of it.

    The lock is on a file of its own, so that a model can be saved into the folder meanwhile.

    Raises:
        TargetError: another run is at work on it, or it cannot be made.
    """
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
    busy = f"{folder}: another run is at work on it (it has locked {RUN_LOCK}); choose another"
    shared = jax.process_count() > 1  # by the processes of one run
    path = os.path.join(folder, RUN_LOCK)
    with contextlib.nullcontext() if shared else locked_path(path, busy):
        yield
