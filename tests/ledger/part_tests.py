"""Which tests there are, by the names of their functions: none may be lost when files move.

Of mistakes that are planted the list of parameters counts, of other tests the number of cases.
"""

import collections
import re
import subprocess
import sys

from .environment import ROOT, of_processes
from .records import Comparison, Record

KINDS = ("planted", "malformed", "fuzz", "killed", "parity")
# These have a case for each file of the library, however many there are.
BY_FILE = (
    "test_rooms",
    "test_no_global_option_is_touched",
    "test_no_tensor_is_named_outside_its_model",
)


def found() -> Record:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-m", ""]
    done = subprocess.run(command, cwd=ROOT, env=of_processes(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pytest cannot collect the tests:\n{done.stdout[-4000:]}")
    return counted(line for line in done.stdout.splitlines() if "::" in line)


def counted(lines) -> Record:
    """The record of test ids such as `tests/test_a.py::test_b[c]`."""
    record: Record = collections.defaultdict(int)
    mistakes: dict[str, list[str]] = collections.defaultdict(list)
    for line in lines:
        path, _, rest = line.partition("::")
        name, _, case = rest.partition("[")
        name, case = name.rpartition("::")[2], case.removesuffix("]")
        record[f"cases of {name}"] += 1
        for kind in KINDS:
            if re.search(kind, f"{path}::{name}"):
                record[f"kind {kind}"] += 1
        if case and ("planted" in path or "mistake" in name):
            mistakes[f"mistakes of {name}"].append(case)
    return {**record, **{name: sorted(cases) for name, cases in mistakes.items()}}


def compare(recorded: Record, now: Record) -> Comparison:
    result = Comparison(added=sorted(now.keys() - recorded.keys()))
    for name, before in sorted(recorded.items()):
        after = now.get(name, type(before)())
        if isinstance(before, list):
            gone = collections.Counter(before) - collections.Counter(after)
            more = collections.Counter(after) - collections.Counter(before)
            result.differences += [f"{name}: lost {case}" for case in sorted(gone.elements())]
            result.added += [f"{name}: {case}" for case in sorted(more.elements())]
        elif after < before and name.removeprefix("cases of ") not in BY_FILE:
            result.differences.append(f"{name}: were {before}, are {after}")
        elif after > before:
            result.added.append(f"{name}: were {before}, are {after}")
    functions = [name for name in recorded if name.startswith("cases of ")]
    cases = sum(recorded[name] for name in functions)
    result.remarks.append(f"{cases} cases of {len(functions)} functions")
    return result
