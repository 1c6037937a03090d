"""Greedy decoding with GPT-2, whole calls including prompts, next to transformers.

As in `benchmarks.generate`: 64 tokens after 32, the time divided by 64. Every token reads all
weights once; the fraction of the bandwidth counts only their bytes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import generate
from benchmarks.gpu import models
from benchmarks.gpu.job import Job
from benchmarks.gpu.timing import BF16, Run, alternate, bandwidth

OURS, THEIRS, STATIC = "minibert", "transformers", "transformers, static cache"
CELLS = {
    "batch 1": (1, THEIRS),
    "batch 64": (64, THEIRS),
    "batch 8": (8, THEIRS),
    "batch 1, static cache": (1, STATIC),  # for which transformers compiles its step
}
TINY = {"batch 2": (2, THEIRS)}
ROUNDS = 2


def measure(job: Job) -> None:
    """Measures batches of several sizes."""
    job.need_card()
    peers = job.has(THEIRS, "torch", "transformers")
    folder = models.gpt2_folder(job)
    contenders: dict[str, Any] = generate.minibert_contenders(folder, BF16)
    if peers:
        contenders |= generate.transformers_contenders(folder, BF16)
    import minibert
    from minibert.nn.tree import parameters

    model = minibert.GPT2LMHeadModel.from_pretrained(folder, param_dtype=BF16)
    weights = sum(leaf.nbytes for leaf in parameters(model).values())
    speed = bandwidth(job)
    vocab = model.config.vocab_size
    job.note(copies_gb_s=speed / 1e9, bytes_of_weights=weights)

    def cell(name: str, given: tuple[int, str]) -> None:
        batch, peer = given
        ids = np.random.default_rng(batch).integers(0, vocab, (batch, generate.PROMPT))
        runs = {
            each: Run(_call(contenders[each], ids), lambda _: None)
            for each in (OURS, peer)
            if each in contenders
        }
        timed = alternate(runs, job.dry_run, required=OURS, burst=False, rounds=ROUNDS)
        each_token = timed.median(OURS) / generate.NEW
        figures = {
            f"{each}, ms a token": 1000 * timed.median(each) / generate.NEW
            for each in timed.seconds
        }
        if peer in timed.seconds:
            figures |= {f"minibert / {peer}": timed.ratio(OURS, peer)}
        figures |= {"tokens/s": batch / each_token}
        figures |= {"of the bandwidth": weights / each_token / speed}
        figures |= {f"{each}, first call, s": timed.first[each] for each in timed.seconds}
        job.row(name, figures, rounds=timed.seconds, errors=timed.errors)

    cells = TINY if job.dry_run else CELLS
    job.each({name: it for name, it in cells.items() if peers or it[1] != STATIC}, cell)


def _call(contender: Callable[[np.ndarray], np.ndarray], ids: np.ndarray) -> Callable[[], Any]:
    return lambda: contender(ids)
