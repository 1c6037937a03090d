"""Distribution of a model's arrays over devices: a mesh, and rules from paths to partition specs.

There are three kinds of parallelism, which can be combined; each has axes of the mesh:

    data      rows of a batch are split, parameters are replicated
    fsdp      rows of a batch and all parameters are split: the parameters of a layer are gathered
              when it is executed, and their gradients reduce-scattered (ZeRO-3, arXiv:1910.02054)
    tensor    heads and inner features are split (Megatron-LM, arXiv:1909.08053)

A model's class specifies which dimensions are heads and features (`dimensions`). Tensor axes that
split none of them are used like fsdp axes: a parameter is *stored* in as many shards as its shape
allows, and *used* whole, or in the shards that its rule specifies. JAX's partitioner does the rest,
under the constraints that `placement.py` sets.
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

HEADS, FEATURES = "heads", "features"  # in rules: dimensions that the tensor axes split

Rule = tuple[str | int | None, ...]
Axes = tuple[str, ...]


def check_rule(pattern: object, rule: object) -> None:
    """Checks the format of a rule.

    Raises:
        InputError: `rule` is not a valid rule.
    """
    parts = list(rule) if isinstance(rule, tuple | list) else [0]
    numbers = sum(type(part) is int and part > 0 for part in parts)
    split = sum(part in (HEADS, FEATURES) for part in parts)
    known = numbers + split + parts.count(None) == len(parts)
    if not known or max(numbers, split) > 1 or type(parts[-1]) is int:
        raise InputError(
            f"rules: {shown(pattern)}: expected {HEADS!r}, {FEATURES!r} or None for each "
            "dimension, with at most one that is split, and at most one number of parts before a "
            f"dimension, found {shown(rule)}"
        )


def folded(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Returns a shape in which a dimension that a rule splits is two: the parts, and their size.

    Returns None if the rule does not fit the shape.
    """
    for at, parts in enumerate(rule):
        if isinstance(parts, int):
            if at >= len(shape) or shape[at] % parts:
                return None
            shape = (*shape[:at], parts, shape[at] // parts, *shape[at + 1 :])
    return shape if len(rule) == len(shape) else None


@functools.lru_cache(maxsize=4096)
def spread(shape: tuple[int, ...], axes: tuple[tuple[str, int], ...]) -> tuple[Axes, ...]:
    """Assigns mesh axes to one or two dimensions so that the product of their sizes is maximal.

    Of equal products, prefers the one over fewer dimensions, then the one that splits the longest.
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
    """A parameter that is stored in fewer shards than there are devices for it."""

    path: str
    shape: tuple[int, ...]
    parts: int
    extra_bytes: int  # stored per device beyond an even shard


@dataclasses.dataclass(frozen=True, eq=False)
class Sharding:
    """A mesh, the roles of its axes, and rules for parameters.

    Attributes:
        mesh: the devices; or a `jax.sharding.AbstractMesh`, to plan without devices.
        data: the axes that split batches only.
        fsdp: the axes that split batches and parameters.
        tensor: the axes that split heads and features.
        rules: the dimensions of parameters by patterns of their paths (`*` matches any characters;
            the first match applies): "heads" or "features", which the tensor axes split; None; or a
            number of equal parts of the following dimension: with (None, 3, "heads"), training
            stores (in, 3·hidden) as (in, 3, hidden).
        heads: the number of heads of the model.

    Raises:
        InputError: an axis is not in the mesh or does not have exactly one role; or a rule is
            invalid.
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
        # Auto: the partitioner chooses shardings, as no array here has an explicit one in its type.
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
        """Returns a sharding over devices.

        Args:
            data: the number of replicas of the parameters, each for a part of a batch; by default
                the number of remaining devices.
            fsdp: the number of shards of each parameter. Several numbers make as many axes of the
                mesh, which can split different dimensions of one parameter: 1,600 × 1,600 numbers
                can be split by 256 as (64, 4) or (16, 16), not as one axis.
            tensor: the number of shards of heads and features.
            devices: the devices; by default all of JAX, of all processes.
            rules: rules in addition to those of the model; they take precedence.

        Raises:
            InputError: the product of the sizes is not the number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        parts = tuple(fsdp) if isinstance(fsdp, tuple | list) else (fsdp,)
        sizes = [whole("fsdp", size, 1) for size in parts] + [whole("tensor", tensor, 1)]
        count = math.prod(sizes)
        if not devices or len(devices) % count:
            raise InputError(
                f"fsdp × tensor: expected a divisor of the number of devices, {len(devices)}, "
                f"found {' × '.join(map(str, sizes))} = {count}"
            )
        left = len(devices) // count
        if data is not None and whole("data", data, 1) != left:
            raise InputError(f"data: expected {left}, the remaining devices, found {data}")
        axes = tuple(f"fsdp{number or ''}" for number in range(len(parts)))
        grid = mesh_utils.create_device_mesh(
            (left, *sizes), devices, allow_split_physical_axes=True
        )
        mesh = Mesh(grid, ("data", *axes, "tensor"))
        return cls(mesh, data=("data",), fsdp=axes, tensor=("tensor",), rules=rules or {})

    def for_model(self, model: Any) -> "Sharding":
        """Returns this sharding with the rules of a model's class, after those of this sharding.

        Raises:
            InputError: a rule of this sharding matches no parameter, or does not fit the shape of
                one that it matches.
        """
        arrays = parameters(model)
        for pattern, rule in self.rules.items():
            for path in matching_paths("rules", [pattern], arrays):
                shape = arrays[path].shape
                if folded(rule, shape) is None:
                    raise InputError(
                        f"rules: {shown(pattern)}: expected a rule that fits {path}, of shape "
                        f"{shape}, found {shown(rule)}"
                    )
        found = dataclasses.replace(
            self,
            # the first match applies: rules of this sharding come first, and replace the model's
            rules={**self.rules, **model.dimensions, **self.rules},
            heads=model.config.num_attention_heads,
        )
        kept = {path: found.shape(path, array.shape) for path, array in arrays.items()}
        for path, ours in kept.items():
            layer, _, name = path.rpartition(".")
            theirs = kept.get(f"{layer}.bias")
            if name == "kernel" and theirs is not None and ours[1:] != theirs:
                raise InputError(
                    f"rules: {path} would be stored as {ours}, but its bias as {theirs}; add a "
                    "rule for both"
                )
        return found

    def size(self, axes: Axes) -> int:
        """Returns the product of the sizes of some axes."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def rows(self) -> Axes:
        """The axes that split a batch."""
        return (*self.data, *self.fsdp)

    @property
    def batch(self) -> NamedSharding:
        """The sharding of a batch's arrays, whose rows are split."""
        return NamedSharding(self.mesh, PartitionSpec(self.rows))

    @property
    def rows_here(self) -> int:
        """The number of shards into which the rows of a batch in this process are split."""
        return len(self._parts_here())

    @property
    def share(self) -> tuple[int, int]:
        """The part of a batch's rows that this process provides: the argument `share` of data sets.

        (i, n) is the `i`-th of `n` contiguous parts. Processes provide the same rows if tensor axes
        extend over them.

        Raises:
            InputError: the rows of this process are not contiguous.
        """
        here = self._parts_here()
        first, count = here[0], len(here)
        if here != list(range(first, first + count)) or first % count:
            raise InputError(
                f"mesh: expected contiguous rows of a batch in each process, found parts {here} "
                f"of {self.size(self.rows)} in this one"
            )
        return first // count, self.size(self.rows) // count

    def _parts_here(self) -> list[int]:
        count, batch = self.size(self.rows), self.batch
        of_devices = batch.devices_indices_map((count,))
        return sorted({of_devices[d][0].indices(count)[0] for d in batch.addressable_devices})

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of an array that is replicated on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def parts(self) -> int:
        """The number of shards in which a parameter is stored if its shape allows it."""
        return self.size(self.fsdp) * self.size(self.tensor)

    def shape(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns a parameter's shape in training: (in, 3, hidden) for (in, 3·hidden) by a rule.

        A device's shard of the last dimension then consists of whole heads of query, key and value.
        """
        found = folded(self._rule(path), shape)
        return found if found and any(self._used(path, found)) else shape

    def used_spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns how a parameter is split when it is used: by its rule, over the tensor axes."""
        return PartitionSpec(*self._used(path, shape))

    def spec(self, path: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns how a parameter is stored: split by its rule, and further as its shape allows.

        The fsdp axes, and the tensor axes if no rule uses them, are assigned to one or two
        dimensions so that the product of their sizes is maximal.
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
        """Returns the sharding in which a parameter is stored."""
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
        """Returns the parameters that are stored in fewer than `parts` shards."""
        return [
            Partial(path, shape, parts, size // parts - size // self.parts)
            for path, shape, parts, size in self._stored(arrays)
            if parts < self.parts
        ]

    def device_bytes(self, arrays: Mapping[str, Any]) -> int:
        """Returns the size in bytes of the shards of some parameters on one device."""
        return sum(size // parts for _, _, parts, size in self._stored(arrays))

    def _stored(self, arrays: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """Yields the path of each parameter, its shape in training, number of shards and bytes."""
        for path, array in arrays.items():
            shape = self.shape(path, array.shape)
            count = math.prod(shape)
            parts = count // math.prod(self.of(path, shape).shard_shape(shape))
            yield path, shape, parts, count * np.dtype(array.dtype).itemsize


def checked_sharding(sharding: object) -> Sharding | None:
    """Returns the argument `sharding` after checking its type.

    Raises:
        InputError: `sharding` is neither a `Sharding` nor None.
    """
    if sharding is not None and not isinstance(sharding, Sharding):
        raise InputError(f"sharding: expected a minibert.Sharding, found {shown(type(sharding))}")
    return sharding
