"""Times of asynchronous devices: bursts of calls, in turn, each burst waited for at its end."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.gpu.job import Job, text_of

SAMPLE = 0.04  # seconds of a burst
ROUNDS = 5
MOST = 200  # calls of a burst
LONG = 2.0  # seconds after which there are no more rounds than FEW
FEW = 2
POOL = (1 << 20) + 7  # random numbers, which larger arrays repeat
BF16 = "bfloat16"


class Run(NamedTuple):
    """A computation on a device.

    Attributes:
        call: begins it and returns its result, which may not be there yet.
        wait: takes a result, and returns when it is there and all that was begun before it.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]


def jax_run(call: Callable[[], Any]) -> Run:
    """A computation of JAX's."""
    import jax

    return Run(call, jax.block_until_ready)


def torch_run(call: Callable[[], Any]) -> Run:
    """A computation of PyTorch's, on a GPU if it finds one; no gradients unless `call` asks."""
    import torch

    return Run(call, lambda _: torch.cuda.synchronize() if torch.cuda.is_available() else None)


class Timed(NamedTuple):
    """What `alternate` measures.

    Attributes:
        seconds: by name, the time of a call in each round.
        first: by name, the seconds of the first call, which compiles.
        results: by name, the first call's result.
        errors: by name, why there are no times.
    """

    seconds: dict[str, list[float]]
    first: dict[str, float]
    results: dict[str, Any]
    errors: dict[str, str]

    def median(self, name: str) -> float:
        """The median time of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """The median of the rounds' ratios of two times."""
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
        runs: by name. What fails at its first calls is recorded in `errors` and left out.
        dry_run: whether a single round of short bursts is enough.
        required: the run that must not fail.
        burst: whether calls follow each other without waiting; else each is waited for.
        rounds: how many times each has its turn, at most.

    Raises:
        Exception: whatever the required run raises.
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
    begun = time.perf_counter()
    for done in range(FEW if dry_run else rounds):
        if done >= FEW and time.perf_counter() - begun > LONG:
            break
        for name, count in calls.items():
            timed.seconds.setdefault(name, []).append(_burst(runs[name], count))
    return timed


def noise(*shape: int) -> np.ndarray:
    """Normal float32 numbers: what a device multiplies at its speed for real ones."""
    return np.resize(np.random.default_rng(0).standard_normal(POOL, np.float32), shape)


def _burst(run: Run, count: int) -> float:
    """The seconds of one call of some that follow each other."""
    start = time.perf_counter()
    for _ in range(count):
        result = run.call()
    run.wait(result)
    return (time.perf_counter() - start) / count


def ceiling(job: Job, dtype: str = BF16, precision: str | None = None) -> float:
    """What the device does in large matrix products: FLOP/s, the most of a few bursts."""
    import jax
    import jax.numpy as jnp

    size = 256 if job.dry_run else 8192
    square = jnp.asarray(noise(size, size), dtype)
    multiply = jax.jit(lambda a: jnp.matmul(a, a, precision=precision))
    return 2 * size**3 / _least(job, lambda: multiply(square))


def bandwidth(job: Job) -> float:
    """Bytes a second that the device reads and writes in a large copy, the most of a few bursts."""
    import jax
    import jax.numpy as jnp

    size = (1 << 16) if job.dry_run else (1 << 30)
    numbers = jnp.ones(size // 4, jnp.float32)
    add = jax.jit(lambda a: a + 1)
    return 2 * size / _least(job, lambda: add(numbers))


def _least(job: Job, call: Callable[[], Any]) -> float:
    return min(alternate({"it": jax_run(call)}, job.dry_run, required="it").seconds["it"])
