"""The process of one step; `python -m benchmarks.gpu` starts it.

python -m benchmarks.gpu.child STEP --lines PATH --limit SECONDS --scratch FOLDER [--dry-run]
"""

import argparse
import faulthandler
import importlib
import os
import sys
import traceback

from benchmarks.gpu.job import Job, SkippedError, text_of
from benchmarks.gpu.steps import STEPS


def main() -> None:
    """Runs the step; exits with 1 if it raises, and at its limit, with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.child", description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--lines", required=True)
    parser.add_argument("--limit", required=True, type=float)
    parser.add_argument("--scratch", required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--without", action="append", default=[])
    given = parser.parse_args()
    faulthandler.dump_traceback_later(given.limit, exit=True, file=os.dup(2))
    job = Job(given.lines, given.limit, given.dry_run, given.without, given.scratch)
    step = STEPS[given.step]
    try:
        module = importlib.import_module(f"benchmarks.gpu.{step.module}")
        getattr(module, step.function)(job)
    except SkippedError as reason:
        job.emit(skipped=str(reason))
    except Exception as reason:
        traceback.print_exc()
        job.emit(error=text_of(reason), at=None)
        sys.exit(1)
    job.emit(done=True)


if __name__ == "__main__":
    main()
