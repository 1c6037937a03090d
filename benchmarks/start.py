"""Time from a process's start to its first vectors, beside sentence-transformers.

    python -m benchmarks.start [--size minilm] [--repeats 5] [--json PATH] [--check]

Every turn is a new process that imports, loads all-MiniLM-L6-v2, and encodes eight texts; then it
ends. minibert runs without a cache of programs and with one that an earlier process has filled, in
the folder that JAX's JAX_COMPILATION_CACHE_DIR names. The contenders take turns; times are medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

from rich.table import Table

from benchmarks import embed, reporting
from benchmarks.reporting import Report

MAX_RATIO = 1.0  # of the medians, minibert's with its cache to sentence-transformers'

TEXTS = embed.corpus(8)
OURS = """
import sys, minibert
minibert.SentenceEncoder.from_pretrained(sys.argv[1]).encode(sys.argv[2:])
"""
THEIRS = """
import sys
from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1]).encode(sys.argv[2:])
"""
CACHED = "minibert, its programs cached"


def seconds_of(code: str, folder: str, settings: dict[str, str]) -> float:
    """Runs the code in a new process."""
    command = [sys.executable, "-c", code, folder, *TEXTS]
    kept = {name: value for name, value in os.environ.items() if not _is_of_a_cache(name)}
    environment = kept | {"HF_HUB_OFFLINE": "1"} | settings
    start = time.perf_counter()
    done = subprocess.run(command, cwd=embed.ROOT, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"a process failed:\n{done.stderr}")
    return taken


def _is_of_a_cache(name: str) -> bool:
    """Whether it is a setting of JAX's cache of programs: a turn has its own, or none."""
    return name.startswith("JAX_") and "CACHE" in name


def compare(size: str, repeats: int) -> Report:
    """Every contender in turn, `repeats` times, after a first turn that is not counted."""
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = embed.model_folder(os.path.join(scratch, "model"), size)
        cache = {
            "JAX_COMPILATION_CACHE_DIR": os.path.join(scratch, "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        runs = {
            "minibert": (OURS, folder, {}),
            CACHED: (OURS, folder, cache),
            "sentence-transformers": (THEIRS, folder, {}),
        }
        for turn in range(repeats + 1):
            for name, run in runs.items():
                seconds = seconds_of(*run)
                if turn:
                    taken.setdefault(name, []).append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "repeats": repeats,
        "seconds": medians,
        "turns": taken,
        "ratio": medians[CACHED] / medians["sentence-transformers"],
        **reporting.taken_on("jax", "flax", "torch", "sentence-transformers"),
    }


def table(report: Report) -> Table:
    """The report as a table."""
    title = f"From a process's start to its first vectors, the median of {report['repeats']}"
    made = reporting.table(report, title, "s", "to sentence-transformers")
    for name, seconds in report["seconds"].items():
        ratio = seconds / report["seconds"]["sentence-transformers"]
        made.add_row(name, f"{seconds:.1f}", f"{ratio:.2f} ×")
    return made


def faults(report: Report) -> list[str]:
    """Which bounds the report breaks, a sentence each."""
    over = report["ratio"] > MAX_RATIO
    found = f"{report['ratio']:.2f} × sentence-transformers' time, over {MAX_RATIO} ×"
    return [f"start: {found}"] if over else []


def main() -> None:
    """Measures, prints, and with --check judges."""
    parser = reporting.parser("start", __doc__)
    parser.add_argument("--size", choices=("tiny", "minilm"), default="minilm")
    parser.add_argument(
        "--repeats", type=reporting.positive, default=5, help="turns of each contender"
    )
    arguments: argparse.Namespace = parser.parse_args()
    report = compare(arguments.size, arguments.repeats)
    reporting.finish(report, table(report), arguments, faults)


if __name__ == "__main__":
    main()
