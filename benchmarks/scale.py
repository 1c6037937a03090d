"""Compiles sharded training steps for TPU topologies: memory, and what limits the time.

    python -m benchmarks.scale [--model gpt2-xl]       the table, or its rows for a model
    python -m benchmarks.scale --model gpt2-xl --topology v5e:4x4 --mesh fsdp=16     one row
    … [--batch 512] [--at-once 4] [--unrolled] [--json PATH]

The Trainer's step (AdamW, bfloat16 over float32 parameters, each block rematerialised, no dropout,
the global batch size of the model's authors) is compiled by XLA for every chip of a topology. No
TPU is needed: the compiler is in PyPI's `libtpu` (`pip install 'minibert-jax[tpu]'`). As no device
is opened, several processes may use it at once.

Memory is the compiler's figure; products, traffic and collectives are counted in the compiled
program, loops as often as they run. Times are rooflines, lower bounds from the chip's published
figures. The command fails if a device does not hold exactly its shard of parameters and optimiser,
or if an all-gather or all-reduce gathers more at once than the largest tensor.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import reporting

SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",  # do not look for a TPU on the network
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # do not warn that there is none
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # the lock is for processes that open a TPU
}
TABLE = {
    "gpt2-xl": (
        *(("v5e:2x2", "data=4"), ("v5e:2x2", "fsdp=4"), ("v5e:2x4", "fsdp=8")),
        *(("v5e:4x4", "fsdp=16"), ("v5e:4x8", "fsdp=32"), ("v5e:8x8", "fsdp=64")),
        *(("v5e:8x16", "fsdp=64x2"), ("v5e:16x16", "fsdp=64x4")),
        *(("v5e:16x16", "data=16,fsdp=16"), ("v5e:16x16", "fsdp=64,tensor=4")),
    ),
    "bert-large": (
        *(("v5e:2x2", "data=4"), ("v5e:2x2", "fsdp=4"), ("v5e:2x4", "fsdp=8")),
        *(("v5e:4x4", "fsdp=16"), ("v5e:4x4", "fsdp=4,tensor=4"), ("v5e:4x8", "fsdp=32")),
        *(("v5e:8x8", "fsdp=64"), ("v5e:8x16", "fsdp=128"), ("v5e:16x16", "fsdp=256")),
        *(("v5e:16x16", "data=256"), ("v5e:16x16", "fsdp=16,tensor=16")),
    ),
}
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def bytes_shown(count: float) -> str:
    """Returns a number of bytes with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1000 or unit == "GiB":
            return f"{count:.0f} {unit}" if count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    raise AssertionError


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 1 else "left", no_wrap=True)
    return table


def steps(model: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of memory and time, a row for each mesh."""
    first = rows[0]
    title = (
        f"{model}: {first['parameters'] / 1e6:,.0f} million parameters, batches of "
        f"{first['batch']:,} × {first['seq']:,} tokens; bytes a chip, a step's least time"
    )
    columns = ("topology", "mesh", "parts", "state", "temporary", "peak", "of HBM")
    table = _table(title, (*columns, "TFLOP", "compute", "HBM", "ICI", "bound by"))
    for row in rows:
        held = bytes_shown(row["predicted_bytes"])
        cells = [row["topology"], row["mesh"], f"{row['parts']}", held]
        share = f"{row['peak'] / row['limit']:.0%}"
        if row["fits"]:
            least = row["least_seconds"]
            cells += [bytes_shown(row["temporary"]), bytes_shown(row["peak"]), share]
            cells += [f"{row['flops'] / 1e12:.1f}"]
            cells += [f"{1000 * least[name]:.1f} ms" for name in ("compute", "HBM", "ICI")]
            table.add_row(*cells, row["bound"])
        else:
            table.add_row(*cells, "", f"≥ {bytes_shown(row['peak'])}", share, style="red")
    return table


def collectives(model: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of network traffic of a step, a row for each mesh."""
    columns = ("topology", "mesh", *KINDS, "largest gather", "largest sum")
    table = _table(f"{model}: collectives of a step: how many, and all their bytes", columns)
    for row in rows:
        if row["fits"]:
            found = row["collectives"]
            cells = [
                f"{found[kind]['count']:,}: {bytes_shown(found[kind]['bytes'])}"
                if kind in found
                else ""
                for kind in KINDS
            ]
            for kinds in (KINDS[:1], KINDS[1:3]):
                largest = max(found[kind]["largest"] if kind in found else 0 for kind in kinds)
                cells.append(bytes_shown(largest))
            table.add_row(row["topology"], row["mesh"], *cells)
    return table


def partial(model: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table of the tensors that are not fully sharded, with their cost for a chip."""
    columns = ("mesh", "tensor", "shape", "in parts", "of", "more bytes a chip", "of its state")
    table = _table(f"{model}: tensors that are not split evenly over all chips", columns)
    for row in rows:
        for part in row["partial"]:
            shape = " × ".join(map(str, part["shape"]))
            more = part["extra_bytes"]
            cells = (shape, f"{part['parts']}", f"{row['stored_in']}", bytes_shown(more))
            table.add_row(row["mesh"], part["path"], *cells, f"{more / row['predicted_bytes']:.2%}")
        table.add_section()
    return table


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the tables of rows."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for model in dict.fromkeys(row["model"] for row in rows):
        some = [row for row in rows if row["model"] == model]
        for table in (steps(model, some), collectives(model, some), partial(model, some)):
            if table.row_count:
                console.print(table)
    sources = ", ".join(sorted({row["source"] for row in rows}))
    tools = ", ".join(f"{name} {version(name)}" for name in ("jax", "libtpu"))
    console.print(f"Chips' figures: {sources}. {tools}.")


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="such as gpt2-xl; by default all of the table")
    parser.add_argument("--topology", help="such as v5e:4x4")
    parser.add_argument("--mesh", help="such as fsdp=16, fsdp=64x4 (two axes) or data=2,tensor=8")
    parser.add_argument("--batch", type=reporting.positive, help="rows of a batch, over all chips")
    parser.add_argument("--at-once", type=reporting.positive, help="rows of a chip's microbatch")
    parser.add_argument("--unrolled", action="store_true", help="compile every block separately")
    parser.add_argument(
        "--json", metavar="PATH", type=reporting.new_file, help="a file for the figures"
    )
    return parser.parse_args()


def plan(given: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Returns the requested rows: model, topology and mesh."""
    if (given.topology is None) != (given.mesh is None):
        sys.exit("--topology and --mesh: expected both, or neither for the table")
    if given.topology is not None:
        return [(given.model or "gpt2-xl", given.topology, given.mesh)]
    if given.model is not None and given.model not in TABLE:
        sys.exit(f"--model {given.model}: not in the table; pass --topology and --mesh too")
    models = TABLE if given.model is None else [given.model]
    return [(model, *row) for model in models for row in TABLE[model]]


def main() -> None:
    """Compiles, prints and checks."""
    given = arguments()
    rows_wanted = plan(given)
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("XLA's compiler for TPUs is missing: pip install libtpu")
    os.environ.update(SETTINGS)
    from benchmarks.scale_rows import MODELS, faults, measure  # after the environment is set
    from minibert.core.progress import progress_bar
    from minibert.errors import InputError

    rows = []
    options = {"batch": given.batch, "at_once": given.at_once, "scan": not given.unrolled}
    with progress_bar("compiling", len(rows_wanted), sys.stderr.isatty()) as tick:
        for model, topology, mesh in rows_wanted:
            if model not in MODELS:
                sys.exit(f"--model: expected {', '.join(MODELS)}; found {model!r}")
            try:
                rows.append(measure(model, topology, mesh, **options))
            except InputError as error:
                sys.exit(f"{topology}, {mesh}: {error}")
            tick(1)
            if given.json:  # after every row, as all may take hours
                with open(given.json, "w") as file:
                    json.dump(rows, file, indent=2)
    show(rows)
    if broken := [fault for row in rows for fault in faults(row)]:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
