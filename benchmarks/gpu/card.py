"""The limits of the card: rate of matrix products, and memory bandwidth."""

from benchmarks.gpu.job import Job
from benchmarks.gpu.timing import BF16, bandwidth, ceiling


def measure(job: Job) -> None:
    """Measures the limits with which the figures of other steps are compared."""
    device = job.need_card()
    from minibert.train.metrics import PEAKS

    stats = device.memory_stats() or {}
    job.note(
        device_kind=device.device_kind,
        platform=device.platform,
        memory_gb=round(stats.get("bytes_limit", 0) / 1e9, 1),
        known_peak_tflops=PEAKS[device.device_kind] / 1e12 if device.device_kind in PEAKS else None,
    )
    cells = {
        "bfloat16": (BF16, None),
        "float32, JAX's default precision": ("float32", None),
        "float32, highest precision": ("float32", "highest"),
    }

    def products(name: str, cell: tuple[str, str | None]) -> None:
        job.row(name, {"TFLOP/s": ceiling(job, *cell) / 1e12})

    job.each(cells, products)
    job.each({"copy": None}, lambda name, _: job.row(name, {"GB/s": bandwidth(job) / 1e9}))
