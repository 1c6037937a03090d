"""BERT's forward pass next to PyTorch's, with inputs on the device.

For each pass it measures the time in a sequence of passes, and the time of a synchronous call with
NumPy arrays. The fraction of the peak counts only matrix products, padding included.
"""

import re
from collections import Counter
from typing import Any

import numpy as np

from benchmarks import forward as plain
from benchmarks.gpu import models
from benchmarks.gpu.job import Job, SkippedError
from benchmarks.gpu.timing import BF16, Run, Timed, alternate, ceiling, jax_run, torch_run

CELLS = {
    f"{size} {rows} × {seq}": (size, (rows, seq))
    for size, rows, seq in [
        ("base", 32, 128),
        ("base", 32, 512),
        ("base", 1, 128),
        ("minilm", 256, 128),
        ("base", 256, 128),
        ("minilm", 32, 128),
        ("base", 128, 512),
        ("minilm", 1, 64),
        ("base", 8, 128),
        ("base", 8, 512),
        ("base", 256, 64),
        ("minilm", 256, 512),
        ("minilm", 128, 64),
        ("base", 1, 512),
        ("base", 256, 512),
        ("base", 128, 128),
        ("minilm", 8, 128),
        ("minilm", 32, 512),
    ]
}
TINY = {"base 2 × 16": ("base", (2, 16))}
COMPILED = ("base 32 × 128", "base 1 × 128", "base 32 × 512", "minilm 256 × 128")
OURS, THEIRS, COMPILE = "minibert", "PyTorch", "torch.compile"
WHOLE = 15  # maximum number of whole calls
COMPARED = 4  # rows of a batch whose states are compared
APART = 0.05  # maximum RMS difference of states, relative to RMS; six layers: 0.010


class Models:
    """Models of both libraries, each loaded when first used."""

    def __init__(self, job: Job):
        self._job, self._made = job, {}
        self.torch = job.has(THEIRS, "torch", "transformers")

    def ours(self, size: str) -> Any:
        """Returns a compiled model of minibert."""
        import minibert

        options = {"dtype": BF16, "param_dtype": BF16}
        return self._once(
            ("minibert", size),
            lambda path: minibert.compiled(minibert.BertModel.from_pretrained(path, **options)),
            size,
        )

    def theirs(self, size: str, compiler: str | None = None) -> Any:
        """Returns a PyTorch model."""
        from benchmarks.peers import torch_model

        return self._once((compiler, size), lambda path: torch_model(path, BF16, compiler), size)

    def load(self, size: str) -> None:
        """Loads both, so that loading is not part of the first cell's time."""
        self.ours(size)
        if self.torch:
            self.theirs(size)

    def _once(self, key: Any, make: Any, size: str) -> Any:
        if key not in self._made:
            self._made[key] = make(models.bert_folder(self._job, size))
        return self._made[key]


def measure(job: Job) -> None:
    """Measures every shape, next to PyTorch with fused attention."""
    job.need_card()
    made = Models(job)
    most = ceiling(job)
    job.note(ceiling_tflops=most / 1e12)
    made.load("base")

    def cell(name: str, given: tuple[str, tuple[int, int]]) -> None:
        size, shape = given
        ids, mask = plain.batch(shape, _vocab(job, size))
        runs, calls, programs = _ours(made.ours(size), ids, mask)
        if made.torch:
            pair = _theirs(*made.theirs(size), ids, mask)
            runs, calls = runs | {THEIRS: pair[0]}, calls | {THEIRS: pair[1]}
        timed = alternate(runs, job.dry_run, required=OURS)
        whole = alternate(calls, job.dry_run, required=OURS, burst=False, rounds=WHOLE)
        figures = _figures(timed) | {
            f"{each} from NumPy, ms": 1000 * whole.median(each) for each in whole.seconds
        }
        speed = plain.products(models.bert_config(job, size), shape) / timed.median(OURS)
        figures |= {"TFLOP/s": speed / 1e12, "of the ceiling": speed / most}
        job.row(name, figures, **_details(timed, mask), program=programs())

    job.each(TINY if job.dry_run else CELLS, cell)


def beside_compiled(job: Job) -> None:
    """Measures a few shapes next to torch.compile, whose compilation takes long."""
    job.need_card()
    made = Models(job)
    if not made.torch:
        raise SkippedError("there is no PyTorch to compare with")
    cells = TINY if job.dry_run else {name: CELLS[name] for name in COMPILED}
    made.load("base")
    compiler = "eager" if job.dry_run else "inductor"  # the latter needs a C++ compiler on a CPU

    def cell(name: str, given: tuple[str, tuple[int, int]]) -> None:
        size, shape = given
        ids, mask = plain.batch(shape, _vocab(job, size))
        runs, _, _ = _ours(made.ours(size), ids, mask)
        runs[THEIRS] = _theirs(*made.theirs(size), ids, mask)[0]
        runs[COMPILE] = _theirs(*made.theirs(size, compiler), ids, mask)[0]
        timed = alternate(runs, job.dry_run, required=OURS)
        job.row(name, _figures(timed), **_details(timed, mask))

    job.each(cells, cell)


def _vocab(job: Job, size: str) -> int:
    return models.bert_config(job, size).vocab_size


def _ours(fast: Any, ids: np.ndarray, mask: np.ndarray) -> Any:
    """Returns the program, a whole call, and a function that returns the program's kernels."""
    import jax
    import jax.numpy as jnp

    from minibert.models import compilation
    from minibert.models.stack import with_execution

    leaves, treedef = jax.tree.flatten(with_execution(fast.model, row_groups=True))
    program = compilation.program(
        compilation._forward, treedef, ()
    )  # what `fast` calls, without its checks
    given = {"input_ids": jnp.asarray(ids, jnp.int32), "attention_mask": jnp.asarray(mask, bool)}
    run = jax_run(lambda: program(leaves, given).last_hidden_state)
    call = jax_run(lambda: fast(ids, attention_mask=mask).last_hidden_state)
    return {OURS: run}, {OURS: call}, lambda: kernels(program.lower(leaves, given).compile())


def _theirs(model: Any, device: str, ids: np.ndarray, mask: np.ndarray) -> tuple[Run, Run]:
    import torch

    given = [torch.from_numpy(array).to(device) for array in (ids, mask)]

    def run() -> Any:
        with torch.inference_mode():
            return model(*given).last_hidden_state

    def call() -> Any:
        with torch.inference_mode():
            here = (torch.from_numpy(array).to(device) for array in (ids, mask))
            return model(*here).last_hidden_state

    return torch_run(run), torch_run(call)


def _figures(timed: Timed) -> dict[str, float]:
    others = [name for name in timed.seconds if name != OURS]
    return (
        {f"{name}, ms": 1000 * timed.median(name) for name in timed.seconds}
        | {f"minibert / {name}": timed.ratio(OURS, name) for name in others}
        | {f"{name}, first call, s": timed.first[name] for name in timed.seconds}
    )


def _details(timed: Timed, mask: np.ndarray) -> dict[str, Any]:
    """Returns the rounds, errors of peers, and the differences of their states from ours."""
    real = mask[:COMPARED] == 1
    states = {name: _fetched(result[:COMPARED]) for name, result in timed.results.items()}
    apart, errors = {}, dict(timed.errors)
    for name, state in states.items():
        difference, ours = (state - states[OURS])[real], states[OURS][real]
        apart[name] = float(np.sqrt(np.mean(difference**2) / np.mean(ours**2)))
        if not apart[name] <= APART:
            errors[name] = f"its states are {apart[name]:.1%} from minibert's"
    return {"rounds": timed.seconds, "apart": apart, "errors": errors}


def _fetched(states: Any) -> np.ndarray:
    fetched = states.float().cpu().numpy() if hasattr(states, "cpu") else states
    return np.asarray(fetched, np.float32)


def kernels(compiled: Any) -> dict[str, int]:
    """Returns the number of calls of each library, fusions and branches of a compiled program."""
    text = compiled.as_text()
    counted = Counter(re.findall(r'custom_call_target="([^"]+)"', text))
    for kind in ("fusion", "conditional", "while"):
        counted[kind] = len(re.findall(rf"= .* {kind}\(", text))
    memory = compiled.memory_analysis()
    return dict(counted) | {"temporary bytes": getattr(memory, "temp_size_in_bytes", 0)}
