"""The entry point of the `minibert` command: from its first moment an interrupt is status 130."""

import os
import signal
import sys
import threading
from collections.abc import Callable


def main() -> None:
    """Runs the command."""
    # without PyTorch transformers advises that models won't be available, of which we need none
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    run(_minibert)


def run(load: Callable[[], Callable[[], object]]) -> None:
    """Loads a command and calls it; an interrupt is one line, and exit status 130.

    While other libraries are imported, a KeyboardInterrupt would be raised inside of them, and they
    print tracebacks: there the process ends at once. Where Python ignores exceptions, as in JAX's
    callback of the garbage collector, it is raised again a moment later. While Python exits, the
    command is done, and an interrupt is ignored.

    Args:
        load: imports and returns the command.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not in the background
    if usual:
        signal.signal(signal.SIGINT, _end)
    try:
        command = load()
        if usual:
            if hasattr(signal, "pthread_kill"):
                sys.unraisablehook = _unraisable
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except (KeyboardInterrupt, SystemExit) as reason:
        silent = getattr(reason.__context__, "__cause__", None)  # typer makes it a status alone
        if not any(isinstance(one, KeyboardInterrupt) for one in (reason, silent)):
            raise
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        # after an interrupt inside of exec with a string, which dataclasses use, Python would end
        # by the signal, although it was caught: another exec with a string undoes that
        exec("")


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    if found.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.05, _interrupt)  # not here: it would be ignored again
        again.daemon = True  # the command may end before
        again.start()
    else:
        sys.__unraisablehook__(found)


def _interrupt() -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _minibert() -> Callable[[], object]:
    from minibert.cli.app import main as command  # JAX comes with it, which takes seconds

    return command


if __name__ == "__main__":
    main()
