"""Checkpoints of a run, by Orbax: asynchronous, atomic, the last few and the best.

A checkpoint holds three things: `state` (the `TrainState`: step, parameters and optimiser by path),
`data` (where every process's data iterator is) and `run` (what the run is, and how its evaluations
went). A run that goes on from one computes what it would have computed undisturbed.
"""

import contextlib
import dataclasses
import os
from collections.abc import Generator, Sequence
from typing import Any

import jax

from minibert.checks import whole
from minibert.errors import (
    CheckpointMismatchError,
    InputError,
    SourceError,
    TargetError,
    shown,
)
from minibert.train.checkpoint_state import (
    as_dict,
    as_json,
    check_finite,
    check_same,
    identity,
    position_of_json,
    positions_of_all,
    readable,
    reported,
)
from minibert.train.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Where a run's checkpoints are, and when there is one.

    There is also one at the end, at an interruption, and whenever an evaluation was the best.

    Attributes:
        folder: where; it may be missing or empty, or hold the checkpoints of this run (`resume`).
        every: how many steps from one to the next.
        keep: how many are kept: the last ones; and the best.
        resume: whether to go on from the last, if there is one. Else there must be none.
        about: what else a run must have in common with the one it goes on from, as JSON holds it:
            digests of its data, for example.

    Raises:
        InputError: an attribute is wrong.
    """

    folder: Any
    every: Any = 1000
    keep: Any = 3
    resume: bool = False
    about: Any = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike):
            raise InputError(f"folder: expected a path, found {shown(self.folder)}")
        whole("every", self.every, 1)
        whole("keep", self.keep, 1)
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


class Store:
    """A run's open checkpoints; made by `opened`."""

    def __init__(self, manager: Any, kept: "Kept", options: Checkpoints, identity: dict[str, Any]):
        self._manager, self._kept, self._options = manager, kept, options
        self._identity = identity
        self.latest: int | None = manager.latest_step()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is planned for this step."""
        return step % self._options.every == 0

    def save(self, state: TrainState, step: int, iterator: Any, standing: Standing) -> None:
        """Begins to write a checkpoint, unless there is one of this step.

        Raises:
            NotFiniteError: the state holds NaN or infinity.
            TargetError: this one, or the last, cannot be written.
        """
        if step == self.latest:
            return
        check_finite(state, step)
        from orbax.checkpoint import args

        self._kept.best = standing.best_step
        run = {"identity": self._identity, "standing": dataclasses.asdict(standing)}
        with reported(self._options.folder):
            self._manager.save(
                step,
                args=args.Composite(
                    state=args.StandardSave(as_dict(state)),
                    data=args.JsonSave({"positions": positions_of_all(iterator.get_state())}),
                    run=args.JsonSave(run),
                ),
                force=True,
            )
        self.latest = step

    def restore(self, state: TrainState, iterator: Any) -> tuple[TrainState, Standing]:
        """The last checkpoint's state and standing; the iterator is set to where it was.

        Raises:
            CheckpointMismatchError: the checkpoint is another run's.
            WeightsFileError: it cannot be read.
        """
        from orbax.checkpoint import args

        assert self.latest is not None
        step, where = self.latest, f"{self._options.folder}/{self.latest}"
        with readable(where):
            read = args.Composite(run=args.JsonRestore(), data=args.JsonRestore())
            found = self._manager.restore(step, args=read)
            known, positions = found.run["identity"], found.data["positions"]
            standing = Standing(**found.run["standing"])
        check_same(where, known, self._identity)
        if len(positions) != jax.process_count():
            raise CheckpointMismatchError(
                where, [f"its data was read by {len(positions)} processes, not as many as now"]
            )
        state = _restored(self._manager, step, state, where)
        with readable(where):
            iterator.set_state(position_of_json(positions[jax.process_index()]))
        self._kept.best = standing.best_step
        return state, standing

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
            TargetError: it cannot be written.
        """
        with reported(self._options.folder):
            self._manager.wait_until_finished()


class Kept:
    """Which checkpoints stay, the last ones and the best; Orbax's preservation policy."""

    def __init__(self, last: int):
        self.last, self.best = last, None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether each of the checkpoints, in their order, stays."""
        first = len(checkpoints) - self.last
        return [n >= first or one.step == self.best for n, one in enumerate(checkpoints)]


@contextlib.contextmanager
def opened(options: Checkpoints, trainer: Any, iterator: Any) -> Generator[Store]:
    """Opens a run's checkpoints; what is being written is finished in the end.

    Raises:
        InputError: the iterator cannot be set to where it was.
        TargetError: there are checkpoints, and this is no `resume`; or the folder is not ours.
    """
    if not hasattr(iterator, "get_state") or not hasattr(iterator, "set_state"):
        raise InputError(
            "checkpoints: the data cannot be taken up where it was left: expected a dataset of "
            f"Grain, or an iterator with get_state and set_state; found {shown(type(iterator))}"
        )
    kept = Kept(options.keep)
    with one_run(options.folder), _manager(options.folder, kept) as manager:
        store = Store(manager, kept, options, identity(trainer, options.about))
        if store.latest is not None and not options.resume:
            raise TargetError(
                f"{options.folder}: holds checkpoints, the last of step {store.latest}; choose "
                "another folder, or resume"
            )
        yield store


def restore(
    trainer: Any, folder: str | os.PathLike[str], step: int | None = None, *, about: Any = None
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
    from orbax.checkpoint import args

    if not os.path.isdir(folder):
        raise SourceError(f"{folder}: no such folder")
    with _manager(folder, None) as manager:
        steps = sorted(manager.all_steps())
        if not steps or (step is not None and step not in steps):
            wanted = "any" if step is None else f"one of step {step}"
            raise SourceError(f"{folder}: expected checkpoints, {wanted}; found {steps}")
        chosen = steps[-1] if step is None else step
        where = f"{folder}/{chosen}"
        with readable(where):
            run = manager.restore(chosen, args=args.Composite(run=args.JsonRestore())).run
            known = run["identity"]
            known_about = known["about"]
        check_same(where, known, identity(trainer, known_about if about is None else about))
        trainer.state = _restored(manager, chosen, trainer.state, where)
    return chosen


def _restored(manager: Any, step: int, state: TrainState, where: str) -> TrainState:
    from orbax.checkpoint import args, utils

    shapes = jax.tree.map(utils.to_shape_dtype_struct, as_dict(state))  # and their shardings
    with readable(where):
        read = manager.restore(step, args=args.Composite(state=args.StandardRestore(shapes))).state
    structure = jax.tree.structure(state.opt_state)
    own = [read["opt_state"][path] for path in as_dict(state)["opt_state"]]
    return TrainState(read["step"], read["params"], jax.tree.unflatten(structure, own))


@contextlib.contextmanager
def _manager(folder: Any, kept: Kept | None) -> Generator[Any]:
    """Orbax's manager of a folder's checkpoints; without `kept`, to read only."""
    from orbax.checkpoint import CheckpointManager, CheckpointManagerOptions

    if kept is None:
        options = CheckpointManagerOptions(read_only=True, create=False, save_interval_steps=0)
    else:
        options = CheckpointManagerOptions(preservation_policy=kept, cleanup_tmp_directories=True)
    with reported(folder):
        manager = CheckpointManager(os.path.abspath(folder), options=options)
    try:
        yield manager
    finally:
        manager.close()


@contextlib.contextmanager
def one_run(folder: Any) -> Generator[None]:
    """Makes a folder if it is missing, and keeps a second run out of it.

    Raises:
        TargetError: another run is at work on it, or it cannot be made.
    """
    import fcntl

    with reported(folder):
        os.makedirs(folder, exist_ok=True)
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if jax.process_count() == 1:  # processes of one run share the folder
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TargetError(f"{folder}: another run is at work on it") from None
        yield
    finally:
        os.close(file)
