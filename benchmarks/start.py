"""Time from the start of a process to its first vectors, next to sentence-transformers.

    python -m benchmarks.start [--size minilm] [--repeats 5] [--json PATH] [--check]

Every turn is a new process that imports, loads all-MiniLM-L6-v2 and encodes eight texts. minibert
runs without a compilation cache and with one that an earlier process has filled
(JAX_COMPILATION_CACHE_DIR). The contenders take turns; times are medians.
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

MAX_RATIO = 1.0  # of medians, minibert's with cache to sentence-transformers'

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
    """Returns the seconds of running code in a new process."""
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
    """Returns whether a variable configures JAX's compilation cache, which a turn sets itself."""
    return name.startswith("JAX_") and "CACHE" in name


def compare(size: str, repeats: int) -> Report:
    """Measures all contenders in turn, `repeats` times, after an uncounted first turn."""
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
    """Returns the report as a table."""
    title = f"From a process's start to its first vectors, the median of {report['repeats']}"
    made = reporting.table(report, title, "s", "to sentence-transformers")
    for name, seconds in report["seconds"].items():
        ratio = seconds / report["seconds"]["sentence-transformers"]
        made.add_row(name, f"{seconds:.1f}", f"{ratio:.2f} ×")
    return made


def faults(report: Report) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    over = report["ratio"] > MAX_RATIO
    found = f"{report['ratio']:.2f} × sentence-transformers' time, over {MAX_RATIO} ×"
    return [f"start: {found}"] if over else []


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
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
