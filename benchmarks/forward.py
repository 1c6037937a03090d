"""Time of BERT's forward pass, beside PyTorch, `torch.compile` and onnxruntime.

    python -m benchmarks.forward [--size minilm base] [--repeats 7] [--json PATH] [--check]

The same weights in all, in float32 on the CPU: all-MiniLM-L6-v2's, and random ones of BERT-base's
size. Rows of unequal lengths, padded, with a mask. Last states are compared, padding left out,
before anything is timed. The contenders take turns in one process, so that a busy machine slows all
alike, and rest before each turn: the threads of PyTorch and of onnxruntime spin for a while after a
call, JAX's do not. Times are the least of the turns.

Beside the times: the share of what the machine does in matrix products alone, measured in between.
"""

import argparse
import contextlib
import importlib.util
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import onnx, reporting
from benchmarks.contenders import installed, minilm
from benchmarks.reporting import Report

MAX_RATIO = 1.0  # of the least times, minibert's to the fastest other's
TOLERANCE = 5e-5  # of a state
REST = 0.05  # seconds before a turn

Shape = tuple[int, int]
Contender = Callable[[np.ndarray, np.ndarray], np.ndarray]

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
    "minilm": [(1, 32), (8, 128), (32, 128), (4, 512)],
    "base": [(1, 32), (8, 128), (32, 128), (4, 512)],
}


@contextlib.contextmanager
def model_folder(size: str) -> Iterator[str]:
    """The folder of MiniLM, or one with a BERT of random weights, which is swept afterwards."""
    config = SIZES[size]
    if config is None:
        yield minilm()
        return
    from flax import nnx

    import minibert

    with tempfile.TemporaryDirectory() as scratch:
        folder = os.path.join(scratch, "model")
        model = minibert.BertModel(minibert.BertConfig(**config), rngs=nnx.Rngs(0))
        model.save_pretrained(folder)
        yield folder


def minibert_forward(folder: str) -> Contender:
    """`minibert.compiled`."""
    import minibert

    fast = minibert.compiled(minibert.BertModel.from_pretrained(folder))
    return lambda ids, mask: np.asarray(fast(ids, attention_mask=mask).last_hidden_state)


def torch_forward(folder: str, compile_it: bool = False) -> Contender:
    """PyTorch with its own attention kernel; compiled, one program a shape as ours."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, attn_implementation="sdpa").eval()
    run = torch.compile(model, dynamic=False) if compile_it else model

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return run(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()

    return forward


def onnxruntime_forward(folder: str) -> Contender:
    """PyTorch's export in onnxruntime."""
    session = onnx.session(folder)
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


CONTENDERS: dict[str, Callable[[str], Contender]] = {
    "minibert": minibert_forward,
    "PyTorch": torch_forward,
    "torch.compile": lambda folder: torch_forward(folder, compile_it=True),
    "onnxruntime": onnxruntime_forward,
}
OPTIONAL = {"onnxruntime": ("onnxruntime", "onnxscript")}


def batch(shape: Shape, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of rows that are half full to full, the first one full."""
    draw = np.random.default_rng(shape)
    lengths = draw.integers(shape[1] // 2, shape[1] + 1, (shape[0], 1))
    lengths[0] = shape[1]
    ids = draw.integers(0, vocab, shape)
    return ids, (np.arange(shape[1]) < lengths).astype(np.int64)


def _config(folder: str) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def products(config: Any, shape: Shape) -> int:
    """Multiplications and additions of the layers' matrix products, padding included."""
    rows, seq = shape
    hidden, inner = config.hidden_size, config.intermediate_size
    linear = rows * seq * (4 * hidden * hidden + 2 * hidden * inner)
    return 2 * config.num_hidden_layers * (linear + 2 * rows * seq * seq * hidden)


def ceiling() -> Callable[[], float]:
    """A measurement of what the machine does in matrix products: operations a second."""
    import jax
    import jax.numpy as jnp

    size = 2048
    square = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()

    def measure() -> float:
        start = time.perf_counter()
        multiply(square, square).block_until_ready()
        return 2 * size**3 / (time.perf_counter() - start)

    return measure


def compare(sizes: list[str], repeats: int) -> Report:
    """Every contender in turn, for every shape of every size."""
    cells: dict[str, Any] = {}
    measure = ceiling()
    for size in sizes:
        with model_folder(size) as folder:
            config = _config(folder)
            runs = installed(CONTENDERS, OPTIONAL, folder)
        for shape in SHAPES[size]:
            cell = _cell(runs, *batch(shape, config.vocab_size), measure, repeats)
            work = products(config, shape) / cell["seconds"]["minibert"]
            others = [time for name, time in cell["seconds"].items() if name != "minibert"]
            cell["ratio"] = cell["seconds"]["minibert"] / min(others)
            cell["share"] = work / cell.pop("ceiling")
            cells[f"{size} {shape[0]} × {shape[1]}"] = cell
    present = [p for p in ("onnxruntime",) if importlib.util.find_spec(p)]
    taken = reporting.taken_on("jax", "flax", "torch", "transformers", *present)
    return {"repeats": repeats, "cells": cells, "contenders": [*runs], **taken}


def _cell(
    runs: dict[str, Contender],
    ids: np.ndarray,
    mask: np.ndarray,
    measure: Callable[[], float],
    repeats: int,
) -> dict[str, Any]:
    first, states = {}, {}
    for name, run in runs.items():
        first[name], states[name] = _timed(run, ids, mask)
    for name, state in states.items():
        apart = np.abs(np.where(mask[..., None], state - states["minibert"], 0)).max()
        if not apart <= TOLERANCE:
            sys.exit(f"{name}: its states are {apart:.1e} from minibert's: nothing to compare")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    most = 0.0
    for _, (name, run) in itertools.product(range(repeats), runs.items()):
        time.sleep(REST)
        seconds[name].append(_timed(run, ids, mask)[0])
        if name == "minibert":
            most = max(most, measure())
    least = {name: min(taken) for name, taken in seconds.items()}
    return {"first": first, "seconds": least, "turns": seconds, "ceiling": most}


def _timed(run: Contender, ids: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    states = run(ids, mask)
    return time.perf_counter() - start, states


def table(report: Report) -> Table:
    """The report as a table."""
    names = report["contenders"]
    title = f"Milliseconds of a forward pass, the least of {report['repeats']}"
    made = reporting.table(report, title, *names, "to the fastest other", "of the ceiling")
    for name, cell in report["cells"].items():
        times = [f"{1000 * cell['seconds'][each]:.1f}" for each in names]
        made.add_row(name, *times, f"{cell['ratio']:.2f} ×", f"{cell['share']:.0%}")
    return made


def faults(report: Report) -> list[str]:
    """Which bounds the report breaks, a sentence each."""
    return [
        f"{name}: {cell['ratio']:.2f} × the fastest other's time, over {MAX_RATIO} ×"
        for name, cell in report["cells"].items()
        if cell["ratio"] > MAX_RATIO
    ]


def main() -> None:
    """Measures, prints, and with --check judges."""
    parser = reporting.parser("forward", __doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["minilm", "base"])
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contender")
    arguments: argparse.Namespace = parser.parse_args()
    report = compare(arguments.size, arguments.repeats)
    reporting.finish(report, table(report), arguments, faults)


if __name__ == "__main__":
    main()
