"""Batches of examples, on Grain: order, epochs, hosts, workers, padding.

The order is the same on all hosts, and host `i` of `n` makes the `i`-th of `n` contiguous parts of
every batch. The parts, concatenated in the order of the hosts, are the batch that a single host
would make, row for row, so that everything that depends on a row's position in the batch (such as
its dropout masks) and the position in the data are independent of the number of hosts.
"""

import dataclasses
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import numpy as np

from minibert.core import checks
from minibert.core.fields import COUNT, Rule, assign, check, field, or_null, whole
from minibert.errors import InputError, SourceError, shown
from minibert.train.fingerprint import description, digest

if TYPE_CHECKING:
    from grain import IterDataset

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Example]
Collation = Callable[[Sequence[Example]], dict[str, np.ndarray]]
COMPARED = ("batch_size", "shuffle", "drop_last", "workers")  # between runs
AHEAD = 4  # batches that are made before they are requested
EPOCHS = dataclasses.replace(or_null(COUNT), expected=COUNT.expected)  # None: without end
FLAG = Rule("True or False", lambda value: isinstance(value, bool | np.bool_), bool)


class Examples(Protocol):
    """A sequence, or what has as much of one as batches are made of."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collate:
    """Makes a batch of examples, with sequences padded on the right.

    Attributes:
        lengths: the lengths to pad to, ascending; a batch gets the first that is long enough.
        pads: the padding values of sequences, by entry; all other entries are of one shape.
    """

    lengths: tuple[int, ...]
    pads: Mapping[str, int]

    def __call__(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
        """Returns the batch, each entry `(batch, …)`."""
        columns = _columns(examples)
        padded = [name for name in columns if name in self.pads]
        longest = max((len(row) for name in padded for row in columns[name]), default=0)
        length = next(size for size in self.lengths if size >= longest)
        for name in padded:
            columns[name] = [_padded(row, length, self.pads[name]) for row in columns[name]]
        return {name: np.stack(rows) for name, rows in columns.items()}


def stacked(examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Returns a batch of examples whose entries are of one shape."""
    return {name: np.stack(rows) for name, rows in _columns(examples).items()}


def _columns(examples: Sequence[Example]) -> dict[str, list[np.ndarray]]:
    return {
        name: [np.asarray(checks.unmasked(f"examples: {name}", row[name])) for row in examples]
        for name in examples[0]
    }


def _padded(row: np.ndarray, length: int, pad: int) -> np.ndarray:
    padded = np.full(length, pad, row.dtype)
    padded[: len(row)] = row
    return padded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """How batches are made: arguments of `batches`, checked before any slow operation.

    Raises:
        InputError: an argument is wrong.
    """

    batch_size: Any = field(COUNT)
    shuffle: Any = field(FLAG, False)
    drop_last: Any = field(FLAG, False)
    epochs: Any = field(EPOCHS, 1)
    seed: Any = field(whole(0, 2**32 - 1), 0)
    workers: Any = field(whole(0), 0)
    share: Any = None

    def __post_init__(self) -> None:
        share = self.share
        if share is None:
            import jax  # its backend starts here

            share = (jax.process_index(), jax.process_count())
        if not isinstance(share, tuple | list) or len(share) != 2:
            raise InputError(f"share: expected (index, count), found {shown(share)}")
        hosts = checks.whole("share: count", share[1], 1)
        index = checks.whole("share: index", share[0], 0, hosts - 1)
        assign(self, {"share": (index, hosts)})
        check(self, InputError)
        if self.batch_size % hosts:
            raise InputError(
                f"batch_size: {self.batch_size} rows cannot be shared by {hosts} hosts equally"
            )


@dataclasses.dataclass(frozen=True)
class CheckedFunction:
    """A function that must return a mapping of arrays.

    Grain takes a `StopIteration` for the end of the data, and skips None. Here the first is a
    `RuntimeError`, as in a generator (PEP 479), and the second an `InputError`.
    """

    function: Callable[..., Any]
    name: str

    def __call__(self, *args: object) -> Any:
        """Calls the function with `args`."""
        try:
            found = self.function(*args)
        except StopIteration as reason:
            raise RuntimeError(f"{self.name}: raised StopIteration") from reason
        if not isinstance(found, Mapping):
            raise InputError(f"{self.name}: expected arrays by name, found {shown(found)}")
        return found


@dataclasses.dataclass(frozen=True)
class CheckedExamples:
    """Examples, each checked when it is read."""

    source: Any

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return CheckedFunction(self.source.__getitem__, f"example {index}")(index)


class BatchOptions(TypedDict, total=False):
    """The arguments of `batches` that say in which order examples come, and where."""

    shuffle: bool
    drop_last: bool
    epochs: int | None
    seed: int
    workers: int
    share: tuple[int, int] | None


def batches(
    examples: Examples,
    *,
    batch_size: int,
    shuffle: bool = False,
    drop_last: bool = False,
    epochs: int | None = 1,
    seed: int = 0,
    workers: int = 0,
    share: tuple[int, int] | None = None,
    transforms: Sequence[Transform] = (),
    collate: Collation = stacked,
    about: Mapping[str, Any] | None = None,
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns batches of examples, as Grain's `IterDataset`.

    Its iterators have `get_state()`, which JSON can represent, and `set_state()`: the batches
    continue exactly where they were if seed, batch size, hosts and workers are the same.

    Args:
        examples: a sequence of dicts of arrays; anything with a length and integer indices.
        batch_size: rows of a batch, on all hosts together.
        shuffle: whether to draw a new order in every epoch.
        drop_last: whether to drop an epoch's last batch if it is smaller than the others.
        epochs: the number of epochs; None to repeat without end.
        seed: of the order and of `transforms`.
        workers: the number of processes that make batches; 0 for a thread of this one. They exit
            when this process does, even if it is killed.
        share: (index, count): which of `count` contiguous parts of every batch this host makes; by
            default `jax.process_index()` and `jax.process_count()`. With a `Sharding`, pass its
            `share`: hosts that share tensors make the same rows.
        transforms: applied to every example in every epoch, with random numbers that depend only
            on the seed, the epoch and the example, not on the order, hosts or workers.
        collate: from some examples to a batch.
        about: what else a run must have in common with one that it resumes, as JSON can represent
            it. (The arguments above are compared, except `epochs` and a `seed` that is not used,
            and the examples: all of a list, an array or a dataclass; of another sequence 4,096,
            evenly spaced. Functions that are not dataclasses are compared by name.)

    Raises:
        InputError: an argument is wrong, or hosts would get parts of different sizes.
        SourceError: Grain is not installed.
    """
    options = Batching(
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        epochs=epochs,
        seed=seed,
        workers=workers,
        share=share,
    )
    return batched(examples, options, collate, transforms=transforms, about=about or {})


def batched(
    examples: Examples,
    options: Batching,
    collate: Collation,
    *,
    transforms: Sequence[Transform] = (),
    about: Mapping[str, Any],
) -> "IterDataset[dict[str, np.ndarray]]":
    """Returns batches of examples, with the method `identity`; see `batches`."""
    try:
        import grain
        import grain.experimental
    except ImportError:
        raise SourceError(
            "reading training data needs grain: pip install 'minibert-jax[train]'"
        ) from None
    transforms = list(transforms)
    count = _epoch_size(len(examples), options, collate)
    dataset = grain.MapDataset.source(CheckedExamples(examples)).seed(options.seed)
    for transform in transforms:
        dataset = dataset.random_map(CheckedFunction(transform, type(transform).__name__))
    if options.shuffle:
        dataset = dataset.shuffle()
    batch_fn = CheckedFunction(collate, "collate")
    parts = list(_parts_of_batches(dataset, count, options, batch_fn))
    dataset = grain.MapDataset.concatenate(parts).repeat(options.epochs)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD))
    dataset = _in_processes(grain, dataset, options.workers)

    @functools.cache  # the examples are read once, when it is first needed
    def identity() -> dict[str, Any]:
        return {
            **about,
            "examples": len(examples),
            "contents": digest(examples),
            **{name: getattr(options, name) for name in COMPARED},
            **({"seed": options.seed} if options.shuffle or transforms else {}),
            "processes": options.share[1],
            "transforms": [description(one) for one in transforms],
            "collate": description(collate),
        }

    dataset.identity = identity
    return dataset


def _parts_of_batches(
    dataset: Any, count: int, options: Batching, batch_fn: CheckedFunction
) -> Iterator[Any]:
    """Yields a host's contiguous part of every batch of an epoch's first `count` examples."""
    index, hosts = options.share
    full = count - count % options.batch_size
    if full:
        yield dataset[:full].batch(options.batch_size // hosts, batch_fn=batch_fn)[index::hosts]
    if rows := (count - full) // hosts:  # of the last batch, which is smaller than the others
        first = full + index * rows
        yield dataset[first : first + rows].batch(rows, batch_fn=batch_fn)


def _epoch_size(count: int, options: Batching, collate: Collation) -> int:
    """Returns the number of examples of an epoch, of which all hosts get equal parts."""
    size, hosts = options.batch_size, options.share[1]
    if not count:
        raise InputError("examples: expected at least one, found none")
    if options.drop_last:
        if count < size:
            raise InputError(
                f"batch_size: {size} is more than the {count} examples, and drop_last drops "
                "smaller batches"
            )
        count -= count % size
    elif count % hosts:
        raise InputError(
            f"drop_last: {count} examples cannot be shared by {hosts} hosts equally; expected True"
        )
    if hosts > 1 and isinstance(collate, Collate) and len(collate.lengths) > 1:
        raise InputError(
            f"pad_to: expected one length for {hosts} hosts, whose parts of a batch would differ "
            f"in length; found {shown(collate.lengths)}"
        )
    return count


def _in_processes(grain: Any, batched: Any, workers: int) -> Any:
    """Returns batches that are made by `workers` processes, if there are any."""
    if not workers:
        return batched
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl's flags
    # batches go through pipes: shared memory would be left behind by a process that is killed
    options = grain.experimental.DatasetOptions(min_shm_size=1 << 62)
    batched = grain.experimental.WithOptionsIterDataset(batched, options)
    return batched.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD),
        worker_init_fn=_exit_with_parent,
    )


def _exit_with_parent(index: int, count: int) -> None:
    """Ends a worker when its parent ends; Grain does so only if the parent can notify it."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is a child process"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="exit-with-parent", daemon=True).start()
