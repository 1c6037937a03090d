"""Time and host memory of BERT's forward pass, next to PyTorch, onnxruntime and others.

    python -m benchmarks.forward [--size minilm base] [--dtype float32] [--repeats 7] [--check]

All have the same weights: those of all-MiniLM-L6-v2, and random ones of BERT-base's size. Rows have
unequal lengths and are padded, with a mask. The last states are compared, without padding, before
timing; contenders with other states are timed, but not counted. Each contender runs in its own
process; they take turns, so that a busy machine slows all equally, with a rest before each turn:
the threads of PyTorch and of onnxruntime spin for a while after a call, JAX's do not. A short pass
is preceded by ten untimed ones, which warm up cores and caches. Times are the minimum of the turns.
`python -m benchmarks setup` creates the environments of other peers.

The table also has the fraction of the machine's rate in matrix products, measured in between. The
device is the one that JAX and PyTorch find; on an accelerator --dtype bfloat16 is the usual choice.
"""

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from benchmarks import environments, reporting
from benchmarks.contenders import minilm
from benchmarks.peers import CONTENDERS, Peer, installed
from benchmarks.reporting import Report

MAX_RATIO = 1.0  # of minimum times, minibert's to the fastest other's
FASTEST = ("PyTorch", "torch.compile", "onnxruntime")  # of which at least one must be present
TOLERANCE = {"float32": 5e-5, "bfloat16": 0.2}  # of a state
REST = 0.05  # seconds before a turn
SHORT = 0.1  # seconds; shorter passes are preceded by warm-up
WARM = 10  # warm-up passes

Shape = tuple[int, int]

SIZES: dict[str, dict[str, int] | None] = {
    "tiny": {
        "vocab_size": 97,
        "hidden_size": 24,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "intermediate_size": 80,
    },
    "minilm": None,
    "base": {},
}
SHAPES: dict[str, list[Shape]] = {
    "tiny": [(1, 8), (2, 16)],
    "cpu": [(1, 32), (8, 128), (32, 128), (4, 512)],
    "accelerator": [(1, 32), (32, 128), (256, 128), (64, 512)],
}


@contextlib.contextmanager
def model_folder(size: str) -> Iterator[str]:
    """Yields the folder of MiniLM, or a temporary one with a BERT with random weights."""
    config = SIZES[size]
    if config is None:
        yield minilm()
        return
    with random_folder(config) as folder:
        yield folder


@contextlib.contextmanager
def random_folder(config: dict[str, int]) -> Iterator[str]:
    """Yields a temporary folder with a BERT with random weights."""
    from flax import nnx

    import minibert

    with tempfile.TemporaryDirectory() as scratch:
        folder = os.path.join(scratch, "model")
        model = minibert.BertModel(minibert.BertConfig(**config), rngs=nnx.Rngs(0))
        model.save_pretrained(folder)
        yield folder


def batch(shape: Shape, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and mask of rows that are half full to full, the first one full."""
    draw = np.random.default_rng(shape)
    lengths = draw.integers(shape[1] // 2, shape[1] + 1, (shape[0], 1))
    lengths[0] = shape[1]
    ids = draw.integers(0, vocab, shape)
    return ids, (np.arange(shape[1]) < lengths).astype(np.int64)


def products(config: Any, shape: Shape) -> int:
    """Returns the FLOPs of the layers' matrix products, padding included."""
    rows, seq = shape
    hidden, inner = config.hidden_size, config.intermediate_size
    linear = rows * seq * (4 * hidden * hidden + 2 * hidden * inner)
    return 2 * config.num_hidden_layers * (linear + 2 * rows * seq * seq * hidden)


def ceiling(dtype: str) -> Callable[[], float]:
    """Returns a function that measures the rate of matrix products in FLOP/s."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()

    def measure() -> float:
        start = time.perf_counter()
        multiply(square, square).block_until_ready()
        return 2 * size**3 / (time.perf_counter() - start)

    return measure


def compare(sizes: list[str], dtype: str, repeats: int) -> Report:
    """Measures all contenders in turn, for every shape of every size."""
    device = reporting.device()
    import jax

    measure = ceiling(dtype)
    names, cells, loads = installed(dtype, device), {}, {}
    for size in sizes:
        shapes = SHAPES["tiny" if size == "tiny" else "cpu" if device == "cpu" else "accelerator"]
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(model_folder(size))
            config = _config(folder)
            runs = {name: stack.enter_context(Peer(name, folder, dtype)) for name in names}
            loads[size] = {name: run.load for name, run in runs.items()}
            for shape in shapes:
                given = batch(shape, config.vocab_size)
                cell = in_turn(runs, *given, measure, repeats, TOLERANCE[dtype])
                cell["share"] = products(config, shape) / cell["seconds"]["minibert"]
                cell["share"] /= cell.pop("ceiling")
                cells[f"{size} {shape[0]} × {shape[1]}"] = cell
    taken = reporting.taken_on("jax", "flax", "torch", "transformers", "onnxruntime")
    for name in names:
        if (environment := CONTENDERS[name].environment) is not None:
            there = environments.versions(environments.python(environment) or "")
            package = environments.PACKAGES[environment][0].partition("==")[0]
            taken["versions"] |= {f"{name}:": f"{package} {there[package]} (jax {there['jax']})"}
    report = {"repeats": repeats, "dtype": dtype, "device": jax.devices()[0].device_kind}
    return report | {"cells": cells, "loads": loads, "contenders": names, **taken}


def _config(folder: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def in_turn(
    runs: dict[str, Any],
    ids: np.ndarray,
    mask: np.ndarray,
    measure: Callable[[], float],
    repeats: int,
    tolerance: float,
) -> dict[str, Any]:
    """Runs all contenders in turn on a batch: seconds, memory, and whose states differ."""
    first, states, memory = {}, {}, {}
    for name, run in runs.items():
        first[name], states[name], memory[name] = run(ids, mask)
    short = min(run(ids, mask)[0] for run in runs.values()) < SHORT
    differ = {}
    for name, state in states.items():
        apart = np.abs(np.where(mask[..., None], state - states["minibert"], 0)).max()
        if not apart <= tolerance:
            differ[name] = float(apart)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    most = 0.0
    for _, (name, run) in itertools.product(range(repeats), runs.items()):
        time.sleep(REST)
        for _ in range(WARM if short else 0):
            run(ids, mask)
        taken, _, peak = run(ids, mask)
        memory[name] = max(memory[name], peak)
        seconds[name].append(taken)
        if name == "minibert":
            most = max(most, measure())
    least = {name: min(taken) for name, taken in seconds.items()}
    others = [least[name] for name in runs if name != "minibert" and name not in differ]
    if not others:
        sys.exit(f"no other has minibert's states: {differ}")
    return {
        "first": first,
        "seconds": least,
        "turns": seconds,
        "memory": memory,
        "differ": differ,
        "ratio": least["minibert"] / min(others),
        "ceiling": most,
    }


def tables(report: Report) -> Group:
    """Returns the report as tables: times, and other figures."""
    names = report["contenders"]
    title = (
        f"Milliseconds of a forward pass, the least of {report['repeats']}, {report['dtype']}, "
        f"{report['device']}"
    )
    made = reporting.table(report, title, *names, "to the fastest other", "of the ceiling")
    for name, cell in report["cells"].items():
        times = [
            f"({1000 * cell['seconds'][each]:.1f})"
            if each in cell["differ"]
            else f"{1000 * cell['seconds'][each]:.1f}"
            for each in names
        ]
        made.add_row(name, *times, f"{cell['ratio']:.2f} ×", f"{cell['share']:.0%}")
    beside = Table(title="Other figures")
    for column in ("", *names):
        beside.add_column(column, justify="right" if column else "left", no_wrap=True)
    for size, loads in report["loads"].items():
        cells = {name: cell for name, cell in report["cells"].items() if name.startswith(size)}
        beside.add_row(f"{size}: load, s", *(f"{loads[name]:.2f}" for name in names))
        for name, cell in cells.items():
            beside.add_row(
                f"{name}: first call, s", *(f"{cell['first'][each]:.2f}" for each in names)
            )
        peaks = [max(cell["memory"][name] for cell in cells.values()) for name in names]
        beside.add_row(f"{size}: host peak, MB", *(f"{peak / 1e6:,.0f}" for peak in peaks))
    apart = {}
    for cell in report["cells"].values():
        for name, found in cell["differ"].items():
            apart[name] = max(found, apart.get(name, 0))
    notes = [
        f"{name} has other states; maximum difference {most:.1e}" for name, most in apart.items()
    ]
    return Group(made, beside, *notes)


def faults(report: Report) -> list[str]:
    """Returns the bounds that the report breaks, a sentence each."""
    at_home = (report["device"], report["dtype"]) == ("cpu", "float32")
    absent = [name for name in FASTEST if at_home and name not in report["contenders"]]
    return [f"{name} was not measured" for name in absent] + [
        f"{name}: {cell['ratio']:.2f} × the fastest other's time, over {MAX_RATIO} ×"
        for name, cell in report["cells"].items()
        if cell["ratio"] > MAX_RATIO
    ]


def main() -> None:
    """Measures and prints; checks the bounds with --check."""
    parser = reporting.parser("forward", __doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["minilm", "base"])
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="dtype to compute in")
    parser.add_argument(
        "--repeats", type=reporting.positive, default=7, help="turns of each contender"
    )
    arguments: argparse.Namespace = parser.parse_args()
    report = compare(arguments.size, arguments.dtype, arguments.repeats)
    reporting.finish(report, tables(report), arguments, faults)


if __name__ == "__main__":
    main()
