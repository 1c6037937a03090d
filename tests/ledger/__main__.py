"""The command line: `python -m tests.ledger [--record] [--only PART]`."""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence

from .environment import prepare, versions

PARTS = ("tests", "signatures", "commands", "outputs", "artefacts")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ledger", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the record anew")
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated")
    given = parser.parse_args(arguments)
    prepare()
    from . import records  # JAX comes with it, and reads the environment

    if not given.record:
        _tell_versions(records.read("environment"))
    wrong = 0
    for name in given.only or PARTS:
        part = importlib.import_module(f".part_{name}", __package__)
        start = time.perf_counter()
        found = part.found()
        took = f"{time.perf_counter() - start:.0f} s"
        if given.record:
            if failed := [entry for entry in found if records.is_error(entry)]:
                _say(f"{name}: nothing is recorded, as this raised an error:")
                _say(*(f"  {entry}: {found[entry]}" for entry in failed))
                wrong += 1
                continue
            records.write(name, found)
            _say(f"{name}: {len(found)} entries recorded ({took})")
            continue
        result = part.compare(records.read(name), found)
        verdict = f"{len(result.differences)} differences" if result.differences else "equal"
        _say(f"{name}: {verdict}; {'; '.join(result.remarks)} ({took})")
        _say(*(f"  added: {line}" for line in result.added))
        _say(*(f"  DIFFERS: {line}" for line in result.differences))
        wrong += len(result.differences)
    if given.record:
        records.write("environment", versions())
    return 1 if wrong else 0


def _tell_versions(before: dict[str, str]) -> None:
    now = versions()
    changed = {name: f"{before.get(name)} then, {now[name]} now" for name in now}
    changed = {name: text for name, text in changed.items() if before.get(name) != now[name]}
    if changed:
        _say(f"other versions, so that differences may be theirs: {json.dumps(changed)}")


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
