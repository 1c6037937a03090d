"""Parser of a compiled program's text: its computations, and how often each runs.

The text is HLO (openxla.org/xla/operation_semantics) after partitioning and scheduling, that is,
the program of one device.
"""

import dataclasses
import math
import re

WIDTHS = {"pred": 8, "token": 0, "opaque": 0}  # bits of types whose name has no number
SUMS = ("reduce", "all-reduce", "reduce-scatter", "reduce-window", "all-reduce-start")
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([^\s,(){}]+)")
CALLED = re.compile(r"\b(?:calls|body|to_apply)=%([^\s,]+)")
BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of an array: element type, dimensions, and whether it is in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> int:
        """The size of the array, without the padding of its layout."""
        digits = re.search(r"\d+", self.dtype)
        bits = int(digits.group()) if digits else WIDTHS[self.dtype]
        return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line: its results (several for a tuple), its operands by name, and the rest as text."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    argument: str
    rest: str


Computation = dict[str, Instruction]


class Module:
    """The computations of a program.

    Args:
        text: the result of `compiled.as_text()`.

    Attributes:
        computations: instructions by computation; callers come after the computations they call.
        entry: the name of the entry computation.
        times: how often each runs.
        fused: computations that are one instruction of another.
        devices: the number of devices that run the program.

    Raises:
        ValueError: if the text cannot be parsed.
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
            return  # they apply a scalar sum
        trips = self._trips(caller, instruction) if instruction.opcode == "while" else 1
        called = CALLED.findall(instruction.rest)
        for some in BRANCHES.findall(instruction.rest):
            called += NAME.findall(some)
        for name in dict.fromkeys(called):
            self.times[name] += self.times[caller] * trips
            if instruction.opcode == "fusion" or caller in self.fused:
                self.fused.add(name)

    def _trips(self, caller: str, loop: Instruction) -> int:
        """Returns how often a loop runs, given its counter's constant start, end and step."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known[1])
        names = dict(re.findall(r"(condition|body)=%([^\s,]+)", loop.rest))
        condition, body = self.computations[names["condition"]], self.computations[names["body"]]
        test = list(condition.values())[-1]
        left, right = (condition.get(name) for name in test.operands[:2])
        if test.opcode != "compare" or "direction=LT" not in test.rest or not (left and right):
            raise ValueError(f"{loop.name}: cannot read the end of the loop: {test}")
        place = int(matched(r"index=(\d+)", left.rest)[1])
        first = _source(self.computations[caller], loop.operands[0], place)
        following = _source(body, list(body)[-1], place)
        steps = [body[name] for name in following.operands if body[name].opcode == "constant"]
        if {first.opcode, right.opcode} != {"constant"} or following.opcode != "add" or not steps:
            raise ValueError(f"{loop.name}: cannot read the counter of the loop: {following}")
        span, step = int(right.argument) - int(first.argument), int(steps[0].argument)
        return -(-span // step)


def matched(pattern: str, text: str) -> re.Match[str]:
    """Returns the match of a pattern in a text.

    Raises:
        ValueError: if there is none.
    """
    if found := re.search(pattern, text):
        return found
    raise ValueError(f"expected {pattern} in {text[:200]}")


def _source(here: Computation, tuple_name: str, place: int) -> Instruction:
    """Returns the instruction that computes an element of a tuple, without copies."""
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
    """Returns the index after the parenthesis that closes the text's first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place + 1
    raise ValueError(f"expected a closing parenthesis in {text[:80]}")
