"""Every paired measurement, one after the other, each in a process of its own.

    python -m benchmarks setup
    python -m benchmarks [NAME …] [--out FOLDER] [--tiny]

The first makes the environments of peers that do not go together with ours. The second prints each
one's table, writes its figures to FOLDER/NAME.json, and says in the end which bounds hold here. On
a machine that does nothing else it takes about an hour. What each measures is said by
`python -m benchmarks.NAME --help`.
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
    """One of them.

    Attributes:
        module: of `benchmarks`.
        what: what it measures.
        options: which it is run with.
        tiny: those for a tiny model.
    """

    module: str
    what: str
    options: tuple[str, ...] = ()
    tiny: tuple[str, ...] = TINY


BENCHMARKS = {
    "load": Benchmark("load", "a checkpoint, beside transformers"),
    "forward": Benchmark("forward", "BERT, beside PyTorch, onnxruntime and others"),
    "growth": Benchmark("growth", "BERT's cost against length, rows and size"),
    "host": Benchmark("host", "what a call costs the host", tiny=("--calls", "3")),
    "start": Benchmark("start", "a process's start to vectors, beside sentence-transformers"),
    "embed": Benchmark("embed", "texts, beside sentence-transformers and onnxruntime"),
    "generate": Benchmark("generate", "GPT-2's text, beside transformers"),
    "train-gpt2": Benchmark("train", "GPT-2's steps, beside PyTorch", ("--model", "gpt2")),
    "train-bert": Benchmark("train", "BERT's steps, beside PyTorch", ("--model", "bert")),
}


def run(name: str, out: str, tiny: bool) -> list[str]:
    """Runs one; returns the bounds it breaks."""
    benchmark, path = BENCHMARKS[name], os.path.join(out, f"{name}.json")
    command = [sys.executable, "-m", f"benchmarks.{benchmark.module}", "--check", "--json", path]
    command += [*benchmark.options, *(benchmark.tiny if tiny else ())]
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)  # what an earlier run left
    subprocess.run(command, cwd=ROOT)
    try:
        with open(path) as file:
            report = json.load(file)
    except FileNotFoundError:
        return ["failed"]
    return importlib.import_module(f"benchmarks.{benchmark.module}").faults(report)


def main() -> None:
    """Measures, prints and writes; exits with 1 where a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "name", nargs="*", default=[*BENCHMARKS], help="which, or setup; by default all"
    )
    parser.add_argument("--out", default=os.path.join(ROOT, "out", "benchmarks"))
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that all runs")
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
