"""Costs of a compiled program: matrix products, memory traffic and collectives.

XLA's cost analysis counts the body of a loop once, however often it runs; here loops are counted as
often as they run.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from benchmarks.hlo import CALLED, Computation, Instruction, Module, Shape, matched

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
NO_TRAFFIC = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "iota"),
    *("conditional", "after-all", "partition-id", "replica-id", "opt-barrier", "custom-call"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
        kind: one of `COLLECTIVES`.
        bytes: the total size of the arrays that a group gathers, sums or exchanges each time.
        largest: the size of the largest of these arrays.
        groups: the devices that take part together; for a permutation, those linked by its pairs.
        times: how often the program runs it.
        results: the size of an all-reduce's results: float32 sums may be returned in bfloat16.
    """

    kind: str
    bytes: int
    largest: int
    groups: list[list[int]]
    times: int
    results: int = 0

    @property
    def sent(self) -> float:
        """The minimum number of bytes that one device must send each time."""
        if self.kind == "collective-permute":
            return self.bytes
        size = len(self.groups[0])
        return (self.bytes + self.results) * (size - 1) / size


class Program(Module):
    """A compiled program and its costs."""

    def _run(self) -> Iterator[tuple[str, Instruction, int]]:
        for name, instructions in self.computations.items():
            if self.times[name]:
                for instruction in instructions.values():
                    yield name, instruction, self.times[name]

    @property
    def argument_bytes(self) -> int:
        """The size of its arguments, without scalars and the padding of layouts."""
        given = self.computations[self.entry].values()
        shapes = [i.shapes[0] for i in given if i.opcode == "parameter"]
        return sum(shape.bytes for shape in shapes if shape.dims)

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """The collectives; an asynchronous one, with a start and an end, counts once."""
        found: dict[str, Collective] = {}
        for name, instruction, times in self._run():
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            here = self.computations[name]
            sizes = [s.bytes for operand in instruction.operands for s in here[operand].shapes]
            groups, results = _groups(instruction.rest, self.devices), 0
            if kind == "all-gather":
                sizes = [size * len(groups[0]) for size in sizes]
            elif kind == "all-reduce" and "all-reduce-scatter" in name:
                kind = "reduce-scatter"  # an all-reduce of which each device keeps a slice
            elif kind == "all-reduce":
                results = sum(shape.bytes for shape in instruction.shapes)
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            key = channel[1] if channel else instruction.name
            if len(groups[0]) > 1 and (key not in found or found[key].times < times):
                found[key] = Collective(kind, sum(sizes), max(sizes), groups, times, results)
        return list(found.values())

    @functools.cached_property
    def flops(self) -> int:
        """The floating-point operations of the matrix products; each multiply-add is two."""
        total = 0
        for name, instruction, times in self._run():
            if instruction.opcode in ("dot", "convolution"):
                here = self.computations[name]
                count = _dot if instruction.opcode == "dot" else _convolution
                shapes = [here[operand].shapes[0].dims for operand in instruction.operands]
                total += 2 * times * count(instruction, *shapes)
        return total

    @functools.cached_property
    def traffic(self) -> int:
        """Bytes read from and written to HBM: each operand and result of each instruction once.

        Of sliced arrays only the slices count, and of arrays updated in place twice the update.
        """
        total = 0
        for name, instruction, times in self._run():
            if name not in self.fused and instruction.opcode not in NO_TRAFFIC:
                total += times * self._moved(self.computations[name], instruction)
        return total

    def _moved(self, here: Computation, instruction: Instruction) -> int:
        operands = [here[operand] for operand in instruction.operands]
        opcode, shapes = instruction.opcode, instruction.shapes
        if opcode.endswith("-done"):
            return 0
        if opcode == "fusion":
            inside = self.computations[matched(CALLED.pattern, instruction.rest)[1]]
            return _read_by(inside, operands) + _written_by(inside)
        if opcode.endswith("-start"):  # its results contain its operands
            place = 0 if opcode == "copy-start" or len(shapes) == 1 else len(operands)
            made = shapes[min(place, len(shapes) - 1)]
            taken = sum(min(made.bytes, _in_hbm(operand.shapes[:1])) for operand in operands)
            return taken + _in_hbm((made,))
        if opcode in ("dynamic-slice", "gather", "slice"):
            return _in_hbm(shapes) + (shapes[0].bytes if _in_hbm(operands[0].shapes) else 0)
        if opcode == "dynamic-update-slice":
            return 2 * operands[1].shapes[0].bytes if _in_hbm(shapes) else 0
        return _in_hbm(shapes) + sum(_in_hbm(operand.shapes) for operand in operands)


def _read_by(inside: Computation, operands: list[Instruction]) -> int:
    """Returns the bytes that a fusion reads, without collectives in it, which count separately."""
    parameters = {i.name: int(i.argument) for i in inside.values() if i.opcode == "parameter"}
    total = 0
    for name, number in parameters.items():
        users = [i for i in inside.values() if name in i.operands]
        users = [i for i in users if i.opcode not in ("tuple", "custom-call", *COLLECTIVES)]
        if not users or not _in_hbm(operands[number].shapes):
            continue
        if all(i.opcode in ("dynamic-slice", "slice", "gather") for i in users):
            total += sum(i.shapes[0].bytes for i in users)
        elif not all(i.opcode == "dynamic-update-slice" and i.operands[0] == name for i in users):
            total += _in_hbm(operands[number].shapes)
    return total


def _written_by(inside: Computation) -> int:
    """Returns the bytes that a fusion writes, without passed-on results; of updates only these."""
    last = list(inside.values())[-1]
    total = 0
    for result in [inside[name] for name in last.operands] if last.opcode == "tuple" else [last]:
        if result.opcode == "dynamic-update-slice" and _in_hbm(result.shapes):
            total += inside[result.operands[1]].shapes[0].bytes
        elif result.opcode not in ("parameter", "custom-call", *COLLECTIVES):
            total += _in_hbm(result.shapes)
    return total


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _groups(rest: str, devices: int) -> list[list[int]]:
    """Returns the groups of devices of a collective."""
    if found := re.search(r"(replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", rest):
        sets = [[int(n) for n in part.split(",")] for part in re.findall(r"\{([\d,]+)\}", found[2])]
        return _linked(sets) if found[1] == "source_target_pairs" else sets
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, tile, order = (tuple(map(int, g.split(","))) if g else None for g in found.groups())
        return np.arange(devices).reshape(tile).transpose(order).reshape(shape).tolist()
    found = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}:]*)\}", rest)
    if found and "device_ids" not in found[1]:
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        names, along = list(axes), re.findall(r"'(\w+)'", found[2])
        order = [names.index(name) for name in names if name not in along]
        order += [names.index(name) for name in along]
        grid = np.arange(devices).reshape(tuple(axes.values())).transpose(order)
        return grid.reshape(-1, math.prod(axes[name] for name in along)).tolist()
    if "replica_groups={}" in rest:
        return [list(range(devices))]
    raise ValueError(f"groups that cannot be read: {rest[:200]}")


def _linked(pairs: list[list[int]]) -> list[list[int]]:
    """Returns the sets of devices that are linked by pairs."""
    chain = {device: {device} for pair in pairs for device in pair}
    for one, other in pairs:
        if chain[one] is not chain[other]:
            chain[one] |= chain[other]
            for device in chain[other]:
                chain[device] = chain[one]
    return [sorted(chain) for chain in {id(found): found for found in chain.values()}.values()]


def _dot(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    inner = math.prod(left[int(axis)] for axis in summed[1].split(",") if axis) if summed else 1
    return math.prod(instruction.shapes[0].dims) * inner


def _convolution(instruction: Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Returns the multiply-adds of a convolution, which on TPUs may be a batched matrix product."""
    rest = instruction.rest
    labels = matched(r"dim_labels=(\w+)_(\w+)->(\w+)", rest)
    window_text = re.search(r"window=\{([^}]*)\}", rest)  # none without such dimensions
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", window_text[1] if window_text else ""))
    sizes = window["size"].split("x") if "size" in window else []
    count = 1
    for number, size in enumerate(map(int, sizes)):
        here = {name: value.split("x")[number] for name, value in window.items()}
        low, stride = int(here.get("pad", "0_0").split("_")[0]), int(here.get("stride", 1))
        spread, apart = int(here.get("lhs_dilate", 1)), int(here.get("rhs_dilate", 1))
        out = instruction.shapes[0].dims[labels[3].index(str(number))]
        last = (left[labels[1].index(str(number))] - 1) * spread
        reach = np.arange(out)[:, None] * stride + np.arange(size) * apart - low
        count *= int(((reach >= 0) & (reach <= last) & (reach % spread == 0)).sum())
    batch = instruction.shapes[0].dims[labels[3].index("b")]
    return count * batch * right[labels[2].index("i")] * right[labels[2].index("o")]
