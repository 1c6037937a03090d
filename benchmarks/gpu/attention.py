"""Attention by length, with 32,768 tokens in a batch: where fused kernels beat the formula.

Each contender takes and returns `(batch, seq, heads × head_dim)`: minibert's `attend`; the two
implementations of `jax.nn.dot_product_attention`; PyTorch's fused attention. The kinds of masks are
padding, with rows half full to full (cuDNN also with lengths instead); causal; causal with
gradients; and texts that share rows. FLOPs are those of all scores, masked or not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import forward as plain
from benchmarks.gpu.job import Job
from benchmarks.gpu.timing import BF16, Run, alternate, jax_run, noise, torch_run

HEADS, HEAD_DIM, TOKENS = 12, 64, 1 << 15
OURS, THEIRS = "minibert", "PyTorch"
PADDING, CAUSAL, GRADIENTS, SHARED = "padding", "causal", "causal, gradients", "rows shared"
CELLS = [
    (512, PADDING),
    (128, PADDING),
    (1024, CAUSAL),
    (1024, GRADIENTS),
    (512, SHARED),
    (2048, PADDING),
    (2048, CAUSAL),
    (4096, CAUSAL),
    (4096, PADDING),
    (256, PADDING),
    (512, GRADIENTS),
    (1024, PADDING),
    (128, CAUSAL),
    (512, CAUSAL),
]
TINY = [(16, PADDING), (16, GRADIENTS), (16, SHARED)]
MEAN_TEXT = 40  # tokens of a text that shares a row
AWAY = 0.05  # maximum difference of outputs with scale 1


class Inputs(NamedTuple):
    """NumPy arrays: float32 projections, lengths of rows, and the attention mask."""

    arrays: list[np.ndarray]
    lengths: np.ndarray
    mask: np.ndarray | None
    causal: bool


def measure(job: Job) -> None:
    """Measures lengths and kinds of masks."""
    job.need_card()
    peers = job.has(THEIRS, "torch")

    def cell(name: str, given: tuple[int, str]) -> None:
        seq, kind = given
        inputs = _inputs(64 if job.dry_run else TOKENS, seq, kind)
        gradients = kind == GRADIENTS
        runs = _jax_runs(inputs, gradients)
        if peers:
            runs[THEIRS] = _torch_run(inputs, gradients)
        timed = alternate(runs, job.dry_run, required=OURS)
        figures = {f"{each}, ms": 1000 * timed.median(each) for each in timed.seconds}
        others = [each for each in timed.seconds if each != OURS]
        figures |= {f"minibert / {each}": timed.ratio(OURS, each) for each in others}
        rows = len(inputs.lengths)
        flops = (3.5 if gradients else 1) * 4 * rows * HEADS * seq**2 * HEAD_DIM
        figures |= {f"{each}, TFLOP/s": flops / timed.median(each) / 1e12 for each in timed.seconds}
        away, errors = _compared(timed.results, inputs)
        details = {"away": away, "errors": timed.errors | errors}
        job.row(name, figures, rounds=timed.seconds, **details)

    cells = TINY if job.dry_run else CELLS
    job.each({f"{seq}, {kind}": (seq, kind) for seq, kind in cells}, cell)


def _inputs(tokens: int, seq: int, kind: str) -> Inputs:
    rows = max(1, tokens // seq)
    draw = np.random.default_rng(seq)
    arrays = list(noise(4, rows, seq, HEADS * HEAD_DIM))  # the last is the output's gradient
    lengths, mask = np.full(rows, seq, np.int32), None
    if kind == PADDING:
        _, ones = plain.batch((rows, seq), 2)
        lengths = ones.sum(axis=1).astype(np.int32)
        mask = ones[:, None, None, :] == 1
    if kind == SHARED:
        texts = np.sort(draw.integers(0, max(1, seq // MEAN_TEXT), (rows, seq)), axis=1)
        mask = (texts[:, :, None] == texts[:, None, :])[:, None]
    return Inputs(arrays, lengths, mask, kind in (CAUSAL, GRADIENTS))


def _jax_runs(inputs: Inputs, gradients: bool) -> dict[str, Run]:
    import jax
    import jax.numpy as jnp

    from minibert.nn import attention

    query, key, value, along = (jnp.asarray(array, BF16) for array in inputs.arrays)
    mask = None if inputs.mask is None else jnp.asarray(inputs.mask)
    seq = query.shape[1]

    def ours(query: Any, key: Any, value: Any, mask: Any) -> Any:
        seen = attention.causal_mask(seq, seq) if inputs.causal else mask
        heads = (attention.split_heads(array, HEADS) for array in (query, key, value))
        return attention.merge_heads(attention.attend(*heads, mask=seen)[0])

    def library(query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        shape = (*query.shape[:2], HEADS, HEAD_DIM)
        heads = (array.reshape(shape) for array in (query, key, value))
        out = jax.nn.dot_product_attention(*heads, mask=mask, is_causal=inputs.causal, **options)
        return out.reshape(query.shape)

    def run(function: Callable[..., Any], mask: Any) -> Run:
        def differentiated(query: Any, key: Any, value: Any, mask: Any) -> Any:
            out, back = jax.vjp(lambda *given: function(*given, mask), query, key, value)
            return out, back(along)

        program = jax.jit(differentiated if gradients else function)
        return jax_run(lambda: program(query, key, value, mask))

    cudnn = functools.partial(library, implementation="cudnn")
    runs = {
        OURS: run(ours, mask),
        "XLA": run(functools.partial(library, implementation="xla"), mask),
        # cuDNN adds the mask to the scores, and needs a row for every query
        "cuDNN": run(cudnn, mask if mask is None else mask & jnp.ones((seq, 1), bool)),
    }
    if inputs.mask is not None and inputs.mask.shape[2] == 1:
        lengths = jnp.asarray(inputs.lengths)
        padded = functools.partial(cudnn, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
        runs["cuDNN, lengths"] = run(padded, None)
    return runs


def _torch_run(inputs: Inputs, gradients: bool) -> Run:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    arrays = [
        torch.from_numpy(array).to(device, torch.bfloat16).requires_grad_(gradients)
        for array in inputs.arrays
    ]
    *projections, along = arrays
    mask = None if inputs.mask is None else torch.from_numpy(inputs.mask).to(device)

    def attend() -> Any:
        shape = (*projections[0].shape[:2], HEADS, HEAD_DIM)
        heads = (array.view(shape).transpose(1, 2) for array in projections)
        out = torch.nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=mask, is_causal=inputs.causal
        )
        return out.transpose(1, 2).reshape(projections[0].shape)

    def call() -> Any:
        if not gradients:
            with torch.inference_mode():
                return attend()
        out = attend()
        return out, torch.autograd.grad(out, projections, along)

    return torch_run(call)


def _compared(results: dict[str, Any], inputs: Inputs) -> tuple[dict[str, float], dict[str, str]]:
    """Returns differences from ours in the last row, without padding, and who exceeds the limit."""
    real = slice(int(inputs.lengths[-1]))

    def fetched(result: Any) -> np.ndarray:
        out = result[0] if isinstance(result, tuple) else result
        row = out[-1, real]
        return np.asarray(row.float().detach().cpu() if hasattr(row, "cpu") else row, np.float32)

    ours = fetched(results[OURS])
    away = {name: float(np.abs(fetched(it) - ours).max()) for name, it in results.items()}
    errors = {name: f"{far:.2g} from minibert's" for name, far in away.items() if not far <= AWAY}
    return away, errors
