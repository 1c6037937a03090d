"""All GPU measurements, in at most four minutes.

    python -m benchmarks.gpu [--only STEP] [--out FOLDER] [--seconds 235]
    python -m benchmarks.gpu --dry-run

Measures parity with PyTorch, and times next to PyTorch's of forward passes, ragged texts, text
generation, training steps, attention and single layers; `--only` (repeatable) selects steps. It
needs an NVIDIA GPU and no network, installs nothing, and reports what it skips because packages are
missing. In a checkout the package need not be installed.

Every step is a separate process with a time limit, the most important first; unused time goes to
the next. Within a step the most important cells come first, and cells without time are reported.
FOLDER/gpu.json and FOLDER/gpu.md are updated with every result, so that an interrupted run leaves
what it has measured. Exits with 1 if a step failed: if it raised an error, or measured nothing
within its limit.

--dry-run runs every step with tiny sizes on the CPU, as a test; its times are meaningless.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import reporting
from benchmarks.environments import ROOT
from benchmarks.gpu import report as reports
from benchmarks.gpu.steps import SECONDS, STEPS

DRY_SECONDS = 1800  # an idle machine takes one minute
GRACE = 2.0  # seconds after the limit until a process is killed
TAIL = 6000  # characters of a failed step's output that are kept
CACHE = os.path.join(ROOT, "out", "gpu-cache")
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX and PyTorch share the card
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
}
PEERS = "torch, transformers.models.bert.modeling_bert, sentence_transformers"
CPU = {  # for a dry run: fast compilation, slow programs
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}


class Runner:
    """Runs steps one after the other, and saves the report.

    Args:
        given: the command line arguments.
    """

    def __init__(self, given: argparse.Namespace):
        self._given, self._started = given, time.monotonic()
        self._names = given.only or list(STEPS)
        self._file = "-".join(["gpu", *(given.only or ())])
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", CACHE)
        self.report: dict[str, Any] = {
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "dry_run": given.dry_run,
            "limit": given.seconds,
            "seconds": 0.0,
            "cached": not given.dry_run and os.path.isdir(cache) and bool(os.listdir(cache)),
            "steps": {},
            **reports.taken_on(),
        }

    def run(self) -> bool:
        """Runs all steps; returns whether none failed."""
        whole, until = sum(STEPS[name].seconds for name in self._names), 0.0
        with tempfile.TemporaryDirectory(prefix="minibert-gpu-") as scratch, self._reading():
            for name in self._names:
                until += self._given.seconds * STEPS[name].seconds / whole
                limit = max(1.0, until - (time.monotonic() - self._started))
                self._step(name, limit, scratch)
                step = self.report["steps"][name]
                print(f"{name}: {step['status']}, {step['seconds']:.1f} s", flush=True)
        return all(step["status"] != "failed" for step in self.report["steps"].values())

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Reads the peers from disk during the first step, because the first read is slow."""
        if self._given.dry_run:
            yield
            return
        reader = subprocess.Popen(
            [sys.executable, "-c", f"import {PEERS}"],
            env=os.environ | CPU,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            reader.kill()
            reader.wait()

    def save(self) -> None:
        """Writes the report's files."""
        self.report["seconds"] = time.monotonic() - self._started
        reports.save(self._given.out, self._file, self.report)

    def _step(self, name: str, limit: float, scratch: str) -> None:
        step: dict[str, Any] = {
            "status": "running",
            "seconds": 0.0,
            "limit": limit,
            "rows": {},
            "errors": [],
            "skipped": {},
            "left_out": [],
            "notes": {},
        }
        self.report["steps"][name] = step
        lines, log = (os.path.join(scratch, f"{name}.{ending}") for ending in ("jsonl", "log"))
        started = time.monotonic()
        try:
            code = self._watched(self._command(name, lines, limit, scratch), step, lines, log)
            _judge(step, code, time.monotonic() - started >= limit, _tail(log))
        except BaseException:
            step["status"] = "stopped"
            raise
        finally:
            step["seconds"] = time.monotonic() - started
            step.pop("begins", None)
            step.pop("done", None)
            self.save()

    def _command(self, name: str, lines: str, limit: float, scratch: str) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu.child", name, "--lines", lines]
        command += ["--limit", f"{limit:.1f}", "--scratch", scratch]
        command += ["--dry-run"] * self._given.dry_run
        return command + [word for name in self._given.without for word in ("--without", name)]

    def _watched(self, command: list[str], step: dict[str, Any], lines: str, log: str) -> int:
        """Runs a step's process until it ends or reaches its limit; returns its exit code."""
        cache = os.path.join(os.path.dirname(log), "cache") if self._given.dry_run else CACHE
        environment = {"JAX_COMPILATION_CACHE_DIR": cache} | os.environ | ENVIRONMENT
        environment |= CPU if self._given.dry_run else {}
        read, started = 0, time.monotonic()
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # includes its child processes
            )
        try:
            while True:
                ended = process.poll() is not None
                now = _read(lines, read, step)
                if now != read:
                    read, step["seconds"] = now, time.monotonic() - started
                    self.save()
                if ended:
                    return process.returncode
                if time.monotonic() - started > step["limit"] + GRACE:
                    return -signal.SIGKILL
                time.sleep(0.1)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(path: str, start: int, step: dict[str, Any]) -> int:
    """Adds the complete lines of a step's file after `start`; returns where they end."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(start)
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        for line in whole.splitlines():
            _add(step, json.loads(line))
        start += len(whole)
    return start


def _add(step: dict[str, Any], line: dict[str, Any]) -> None:
    match line:
        case {"row": name}:
            step["rows"][name] = {key: value for key, value in line.items() if key != "row"}
        case {"skip": what}:
            step["skipped"][what] = line["why"]
        case {"notes": facts}:
            step["notes"] |= facts
        case {"planned": cells}:
            step["left_out"] += cells
        case {"error": _}:
            step["errors"].append(line)
        case {"skipped": why}:
            step["status"], step["skipped"]["the step"] = "skipped", why
        case {"begins": cell}:
            step["begins"] = cell
        case {"done": _}:
            step["done"] = True


def _judge(step: dict[str, Any], code: int, late: bool, tail: str) -> None:
    """Sets the status of a step, from its results and the end of its process."""
    cell, limit = step.get("begins"), f"its limit of {step['limit']:.0f} s"
    ended = code == 0 and step.get("done")
    if not ended and not step["errors"]:
        if late and step["rows"]:
            step["notes"]["stopped at its limit in"] = cell
        else:
            why = f"stopped at {limit}" if late else f"ended with {code}"
            step["errors"].append({"error": why, "at": cell})
    seen = {*step["rows"], *(error["at"] for error in step["errors"])}
    step["left_out"] = [name for name in step["left_out"] if name not in seen]
    if ended and step["left_out"] and not step["rows"] and not step["errors"]:
        step["errors"].append({"error": f"measured nothing within {limit}", "at": cell})
    if step["errors"]:
        step["status"], step["log"] = "failed", tail
    elif step["status"] == "running":
        step["status"] = "ran"


def _tail(log: str) -> str:
    with open(log, encoding="utf-8", errors="replace") as file:
        return file.read()[-TAIL:]


def main() -> None:
    """Runs the steps and prints the report; exits with 1 if a step failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", action="append", choices=STEPS, help="a step; repeatable")
    parser.add_argument("--out", default=os.path.join(ROOT, "out", "benchmarks"), help="a folder")
    parser.add_argument("--seconds", type=reporting.positive, help="time limit", default=None)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument(
        "--without", action="append", default=[], metavar="PACKAGE", help="treat as missing"
    )
    given = parser.parse_args()
    given.seconds = given.seconds or (DRY_SECONDS if given.dry_run else SECONDS)
    given.out = os.path.abspath(given.out)
    os.makedirs(given.out, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    runner = Runner(given)
    sound = runner.run()
    print(f"\n{reports.markdown(runner.report)}")
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
