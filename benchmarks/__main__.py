"""Runs all paired measurements, each in its own process.

    python -m benchmarks setup
    python -m benchmarks [NAME …] [--out FOLDER] [--tiny]

The first creates the environments of peers whose packages are incompatible with ours. The second
prints the table of each benchmark, writes its figures to FOLDER/NAME.json, and reports at the end
which bounds hold. On an idle machine it takes about an hour. `python -m benchmarks.NAME --help`
describes each benchmark.
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks import environments
from benchmarks.environments import ROOT

TINY = ("--size", "tiny", "--repeats", "1")


class Benchmark(NamedTuple):
    """A benchmark.

    Attributes:
        module: its module in `benchmarks`.
        what: what it measures.
        options: its options.
        tiny: its options for a tiny model.
    """

    module: str
    what: str
    options: tuple[str, ...] = ()
    tiny: tuple[str, ...] = TINY


BENCHMARKS = {
    "load": Benchmark("load", "loading of a checkpoint, next to transformers"),
    "forward": Benchmark("forward", "BERT, next to PyTorch, onnxruntime and others"),
    "growth": Benchmark("growth", "BERT's cost against length, rows and size"),
    "host": Benchmark("host", "time of a call on the host", tiny=("--calls", "3")),
    "start": Benchmark("start", "from process start to vectors, next to sentence-transformers"),
    "embed": Benchmark("embed", "texts, next to sentence-transformers and onnxruntime"),
    "generate": Benchmark("generate", "text generation with GPT-2, next to transformers"),
    "train-gpt2": Benchmark("train", "training GPT-2, next to PyTorch", ("--model", "gpt2")),
    "train-bert": Benchmark("train", "training BERT, next to PyTorch", ("--model", "bert")),
}


def run(name: str, out: str, tiny: bool) -> list[str]:
    """Runs a benchmark and returns the bounds that it breaks."""
    benchmark, path = BENCHMARKS[name], os.path.join(out, f"{name}.json")
    command = [sys.executable, "-m", f"benchmarks.{benchmark.module}", "--check", "--json", path]
    command += [*benchmark.options, *(benchmark.tiny if tiny else ())]
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)  # the report of an earlier run
    subprocess.run(command, cwd=ROOT)
    try:
        with open(path) as file:
            report = json.load(file)
    except FileNotFoundError:
        return ["failed"]
    return importlib.import_module(f"benchmarks.{benchmark.module}").faults(report)


def main() -> None:
    """Runs benchmarks; exits with 1 if a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "name", nargs="*", default=[*BENCHMARKS], help="benchmarks, or setup; all by default"
    )
    parser.add_argument("--out", default=os.path.join(ROOT, "out", "benchmarks"))
    parser.add_argument("--tiny", action="store_true", help="use tiny models, as a test")
    arguments = parser.parse_args()
    if arguments.name == ["setup"]:
        environments.setup()
        return
    if unknown := [name for name in arguments.name if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]}: expected some of {', '.join(BENCHMARKS)}")
    out = os.path.abspath(arguments.out)
    os.makedirs(out, exist_ok=True)
    broken = {name: run(name, out, arguments.tiny) for name in arguments.name}
    table = Table(title="Bounds", show_lines=True)
    for column in ("", "measures", "bounds"):
        table.add_column(column)
    for name, faults in broken.items():
        table.add_row(name, BENCHMARKS[name].what, "\n".join(faults) or "hold")
    Console().print(table)
    sys.exit(any(broken.values()))


if __name__ == "__main__":
    main()
