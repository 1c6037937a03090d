"""A training step of GPT-2 next to PyTorch's; FLOPs are counted as in `minibert train`.

Steps follow each other without waiting except for the last loss. MFU is the step's FLOPs divided by
the card's measured rate in large products, and by its published peak.
"""

from collections.abc import Callable
from typing import Any

from benchmarks import train
from benchmarks.gpu import models
from benchmarks.gpu.job import Job
from benchmarks.gpu.timing import BF16, alternate, ceiling, jax_run, torch_run

OURS, THEIRS, COMPILE = train.OURS, "PyTorch", "PyTorch, torch.compile"
CELLS = {
    "8 × 1024": (8, 1024, THEIRS),
    "32 × 512": (32, 512, THEIRS),
    "16 × 1024": (16, 1024, THEIRS),
    "8 × 512": (8, 512, THEIRS),
    "8 × 1024, torch.compile": (8, 1024, COMPILE),
}
TINY = {"2 × 16": (2, 16, THEIRS)}
ROUNDS = 3
AGREE = 0.02  # relative difference of the first losses


def measure(job: Job) -> None:
    """Measures batches of several shapes."""
    device = job.need_card()
    peers = job.has(THEIRS, "torch", "transformers")
    most = ceiling(job)
    import minibert
    from minibert.nn.tree import parameters
    from minibert.train.metrics import PEAKS, operations

    peak = PEAKS.get(device.device_kind)
    job.note(ceiling_tflops=most / 1e12, known_peak_tflops=peak and peak / 1e12)
    folder = models.gpt2_folder(job)
    model = minibert.load(folder)
    linear, square = operations(parameters(model), model.config, over_vocabulary=True)
    steps = train.minibert_step(folder, "gpt2", BF16)
    steps |= train.torch_steps(folder, "gpt2", BF16) if peers else {}

    compared: list[str] = []

    def cell(name: str, given: tuple[int, int, str]) -> None:
        rows, length, peer = given
        batch = train.make_batch("gpt2", model.config.vocab_size, rows, length)
        runs = {OURS: jax_run(_call(steps[OURS], batch))}
        if peer in steps:
            runs[peer] = torch_run(_call(steps[peer], batch))
        timed = alternate(runs, job.dry_run, required=OURS, rounds=ROUNDS)
        figures = {f"{each}, ms": 1000 * timed.median(each) for each in timed.seconds}
        if peer in timed.seconds:
            figures[f"minibert / {peer}"] = timed.ratio(OURS, peer)
        speed = (linear + square * length) * rows * length / timed.median(OURS)
        figures |= {"tokens/s": rows * length / timed.median(OURS), "TFLOP/s": speed / 1e12}
        figures["MFU, of the ceiling"] = speed / most
        if peak:
            figures["MFU, of the peak"] = speed / peak
        stats = device.memory_stats() or {}
        figures["peak so far, GB"] = stats.get("peak_bytes_in_use", 0) / 1e9
        figures |= {f"{each}, first step, s": timed.first[each] for each in timed.seconds}
        losses = {each: float(loss) for each, loss in timed.results.items()}
        errors = dict(timed.errors)
        if not compared:  # later they have made different numbers of steps
            compared.append(name)
            errors |= {
                each: f"its first loss is {loss}, minibert's {losses[OURS]}"
                for each, loss in losses.items()
                if not abs(loss / losses[OURS] - 1) <= AGREE
            }
        job.row(name, figures, rounds=timed.seconds, losses=losses, errors=errors)

    job.each(TINY if job.dry_run else CELLS, cell)


def _call(step: train.Step, batch: dict[str, Any]) -> Callable[[], Any]:
    return lambda: step(batch)
