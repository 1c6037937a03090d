"""A compiled program's text, read: its computations, and how often each runs.

The text is HLO (openxla.org/xla/operation_semantics) after partitioning and scheduling, hence one
device's program.
"""

import dataclasses
import math
import re

WIDTHS = {"pred": 8, "token": 0, "opaque": 0}  # bits, where the name of the type does not say
SUMS = ("reduce", "all-reduce", "reduce-scatter", "reduce-window", "all-reduce-start")
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([^\s,(){}]+)")
CALLED = re.compile(r"\b(?:calls|body|to_apply)=%([^\s,]+)")
BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: its element type, its dimensions, and whether it lives in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> int:
        """Its bytes, without its layout's padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = int(digits.group()) if digits else WIDTHS[self.dtype]
        return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its results (a tuple has several), its operands by name, and all else as text."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    argument: str
    rest: str


Computation = dict[str, Instruction]


class Module:
    """A program's computations.

    Args:
        text: what `compiled.as_text()` gives.

    Attributes:
        computations: their instructions by name, in order; a caller comes after what it calls.
        entry: the name of the first to run.
        times: how often each runs.
        fused: those that are one instruction of another.
        devices: how many devices run the program.

    Raises:
        ValueError: it says something that is not understood here.
    """

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(partitions[1]) if partitions else 1
        current: Computation = {}
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif " = " in line and re.match(r"\s+(?:ROOT )?%", line):
                read = _instruction(line)
                current[read.name] = read
        self.fused: set[str] = set()
        self.times = dict.fromkeys(self.computations, 0) | {self.entry: 1}
        for name in reversed(list(self.computations)):
            for instruction in self.computations[name].values():
                self._call(name, instruction)

    def _call(self, caller: str, instruction: Instruction) -> None:
        if instruction.opcode in SUMS:
            return  # what they apply is a sum of two numbers
        trips = self._trips(caller, instruction) if instruction.opcode == "while" else 1
        called = CALLED.findall(instruction.rest)
        for some in BRANCHES.findall(instruction.rest):
            called += NAME.findall(some)
        for name in dict.fromkeys(called):
            self.times[name] += self.times[caller] * trips
            if instruction.opcode == "fusion" or caller in self.fused:
                self.fused.add(name)

    def _trips(self, caller: str, loop: Instruction) -> int:
        """How often a loop runs: its counter goes from one constant to another by a third."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known[1])
        names = dict(re.findall(r"(condition|body)=%([^\s,]+)", loop.rest))
        condition, body = self.computations[names["condition"]], self.computations[names["body"]]
        test = list(condition.values())[-1]
        left, right = (condition.get(name) for name in test.operands[:2])
        if test.opcode != "compare" or "direction=LT" not in test.rest or not (left and right):
            raise ValueError(f"{loop.name}: a loop whose end cannot be read: {test}")
        place = int(said(r"index=(\d+)", left.rest)[1])
        first = _source(self.computations[caller], loop.operands[0], place)
        following = _source(body, list(body)[-1], place)
        steps = [body[name] for name in following.operands if body[name].opcode == "constant"]
        if {first.opcode, right.opcode} != {"constant"} or following.opcode != "add" or not steps:
            raise ValueError(f"{loop.name}: a loop whose counter cannot be read: {following}")
        span, step = int(right.argument) - int(first.argument), int(steps[0].argument)
        return -(-span // step)


def said(pattern: str, text: str) -> re.Match[str]:
    """The pattern as it is in the text.

    Raises:
        ValueError: it is not.
    """
    if found := re.search(pattern, text):
        return found
    raise ValueError(f"expected {pattern} in {text[:200]}")


def _source(here: Computation, tuple_name: str, place: int) -> Instruction:
    """What stands at a place of a tuple, copies seen through."""
    found = here[here[tuple_name].operands[place]]
    while found.opcode in ("copy", "bitcast"):
        found = here[found.operands[0]]
    return found


def _instruction(line: str) -> Instruction:
    left, right = line.strip().removeprefix("ROOT ").split(" = ", 1)
    end = _closing(right) if right.startswith("(") else right.index(" ")
    result, right = right[:end], right[end:].lstrip()
    opened = right.index("(")
    end = _closing(right[opened:]) + opened
    shapes = tuple(
        Shape(dtype, tuple(map(int, dims.split(","))) if dims else (), "S(" not in layout)
        for dtype, dims, layout in SHAPE.findall(result)
    )
    argument = right[opened + 1 : end - 1]
    return Instruction(
        name=left.lstrip("%"),
        shapes=shapes,
        opcode=right[:opened],
        operands=tuple(NAME.findall(argument)),
        argument=argument,
        rest=right[end:],
    )


def _closing(text: str) -> int:
    """Where the parenthesis that opens a text is closed, exclusive."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place + 1
    raise ValueError(f"a parenthesis that is not closed: {text[:80]}")
