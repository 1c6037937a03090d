"""Host time of a call of a compiled model, next to `nnx.jit` and `jax.jit`.

    python -m benchmarks.host [--calls 300] [--json PATH] [--check]

The model is a BERT with twelve tiny layers, so that the cost of the call dominates: checking
arguments, finding the program and passing 199 arrays. The contenders take turns of twenty calls,
because a call depends on the caches that the previous one leaves; times are medians. A model of
BERT-base's size has as many arrays, and costs as much.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import reporting
from benchmarks.reporting import Report

MAX_MILLISECONDS = 0.25
TURN = 20  # calls


def contenders() -> dict[str, Callable[[np.ndarray], Any]]:
    """Returns several ways to call the same model."""
    import jax
    from flax import nnx

    import minibert

    config = minibert.BertConfig.tiny(
        vocab_size=16,
        hidden_size=4,
        num_attention_heads=1,
        intermediate_size=4,
        num_hidden_layers=12,
    )
    model = minibert.BertModel(config, rngs=nnx.Rngs(0)).eval()
    return {
        "minibert.compiled": minibert.compiled(model),
        "jax.jit of the module": functools.partial(jax.jit(lambda m, ids: m(ids)), model),
        "nnx.jit of the module": functools.partial(nnx.jit(lambda m, ids: m(ids)), model),
    }


def compare(calls: int) -> Report:
    """Measures all contenders in turn, `calls` calls each, rounded up to whole turns."""
    import jax

    ids = np.ones((1, 2), np.int32)
    runs = contenders()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run(ids))
    for _, name in itertools.product(range(-(-calls // TURN)), runs):
        for _ in range(TURN):
            start = time.perf_counter()
            out = runs[name](ids)
            taken[name].append(time.perf_counter() - start)
            jax.block_until_ready(out)
    medians = {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}
    counted = len(taken["minibert.compiled"])
    return {"calls": counted, "milliseconds": medians, **reporting.taken_on("jax", "flax")}


def table(report: Report) -> Table:
    """Returns the report as a table."""
    title = f"Host time of a call of twelve layers, the median of {report['calls']}"
    made = reporting.table(report, title, "ms")
    for name, milliseconds in report["milliseconds"].items():
        made.add_row(name, f"{milliseconds:.2f}")
    return made


def faults(report: Report) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    found = report["milliseconds"]["minibert.compiled"]
    over = found > MAX_MILLISECONDS
    return [f"a call: {found:.2f} ms, over {MAX_MILLISECONDS} ms"] if over else []


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
    parser = reporting.parser("host", __doc__)
    parser.add_argument(
        "--calls", type=reporting.positive, default=300, help="calls of each contender"
    )
    arguments: argparse.Namespace = parser.parse_args()
    report = compare(arguments.calls)
    reporting.finish(report, table(report), arguments, faults)


if __name__ == "__main__":
    main()
