"""Ctrl-C and SIGTERM, asked for and not suffered."""

import contextlib
import signal
import threading
from collections.abc import Generator
from typing import Any

import jax


@contextlib.contextmanager
def interruption() -> Generator[threading.Event]:
    """Yields what is set when SIGINT or SIGTERM comes; the second one raises."""
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
