"""Code shared by the benchmark commands: options, output files, machine and versions."""

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

Report = dict[str, Any]

WIDE = 160  # characters of a line without a terminal


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a command, with the common options."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--json", metavar="PATH", type=new_file, help="a file for the figures")
    made.add_argument("--check", action="store_true", help="exit with 1 if a bound is broken")
    return made


def positive(text: str) -> int:
    """Parses an integer of at least 1 from the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def new_file(text: str) -> str:
    """Returns a path after checking, before any measurement, that it can be written."""
    place = text if os.path.exists(text) else os.path.dirname(os.path.abspath(text))
    if not text or os.path.isdir(text) or not os.access(place, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return text


def device() -> str:
    """Returns JAX's default backend, and sets float32 matrix products to full precision.

    By default accelerators round them. Processes started later inherit the setting.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory to others
    import jax

    found = jax.default_backend()
    if found != "cpu":
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        jax.config.update("jax_default_matmul_precision", "highest")
    return found


def taken_on(*packages: str) -> Report:
    """Returns the machine and the versions of the installed packages."""
    versions = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    return {"machine": machine, "versions": versions}


def table(report: Report, title: str, *columns: str) -> Table:
    """Returns an empty table with versions and machine as its caption."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    made = Table(title=title, caption=f"{versions}; {report['machine']}")
    made.add_column(no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def finish(
    report: Report, printed: RenderableType, arguments: argparse.Namespace, faults: Callable
) -> None:
    """Prints the table and, if requested, writes the figures and checks the bounds."""
    width_is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
    Console(width=None if width_is_known else WIDE).print(printed)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=2)
    if arguments.check and (broken := faults(report)):
        sys.exit("\n".join(broken))
