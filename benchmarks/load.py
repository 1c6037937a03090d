"""Time and memory of loading BERT-base from a folder, next to transformers in PyTorch.

    python -m benchmarks.load [--repeats 9] [--json PATH] [--check]

Every load is the first of a new process, and the contenders take turns, so that a busy machine
slows all equally. Imports are not timed, JAX's start-up is; the file is in the page cache.
transformers maps the file and reads a weight when it is first used. minibert's load ends with
every weight in memory, checked and in its layout; so a third contender uses each weight once.

Memory is the peak of the resident set during the load, minus what was resident before, as a
multiple of the file size. The kernel records the peak (VmHWM, reset through /proc/self/clear_refs,
so on Linux only); this is exact, whereas a sampling thread would miss peaks and slow the load.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from rich.table import Table

from benchmarks import reporting
from benchmarks.memory import forget_peak, resident

MAX_RATIO = 2.0  # of median times, minibert's to transformers'
MAX_MEMORY = 1.25  # times the file

SIZES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 97,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 80,
    },
    "medium": {
        "vocab_size": 8000,
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
    },
    "base": {},
}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WEIGHTS = "model.safetensors"


def make_folder(folder: str, size: str) -> int:
    """Writes a BERT with random float32 weights; returns the size of its weights file in bytes."""
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    BertModel(BertConfig(**SIZES[size])).save_pretrained(folder)
    return os.path.getsize(os.path.join(folder, WEIGHTS))


def minibert_load() -> Callable[[str], Any]:
    """Returns minibert's loader, which waits for every array."""
    import jax

    from minibert import BertModel

    return lambda folder: jax.block_until_ready(jax.tree.leaves(BertModel.from_pretrained(folder)))


def transformers_load() -> Callable[[str], Any]:
    """Returns transformers' loader."""
    import torch  # noqa: F401  # transformers imports it lazily, which must not be timed
    from transformers import BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return BertModel.from_pretrained


def transformers_load_and_use() -> Callable[[str], Any]:
    """Returns transformers' loader, which also reads every weight once."""
    load = transformers_load()

    def load_and_use(folder: str) -> Any:
        model = load(folder)
        return model, [parameter.detach().sum() for parameter in model.parameters()]

    return load_and_use


CONTENDERS: dict[str, Callable[[], Callable[[str], Any]]] = {
    "minibert": minibert_load,
    "transformers": transformers_load,
    "transformers, weights used once": transformers_load_and_use,
}


def load_here(contender: str, folder: str) -> dict[str, float]:
    """Loads in this process; returns seconds and peak bytes."""
    load = CONTENDERS[contender]()
    _read_into_page_cache(os.path.join(folder, WEIGHTS))
    forget_peak()
    before = resident("VmRSS")
    start = time.perf_counter()
    model = load(folder)
    seconds = time.perf_counter() - start
    peak = resident("VmHWM")
    del model
    return {"seconds": seconds, "bytes": peak - before}


def _read_into_page_cache(path: str) -> None:
    # just before each load: some systems evict pages within seconds
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def load_in_new_process(contender: str, folder: str) -> dict[str, float]:
    """Loads in a new process; returns seconds and peak bytes."""
    command = [sys.executable, "-m", "benchmarks.load", "--load", contender, folder]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(size: str, repeats: int) -> dict[str, Any]:
    """Creates a model and loads it with all contenders in turn, `repeats` times."""
    with tempfile.TemporaryDirectory() as folder:
        file_bytes = make_folder(folder, size)
        rounds = [
            {contender: load_in_new_process(contender, folder) for contender in CONTENDERS}
            for _ in range(repeats)
        ]
    results = {}
    for contender in CONTENDERS:
        seconds = [each[contender]["seconds"] for each in rounds]
        results[contender] = {
            "median": statistics.median(seconds),
            "minimum": min(seconds),
            "seconds": seconds,
            "memory": max(each[contender]["bytes"] for each in rounds) / file_bytes,
        }
    ours, theirs = results["minibert"], results["transformers"]
    return {
        "size": size,
        "repeats": repeats,
        "file_bytes": file_bytes,
        "results": results,
        "ratio": {key: ours[key] / theirs[key] for key in ("median", "minimum")},
        "memory": ours["memory"],
        **reporting.taken_on("jax", "flax", "torch", "transformers"),
    }


def table(report: dict[str, Any]) -> Table:
    """Returns the report as a table."""
    megabytes = report["file_bytes"] / 1e6
    title = f"Loading {megabytes:.1f} MB, {report['repeats']} times each"
    printed = reporting.table(report, title, "median", "minimum", "peak memory")
    for contender, result in report["results"].items():
        printed.add_row(
            contender,
            f"{1000 * result['median']:.0f} ms",
            f"{1000 * result['minimum']:.0f} ms",
            f"{result['memory']:.2f} × file",
        )
    ratio = report["ratio"]
    printed.add_section()
    printed.add_row(
        "minibert / transformers", f"{ratio['median']:.1f} ×", f"{ratio['minimum']:.1f} ×", ""
    )
    return printed


def faults(report: dict[str, Any]) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    found = []
    if report["ratio"]["median"] > MAX_RATIO:
        found.append(f"time: {report['ratio']['median']:.2f} × transformers', over {MAX_RATIO} ×")
    if report["memory"] > MAX_MEMORY:
        found.append(f"memory: {report['memory']:.2f} × the file, over {MAX_MEMORY} ×")
    return found


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
    parser = reporting.parser("load", __doc__)
    parser.add_argument("--size", choices=SIZES, default="base", help="size of the model")
    parser.add_argument(
        "--repeats", type=reporting.positive, default=9, help="loads of each contender"
    )
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)  # used by the new processes
    arguments = parser.parse_args()
    if arguments.load:
        print(json.dumps(load_here(*arguments.load)))
        return
    report = compare(arguments.size, arguments.repeats)
    reporting.finish(report, table(report), arguments, faults)


if __name__ == "__main__":
    main()
