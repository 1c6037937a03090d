"""Values as flat JSON, a line each, and the comparison of two such records.

Of an array there are the shape, the dtype, a digest and three projections, which are compared: a
difference counts in units of the largest of the three. Whole numbers are compared exactly.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

RECORDED = pathlib.Path(__file__).parent / "recorded"
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}  # relative
SHOWN = 64  # whole numbers of an array that are written out

Record = dict[str, Any]


@dataclasses.dataclass
class Comparison:
    """What a comparison found: differences, additions, and remarks."""

    differences: list[str] = dataclasses.field(default_factory=list)
    added: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)


def entries(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value consists of, by path, as JSON holds it."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        yield path, of_array(value)
    elif value is None or isinstance(value, str | bool | int | float):
        yield path, value
    elif isinstance(value, Mapping):
        for name in value:
            yield from entries(f"{path}/{name}", value[name])
    elif hasattr(value, "_fields"):
        yield from entries(path, value._asdict())
    elif dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        yield from entries(path, fields)
    elif isinstance(value, list | tuple):
        if all(one is None or isinstance(one, str | bool | int | float) for one in value):
            yield path, list(value)
        else:
            for number, one in enumerate(value):
                yield from entries(f"{path}/{number}", one)
    else:
        raise TypeError(f"{path}: no record of {type(value).__name__}")


def of_array(given: Any) -> Record:
    """The record of an array."""
    if isinstance(given, jax.Array) and jnp.issubdtype(given.dtype, jax.dtypes.prng_key):
        given = jax.random.key_data(given)
    array = np.asarray(given)
    found: Record = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype.kind in "biu" and array.size <= SHOWN:
        return {**found, "values": array.tolist()}
    flat = array.astype(np.float64).reshape(-1)
    if wrong := int((~np.isfinite(flat)).sum()):
        found["not_finite"] = wrong
        flat = np.where(np.isfinite(flat), flat, 0)
    found["projections"] = [float(value) for value in directions(flat.size) @ flat]
    octets = np.ascontiguousarray(array).tobytes()
    return {**found, "sha256": hashlib.sha256(octets).hexdigest()[:12]}


@functools.cache
def directions(size: int) -> np.ndarray:
    """The three directions, `(3, size)`, of vectors of that size."""
    drawn = [np.random.default_rng(number).standard_normal(size) for number in range(3)]
    return np.stack(drawn) / max(size, 1) ** 0.5


def write(part: str, record: Record) -> None:
    """Writes a part's record, sorted, a line for each entry."""
    RECORDED.mkdir(exist_ok=True)
    lines = [f"{json.dumps(name)}: {_line(record[name])}" for name in sorted(record)]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (RECORDED / f"{part}.json").write_text(text, encoding="utf-8")


def _line(value: Any) -> str:
    """JSON on one line, or on several if it is long and has parts."""
    line = json.dumps(value, ensure_ascii=False)
    several = isinstance(value, list) or (isinstance(value, dict) and "sha256" not in value)
    return (
        line if len(line) < 100 or not several else json.dumps(value, ensure_ascii=False, indent=1)
    )


def read(part: str) -> Record:
    """Reads a part's record."""
    return json.loads((RECORDED / f"{part}.json").read_text(encoding="utf-8"))


def compare(recorded: Record, found: Record) -> Comparison:
    """Compares entry by entry; what is only in `found` was added.

    Of a case that raised an error, an entry named `raised`, the error is the difference.
    """
    errors = {name.removesuffix("raised"): found[name] for name in found if is_error(name)}
    added = sorted(name for name in found.keys() - recorded.keys() if not is_error(name))
    result = Comparison([f"{case}: {error}" for case, error in errors.items()], added)
    arrays = same = 0
    for name in sorted(recorded):
        if name.startswith(tuple(errors)):
            continue
        if name not in found:
            result.differences.append(f"{name}: lost")
            continue
        before, now = recorded[name], found[name]
        if isinstance(before, dict) and "dtype" in before:
            arrays += 1
            same += before == now
        if why := different(before, now):
            result.differences.append(f"{name}: {why}")
    result.remarks.append(
        f"{len(recorded)} entries, of them {arrays} arrays, {same} equal to the bit"
    )
    return result


def is_error(name: str) -> bool:
    return name.endswith("/raised")


def different(before: Any, now: Any) -> str:
    """In what an entry differs; an empty text if it does not."""
    if before == now:
        return ""
    if isinstance(before, dict) and isinstance(now, dict) and "projections" in before:
        return _different_arrays(before, now)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        each = map(different, before, now)
        return "; ".join(f"[{number}] {why}" for number, why in enumerate(each) if why)
    if type(before) is float and type(now) is float:
        if math.isclose(before, now, rel_tol=TOLERANCES["float32"]):
            return ""
        return f"was {before!r}, is {now!r}"
    return f"was {_short(before)}, is {_short(now)}"


def _different_arrays(before: Record, now: Record) -> str:
    for name in ("shape", "dtype", "not_finite"):
        if before.get(name) != now.get(name):
            return f"{name} was {before.get(name)}, is {now.get(name)}"
    scale = max(map(abs, before["projections"]))
    pairs = zip(before["projections"], now["projections"], strict=True)
    apart = max(abs(one - other) for one, other in pairs) / (scale or 1)
    tolerance = TOLERANCES.get(before["dtype"], 0)
    if tolerance and apart <= tolerance:
        return ""
    return f"projections are {apart:.1e} apart (allowed: {tolerance:.0e})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}"
