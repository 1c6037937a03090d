"""Processes forked from one that has already imported their modules, so that they start fast."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from checkout import PYTHONPATH

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["minibert.cli.convert", "sharded", "training"])


class Forked:
    """A process that calls `function(*arguments)`, with an interface like `subprocess.Popen`.

    Args:
        function: a function of a module that can be imported.
        arguments: the arguments of the function.
        environment: variables in addition to those of this process.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, **environment: str):
        self.printed, writing = SERVER.Pipe(duplex=False)
        given = (writing, {**os.environ, **environment}, function, arguments)
        self.process = SERVER.Process(target=_run, args=given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", PYTHONPATH)  # of the process that all are forked from
            patch.setenv("JAX_PLATFORMS", "cpu")
            self.process.start()
        writing.close()

    def poll(self) -> int | None:
        """Returns the exit status, None while the process runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Ends it at once, if it still runs."""
        self.process.kill()

    def communicate(self, timeout: float = 600) -> str:
        """Returns the output, after the process and all its children have exited."""
        printed = b""
        while self.printed.poll(timeout):
            if not (more := os.read(self.printed.fileno(), 65536)):
                break
            printed += more
        else:
            raise TimeoutError(f"neither ended nor printed anything in {timeout} s")
        self.process.join()
        return printed.decode()


def _run(
    writing: Any, environment: dict[str, str], function: Callable[..., Any], arguments: Any
) -> None:
    import jax

    os.dup2(writing.fileno(), 1)
    writing.close()
    sys.stdout = os.fdopen(1, "w", closefd=False)
    os.environ.update(environment)  # which JAX has read, but for the flags of XLA
    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    unoptimised = environment.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1"
    jax.config.update("jax_disable_most_optimizations", unoptimised)
    try:
        function(*arguments)
    finally:
        sys.stdout.flush()
