"""The accelerator tests, with the figures that they print."""

import os
import sys
from typing import Any

from benchmarks.environments import ROOT
from benchmarks.gpu.job import Job, SkippedError

# pytest's options in pyproject.toml need plugins that may be missing, and make warnings errors
OPTIONS = ("-o", "addopts=", "-o", "filterwarnings=default", "-m", "accelerator", "-q")
PLUGINS = ("-p", "no:cacheprovider", "-p", "no:faulthandler")


class Figures:
    """A pytest plugin that records every test as a row."""

    def __init__(self, job: Job):
        self._job = job
        self.seen = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Records which test starts."""
        self._job.emit(begins=nodeid.rpartition("::")[2])

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Records the outcome of a test."""
        name = report.nodeid.rpartition("::")[2]
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "skipped"
            self._job.skip(name, reason.removeprefix("Skipped: "))
        elif report.when == "call" or report.failed:
            self.seen = True
            states = dict(report.user_properties).get("states", {})
            worst = {
                column: max(abs(figures[column]) for figures in states.values())
                for column in next(iter(states.values()), {})
            }
            figures = {"outcome": report.outcome, **worst, "seconds": report.duration}
            self._job.row(name, figures, states=states)
            if report.failed:
                self._job.emit(error=str(report.longreprtext)[-600:], at=name)

    def pytest_collectreport(self, report: Any) -> None:
        """Records tests that cannot be collected."""
        if report.failed:
            self._job.emit(error=str(report.longreprtext)[-600:], at="collection")


def measure(job: Job) -> None:
    """Runs tests/models/test_accelerator.py in this process."""
    if not job.installed("pytest"):
        raise SkippedError("pytest is not installed")
    if missing := [name for name in ("torch", "transformers") if not job.installed(name)]:
        raise SkippedError(f"{missing[0]} is not installed, and the reference is PyTorch")
    job.need_card()
    import pytest

    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # none is needed
    if job.dry_run:
        os.environ["MINIBERT_ACCELERATOR"] = "tiny"
    plugin = Figures(job)
    path = os.path.join(ROOT, "tests", "models", "test_accelerator.py")
    done = pytest.main([*OPTIONS, *PLUGINS, f"--rootdir={ROOT}", path], plugins=[plugin])
    sys.stdout.flush()
    job.emit(begins=None)
    if not plugin.seen and done != pytest.ExitCode.TESTS_FAILED:
        job.emit(error=f"pytest ran no test ({done!r})", at=None)
