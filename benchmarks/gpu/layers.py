"""Single layers of BERT-base's widths, to locate the cost of a forward pass or a step.

The linear layer adds its bias in float32 and rounds once, so that its product and those of its
gradient leave the kernel in float32. It is compared with the plain formula, which rounds the
product first, and with PyTorch's layer.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu.job import Job
from benchmarks.gpu.timing import BF16, Run, alternate, jax_run, noise, torch_run

TOKENS, WIDTH, INNER = 1 << 15, 768, 3072
OURS, ROUNDED, THEIRS = "minibert", "rounded first", "PyTorch"
LINEAR, GRADIENTS, NORM = "linear 768 → 3072", "linear, gradients", "layer normalisation"


def measure(job: Job) -> None:
    """Measures a linear layer, its gradients, and a normalisation."""
    job.need_card()
    peers = job.has(THEIRS, "torch")
    tokens = 32 if job.dry_run else TOKENS
    arrays = [noise(tokens, width) for width in (WIDTH, INNER)]

    def cell(name: str, _: None) -> None:
        runs = _jax_runs(name, *arrays)
        if peers:
            runs[THEIRS] = _torch_run(name, *arrays)
        timed = alternate(runs, job.dry_run, required=OURS)
        figures = {f"{each}, ms": 1000 * timed.median(each) for each in timed.seconds}
        figures |= {f"minibert / {each}": timed.ratio(OURS, each) for each in figures_of(timed)}
        if name != NORM:
            flops = (6 if name == GRADIENTS else 2) * tokens * WIDTH * INNER
            figures["TFLOP/s"] = flops / timed.median(OURS) / 1e12
        job.row(name, figures, rounds=timed.seconds, errors=timed.errors)

    def figures_of(timed: Any) -> list[str]:
        return [each for each in timed.seconds if each != OURS]

    job.each(dict.fromkeys((LINEAR, GRADIENTS, NORM)), cell)


def _jax_runs(name: str, inputs: np.ndarray, along: np.ndarray) -> dict[str, Run]:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from minibert.nn.layers import LayerNorm, Linear

    options: dict[str, Any] = {"rngs": nnx.Rngs(0), "dtype": BF16, "param_dtype": BF16}
    given, back = jnp.asarray(inputs, BF16), jnp.asarray(along, BF16)
    if name == NORM:
        norm = LayerNorm(WIDTH, epsilon=1e-12, **options)
        program = jax.jit(lambda layer, given: layer(given))
        return {OURS: jax_run(lambda: program(norm, given))}
    linear = Linear(WIDTH, INNER, stddev=0.02, **options)
    kernel, bias = linear.kernel[...], linear.bias[...]

    def run(formula: Callable[..., Any]) -> Run:
        def gradients(*given: Any) -> Any:
            out, backward = jax.vjp(formula, *given)
            return out, backward(back)

        program = jax.jit(gradients if name == GRADIENTS else formula)
        return jax_run(lambda: program(given, kernel, bias))

    return {OURS: run(linear.project), ROUNDED: run(lambda x, w, b: x @ w + b)}


def _torch_run(name: str, inputs: np.ndarray, along: np.ndarray) -> Run:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    given, back = (torch.from_numpy(it).to(device, torch.bfloat16) for it in (inputs, along))
    kind = torch.nn.LayerNorm(WIDTH) if name == NORM else torch.nn.Linear(WIDTH, INNER)
    layer = kind.to(device, torch.bfloat16)

    def call() -> Any:
        if name != GRADIENTS:
            with torch.inference_mode():
                return layer(given)
        out = layer(given.requires_grad_())
        return torch.autograd.grad(out, [given, *layer.parameters()], back)

    return torch_run(call)
