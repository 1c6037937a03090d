"""Timing of asynchronous devices: bursts of calls in turn, each synchronised at its end."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.job import Job, text_of

SAMPLE = 0.04  # seconds of a burst
ROUNDS = 5
MOST = 200  # maximum calls of a burst
LONG = 2.0  # seconds after which no more rounds than FEW are made
FEW = 2
POOL = (1 << 20) + 7  # random numbers, repeated in larger arrays
BF16 = "bfloat16"


class Run(NamedTuple):
    """A computation on a device.

    Attributes:
        call: starts it and returns its result, possibly not yet computed.
        wait: waits for a result and everything that was started before it.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]


def jax_run(call: Callable[[], Any]) -> Run:
    """Returns a JAX computation."""
    import jax

    return Run(call, jax.block_until_ready)


def torch_run(call: Callable[[], Any]) -> Run:
    """Returns a PyTorch computation, on a GPU if available; without gradients by default."""
    import torch

    return Run(call, lambda _: torch.cuda.synchronize() if torch.cuda.is_available() else None)


class Timed(NamedTuple):
    """The result of `alternate`, by name of the computation.

    Attributes:
        seconds: the time of a call in each round.
        first: the seconds of the first call, which compiles.
        results: the first call's result.
        errors: why there are no times.
    """

    seconds: dict[str, list[float]]
    first: dict[str, float]
    results: dict[str, Any]
    errors: dict[str, str]

    def median(self, name: str) -> float:
        """Returns the median time of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Returns the median over rounds of the ratio of two times."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(one / two for one, two in pairs)


def alternate(
    runs: dict[str, Run],
    dry_run: bool,
    *,
    required: str | None = None,
    burst: bool = True,
    rounds: int = ROUNDS,
) -> Timed:
    """Times computations in turn.

    Args:
        runs: computations by name. One that fails at first is recorded in `errors` and left out.
        dry_run: whether to measure a single round of short bursts.
        required: the computation that must not fail.
        burst: whether calls follow each other without waiting; otherwise each is synchronised.
        rounds: maximum number of turns of each.

    Raises:
        Exception: any error of the required computation.
    """
    timed = Timed({}, {}, {}, {})
    calls: dict[str, int] = {}
    for name, run in runs.items():
        try:
            start = time.perf_counter()
            timed.results[name] = run.call()
            run.wait(timed.results[name])
            timed.first[name] = time.perf_counter() - start
            once = _burst(run, 1)
            if once < SAMPLE:
                once = _burst(run, 3)
        except Exception as reason:
            if name == required:
                raise
            timed.results.pop(name, None)
            timed.errors[name] = text_of(reason)
            continue
        sample = SAMPLE / 10 if dry_run else SAMPLE
        calls[name] = max(1, min(MOST, int(sample / once))) if burst else 1
    started = time.perf_counter()
    for done in range(FEW if dry_run else rounds):
        if done >= FEW and time.perf_counter() - started > LONG:
            break
        for name, count in calls.items():
            timed.seconds.setdefault(name, []).append(_burst(runs[name], count))
    return timed


def noise(*shape: int) -> np.ndarray:
    """Returns normal float32 numbers, which devices multiply at a realistic speed."""
    return np.resize(np.random.default_rng(0).standard_normal(POOL, np.float32), shape)


def _burst(run: Run, count: int) -> float:
    """Returns the seconds per call of a burst."""
    start = time.perf_counter()
    for _ in range(count):
        result = run.call()
    run.wait(result)
    return (time.perf_counter() - start) / count


def ceiling(job: Job, dtype: str = BF16, precision: str | None = None) -> float:
    """Returns the rate of large matrix products in FLOP/s, the maximum of a few bursts."""
    import jax
    import jax.numpy as jnp

    size = 256 if job.dry_run else 8192
    square = jnp.asarray(noise(size, size), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    return 2 * size**3 / _least(job, lambda: multiply(square))


def bandwidth(job: Job) -> float:
    """Returns the bytes per second read and written in a large copy, the maximum of few bursts."""
    import jax
    import jax.numpy as jnp

    size = (1 << 16) if job.dry_run else (1 << 30)
    numbers = jnp.ones(size // 4, jnp.float32)
    add = jax.jit(lambda a: a + 1)
    return 2 * size / _least(job, lambda: add(numbers))


def _least(job: Job, call: Callable[[], Any]) -> float:
    return min(alternate({"it": jax_run(call)}, job.dry_run, required="it").seconds["it"])
