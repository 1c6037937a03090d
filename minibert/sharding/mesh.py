"""Where a model's arrays live on many devices: a mesh, and rules from paths to partition specs.

Three ways to share the work, and any mix of them; each has axes of the mesh:

    data      rows of a batch are split, parameters are copied
    fsdp      rows of a batch are split, and so is every parameter: a layer's are put together where
              it runs, and their gradients summed into parts again (ZeRO-3, arXiv:1910.02054)
    tensor    heads and inner features are split (Megatron-LM, arXiv:1909.08053)

A model's class says which dimensions are heads and features (`dimensions`). What the tensor axes
do not split by them, they keep split as the fsdp axes do: a parameter is *stored* in as many parts
as its shape allows, and *used* whole, or in the parts that its rule names. JAX's partitioner does
the rest (`placement.py` says to it where); there is no engine here.
"""

import dataclasses
import fnmatch
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from minibert.core.checks import whole
from minibert.errors import InputError, shown
from minibert.nn.tree import matching_paths, parameters

HEADS, FEATURES = "heads", "features"  # what a rule calls a dimension that the tensor axes split

Rule = tuple[str | int | None, ...]
Axes = tuple[str, ...]


def check_rule(pattern: object, rule: object) -> None:
    """Checks one rule by itself.

    Raises:
        InputError: it is none.
    """
    parts = list(rule) if isinstance(rule, tuple | list) else [0]
    numbers = sum(type(part) is int and part > 0 for part in parts)
    split = sum(part in (HEADS, FEATURES) for part in parts)
    known = numbers + split + parts.count(None) == len(parts)
    if not known or max(numbers, split) > 1 or type(parts[-1]) is int:
        raise InputError(
            f"rules: {shown(pattern)}: expected {HEADS!r}, {FEATURES!r} or None for each "
            "dimension, one of which may be split, and before one of them a number of parts; "
            f"found {shown(rule)}"
        )


def folded(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape, with a dimension that a rule cuts in parts as two: the parts, and their size.

    None if the rule is not for that shape.
    """
    for at, parts in enumerate(rule):
        if isinstance(parts, int):
            if at >= len(shape) or shape[at] % parts:
                return None
            shape = (*shape[:at], parts, shape[at] // parts, *shape[at + 1 :])
    return shape if len(rule) == len(shape) else None


@functools.lru_cache(maxsize=4096)
def spread(shape: tuple[int, ...], axes: tuple[tuple[str, int], ...]) -> tuple[Axes, ...]:
    """Gives axes to one or two dimensions so that the product of those given is the largest.

    Of equal products, the one on fewer dimensions; then the one that splits the longest.
    """
    sizes, numbers = dict(axes), range(len(shape))
    by_merit = {}
    for places in itertools.product([None, *numbers], repeat=len(axes)):
        given = tuple(
            tuple(axis for axis, place in zip(sizes, places, strict=True) if place == number)
            for number in numbers
        )
        parts = [math.prod(sizes[axis] for axis in some) for some in given]
        touched = [n for n, some in zip(shape, given, strict=True) if some]
        divides = all(n % count == 0 for n, count in zip(shape, parts, strict=True))
        if len(touched) <= 2 and divides:
            merit = math.prod(parts), -len(touched), max(touched, default=0)
            by_merit.setdefault(merit, given)
    return by_merit[max(by_merit)]


class Partial(NamedTuple):
    """A parameter that is stored in fewer parts than there are devices to hold them."""

    path: str
    shape: tuple[int, ...]
    parts: int
    extra_bytes: int  # what a device holds of it beyond an even share


@dataclasses.dataclass(frozen=True, eq=False)
class Sharding:
    """A mesh, what its axes are for, and rules.

    Attributes:
        mesh: the devices; or a `jax.sharding.AbstractMesh`, to plan without any.
        data: the axes that split batches alone.
        fsdp: the axes that split batches and parameters.
        tensor: the axes that split heads and features.
        rules: by pattern of a parameter's path (`*` stands for anything; the first that matches
            counts), what its dimensions are: "heads" or "features", which the tensor axes split;
            None; or a number of parts, each of which the following dimension is split in: where
            (None, 3, "heads") holds, training keeps (in, 3·hidden) as (in, 3, hidden).
        heads: how many heads the model has.

    Raises:
        InputError: an axis is not the mesh's, or has no purpose, or two; or a rule is none.
    """

    mesh: Mesh | AbstractMesh
    data: Axes = ()
    fsdp: Axes = ()
    tensor: Axes = ()
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    heads: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh | AbstractMesh):
            raise InputError(f"mesh: expected a jax.sharding.Mesh, found {shown(self.mesh)}")
        names = tuple(self.mesh.axis_names)
        if sorted([*self.data, *self.fsdp, *self.tensor]) != sorted(names):
            raise InputError(
                f"mesh: expected each of its axes {names} in one of data, fsdp and tensor; "
                f"found data={self.data}, fsdp={self.fsdp}, tensor={self.tensor}"
            )
        if not isinstance(self.rules, Mapping):
            raise InputError(f"rules: expected dimensions by pattern, found {shown(self.rules)}")
        for pattern, rule in self.rules.items():
            check_rule(pattern, rule)
        # The partitioner's: no array of ours says its own.
        mesh = self.mesh.update(axis_types=(AxisType.Auto,) * len(names))
        object.__setattr__(self, "mesh", mesh)

    @classmethod
    def of_devices(
        cls,
        *,
        data: int | None = None,
        fsdp: int | Sequence[int] = 1,
        tensor: int = 1,
        devices: Sequence[Any] | None = None,
        rules: Mapping[str, Rule] | None = None,
    ) -> "Sharding":
        """A sharding over all devices.

        Args:
            data: how many parts of a batch have their own copy of the parameters; by default as
                many as there are devices left.
            fsdp: in how many parts they are stored. Several numbers make as many axes of the mesh,
                which can split different dimensions of one parameter: 1,600 × 6,400 numbers can be
                split by 256 as (64, 4) or (16, 16), not as one axis.
            tensor: in how many parts heads and features are taken.
            devices: which; all that JAX has, of all processes, by default.
            rules: beside the model's own.

        Raises:
            InputError: the sizes do not multiply to the number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        parts = tuple(fsdp) if isinstance(fsdp, tuple | list) else (fsdp,)
        sizes = [whole("fsdp", size, 1) for size in parts] + [whole("tensor", tensor, 1)]
        count = math.prod(sizes)
        if not devices or len(devices) % count:
            raise InputError(
                f"fsdp × tensor: {' × '.join(map(str, sizes))} = {count}: expected a divisor of "
                f"the number of devices, {len(devices)}"
            )
        left = len(devices) // count
        if data is not None and whole("data", data, 1) != left:
            raise InputError(f"data: expected {left}, the devices that are left; found {data}")
        axes = tuple(f"fsdp{number or ''}" for number in range(len(parts)))
        grid = mesh_utils.create_device_mesh(
            (left, *sizes), devices, allow_split_physical_axes=True
        )
        mesh = Mesh(grid, ("data", *axes, "tensor"))
        return cls(mesh, data=("data",), fsdp=axes, tensor=("tensor",), rules=rules or {})

    def for_model(self, model: Any) -> "Sharding":
        """This sharding with the rules of a model's class; one's own come first.

        Raises:
            InputError: a rule of one's own matches nothing, or not its parameters' dimensions.
        """
        arrays = parameters(model)
        for pattern, rule in self.rules.items():
            for path in matching_paths("rules", [pattern], arrays):
                shape = arrays[path].shape
                if folded(rule, shape) is None:
                    raise InputError(
                        f"rules: {shown(pattern)}: {shown(rule)} is not for {path}, of shape "
                        f"{shape}"
                    )
        found = dataclasses.replace(
            self,
            # the first that matches counts: one's own come first, and replace the model's
            rules={**self.rules, **model.dimensions, **self.rules},
            heads=model.config.num_attention_heads,
        )
        kept = {path: found.shape(path, array.shape) for path, array in arrays.items()}
        for path, ours in kept.items():
            layer, _, name = path.rpartition(".")
            theirs = kept.get(f"{layer}.bias")
            if name == "kernel" and theirs is not None and ours[1:] != theirs:
                raise InputError(
                    f"rules: {path} would be kept as {ours}, its bias as {theirs}; give both a rule"
                )
        return found

    def size(self, axes: Axes) -> int:
        """How many parts some axes make."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def rows(self) -> Axes:
        """The axes that split a batch."""
        return (*self.data, *self.fsdp)

    @property
    def batch(self) -> NamedSharding:
        """Where a batch's arrays live: rows split, all else whole."""
        return NamedSharding(self.mesh, PartitionSpec(self.rows))

    @property
    def rows_here(self) -> int:
        """In how many parts this process's rows of a batch are split."""
        return len(self._parts_here())

    @property
    def share(self) -> tuple[int, int]:
        """Which part of a batch's rows this process passes, of how many: `data`'s `share`.

        (i, n) is the `i`-th of `n` contiguous parts. Processes pass the same rows where the tensor
        axes lie across them.

        Raises:
            InputError: this process's rows do not lie together.
        """
        here = self._parts_here()
        first, count = here[0], len(here)
        if here != list(range(first, first + count)) or first % count:
            raise InputError(
                f"mesh: expected each process to have rows that lie together, found parts {here} "
                f"of {self.size(self.rows)} in this one"
            )
        return first // count, self.size(self.rows) // count

    def _parts_here(self) -> list[int]:
        count, batch = self.size(self.rows), self.batch
        of_devices = batch.devices_indices_map((count,))
        return sorted({of_devices[d][0].indices(count)[0] for d in batch.addressable_devices})

    @property
    def everywhere(self) -> NamedSharding:
        """Where an array lives that every device has whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def parts(self) -> int:
        """In how many parts a parameter is stored, where its shape allows."""
        return self.size(self.fsdp) * self.size(self.tensor)

    def shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A parameter's shape in training: (in, 3·hidden) is (in, 3, hidden) if a rule says so.

        So a device's part of the last dimension is whole heads of query, key and value each.
        """
        found = folded(self._rule(path), shape)
        return found if found and any(self._used(path, found)) else shape

    def used_spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How a parameter is split where it is used: by its rule, over the tensor axes."""
        return PartitionSpec(*self._used(path, shape))

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """How a parameter is stored: by its rule, and in as many parts besides as its shape allows.

        The fsdp axes, and the tensor axes if no rule splits by them, are spread over one or two
        dimensions so that their product is the largest that divides.
        """
        used = self._used(path, shape)
        sizes = tuple(
            (axis, self.mesh.shape[axis])
            for axis in (*self.fsdp, *self.tensor)
            if axis not in itertools.chain(*used) and self.mesh.shape[axis] > 1
        )
        rest = tuple(n // self.size(axes) for n, axes in zip(shape, used, strict=True))
        extra = spread(rest, sizes)
        return PartitionSpec(*((*some, *more) for some, more in zip(used, extra, strict=True)))

    def of(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Where a parameter is stored."""
        return NamedSharding(self.mesh, self.spec(path, shape))

    def _rule(self, path: str) -> Rule:
        return next((r for p, r in self.rules.items() if fnmatch.fnmatchcase(path, p)), ())

    def _used(self, path: str, shape: tuple[int, ...]) -> tuple[Axes, ...]:
        rule, size = self._rule(path), self.size(self.tensor)
        if size == 1 or len(rule) != len(shape):
            return ((),) * len(shape)
        even = {FEATURES: True, HEADS: (self.heads or 0) % size == 0}
        return tuple(
            tuple(self.tensor) if even.get(part) and n % size == 0 else ()
            for part, n in zip(rule, shape, strict=True)
        )

    def partial(self, arrays: Mapping[str, Any]) -> list[Partial]:
        """The parameters that are not stored in `parts` parts, and what that costs a device."""
        return [
            Partial(path, shape, parts, size // parts - size // self.parts)
            for path, shape, parts, size in self._stored(arrays)
            if parts < self.parts
        ]

    def device_bytes(self, arrays: Mapping[str, Any]) -> int:
        """What one device stores of some parameters, in bytes."""
        return sum(size // parts for _, _, parts, size in self._stored(arrays))

    def _stored(self, arrays: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """Each parameter's path, shape in training, number of parts it is stored in, and bytes."""
        for path, array in arrays.items():
            shape = self.shape(path, array.shape)
            count = math.prod(shape)
            parts = count // math.prod(self.of(path, shape).shard_shape(shape))
            yield path, shape, parts, count * np.dtype(array.dtype).itemsize


def checked_sharding(sharding: object) -> Sharding | None:
    """The argument `sharding`.

    Raises:
        InputError: it is none.
    """
    if sharding is not None and not isinstance(sharding, Sharding):
        raise InputError(f"sharding: expected a minibert.Sharding, found {shown(type(sharding))}")
    return sharding
