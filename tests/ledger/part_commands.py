"""What the commands say of themselves, 100 columns wide and without colours."""

import contextlib
import difflib
import io
import re
import runpy
import signal
import sys
import warnings
from unittest import mock

from .records import Comparison, Record

SUBCOMMANDS = "answer classify demo embed fill-mask generate inspect similar train".split()
COMMANDS = [
    ["minibert", "--help"],
    *(["minibert", name, "--help"] for name in SUBCOMMANDS),
    ["convert", "--help"],
]
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def found() -> Record:
    return {f"python -m {' '.join(command)}": printed(command) for command in COMMANDS}


def printed(command: list[str]) -> list[str]:
    """What `python -m COMMAND` prints, run in this process, by line; its status comes last."""
    output, status = io.StringIO(), None
    interrupts = signal.getsignal(signal.SIGINT)  # ignored after a command
    with (
        mock.patch.dict("os.environ", PLAIN),
        mock.patch.object(sys, "argv", list(command)),
        mock.patch.object(sys, "unraisablehook", sys.unraisablehook),  # which a command replaces
        contextlib.redirect_stdout(output),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # the module may have been imported
        try:
            runpy.run_module(command[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            status = end.code
        finally:
            signal.signal(signal.SIGINT, interrupts)
    lines = COLOURS.sub("", output.getvalue()).splitlines()
    return [*(line.rstrip() for line in lines), f"exit status {status or 0}"]


def compare(recorded: Record, now: Record) -> Comparison:
    result = Comparison(added=sorted(now.keys() - recorded.keys()))
    for name, before in sorted(recorded.items()):
        changed = difflib.unified_diff(before, now.get(name, []), "recorded", "found", lineterm="")
        if lines := list(changed):
            result.differences.append("\n    ".join([f"{name}:", *lines]))
    result.remarks.append(f"{len(recorded)} help texts")
    return result
