"""Processes forked from one that has imported what they run: they start at once."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from checkout import PYTHONPATH

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["convert.__main__", "training"])


class Forked:
    """A process that calls `function(*arguments)`, as `subprocess.Popen` would have it.

    Args:
        function: of a module that can be imported.
        arguments: what it is called with.
        programs: where JAX keeps the programs that it compiles; a killed one may leave half of one.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, programs: os.PathLike[str]):
        self.printed, writing = SERVER.Pipe(duplex=False)
        given = (writing, str(programs), function, arguments)
        self.process = SERVER.Process(target=_run, args=given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", PYTHONPATH)  # of the process that all are forked from
            patch.setenv("JAX_PLATFORMS", "cpu")
            self.process.start()
        writing.close()

    def poll(self) -> int | None:
        """Its exit status, None as long as it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.process.pid, number)

    def communicate(self, timeout: float = 600) -> str:
        """Returns what it prints, when all who could print more have ended: its children too."""
        printed = b""
        while self.printed.poll(timeout):
            if not (more := os.read(self.printed.fileno(), 65536)):
                break
            printed += more
        else:
            raise TimeoutError(f"neither ended nor printed anything in {timeout} s")
        self.process.join()
        return printed.decode()


def _run(writing: Any, programs: str, function: Callable[..., Any], arguments: Any) -> None:
    import jax

    os.dup2(writing.fileno(), 1)
    writing.close()
    sys.stdout = os.fdopen(1, "w", closefd=False)
    jax.config.update("jax_compilation_cache_dir", programs)
    try:
        function(*arguments)
    finally:
        sys.stdout.flush()
