"""Growth of time and memory of a forward pass with length, batch and model size.

    python -m benchmarks.growth [--repeats 3] [--picture PATH] [--json PATH]

BERTs with random weights in float32, each contender in its own process, in turns, as in
`benchmarks.forward`. Each column of the figure varies one quantity; the others are those of a BERT
with six layers of width 384 and eight rows of 128 tokens. The figure also shows the time that the
matrix products alone would take at the machine's measured rate.
"""

import argparse
import contextlib
import itertools
import os
import sys
from types import SimpleNamespace
from typing import Any

from rich.table import Table

from benchmarks import reporting
from benchmarks.forward import batch, ceiling, in_turn, products, random_folder
from benchmarks.peers import Peer, installed
from benchmarks.reporting import Report

CONTENDERS = ("minibert", "PyTorch", "onnxruntime")
LENGTHS = (16, 32, 64, 128, 256, 512)
ROWS = (1, 2, 4, 8, 16, 32)
MODELS = ((2, 128), (4, 256), (6, 384), (8, 512), (12, 768))  # layers, hidden
MIDDLE = ((6, 384), 8, 128)
GROWING = {
    "length": "tokens of a row (8 rows, 6 layers of 384)",
    "rows": "rows (of 128 tokens, 6 layers of 384)",
    "model": "million weights of the layers (8 rows of 128 tokens)",
}

Model = tuple[int, int]


def config_of(model: Model) -> dict[str, int]:
    """Returns the config fields of a model."""
    layers, hidden = model
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }


def points(tiny: bool) -> dict[str, list[tuple[Model, int, int]]]:
    """Returns the points to measure for each quantity: the model, rows and their length."""
    model, rows, length = MIDDLE
    found = {
        "length": [(model, rows, each) for each in LENGTHS],
        "rows": [(model, each, length) for each in ROWS],
        "model": [(each, rows, length) for each in MODELS],
    }
    return {name: each[:2] for name, each in found.items()} if tiny else found


def place(growing: str, point: tuple[Model, int, int]) -> float:
    """Returns the position of a point on its axis."""
    (layers, hidden), rows, length = point
    return {"length": length, "rows": rows, "model": 12 * layers * hidden**2 / 1e6}[growing]


def compare(repeats: int, tiny: bool) -> Report:
    """Measures all contenders in turn, at every point."""
    names = [name for name in installed("float32", reporting.device()) if name in CONTENDERS]
    measure = ceiling("float32")
    curves: dict[str, list[dict[str, Any]]] = {}
    for growing, each in points(tiny).items():
        curves[growing] = []
        for model, ascending in itertools.groupby(each, key=lambda point: point[0]):
            config = config_of(model)
            with contextlib.ExitStack() as stack:  # new processes: freed memory may be kept
                folder = stack.enter_context(random_folder(config))
                runs = {name: stack.enter_context(Peer(name, folder, "float32")) for name in names}
                for point in ascending:
                    cell = in_turn(runs, *batch(point[1:], 30522), measure, repeats, 5e-5)
                    if cell["differ"]:
                        sys.exit(f"{point}: states that differ from minibert's: {cell['differ']}")
                    cell["operations"] = products(SimpleNamespace(**config), point[1:])
                    curves[growing].append({"at": place(growing, point), **cell})
    best = max(cell.pop("ceiling") for cells in curves.values() for cell in cells)
    taken = reporting.taken_on("jax", "flax", "torch", "transformers", "onnxruntime")
    return {"repeats": repeats, "ceiling": best, "contenders": names, "curves": curves, **taken}


def table(report: Report) -> Table:
    """Returns the report as a table."""
    names = report["contenders"]
    columns = [f"{name}\n{unit}" for name, unit in itertools.product(names, ("ms", "MB"))]
    title = f"Forward passes, minimum of {report['repeats']}, and peak memory beyond the imports"
    made = reporting.table(report, title, *columns, "products\nalone, ms")
    for growing, cells in report["curves"].items():
        made.add_section()
        made.add_row(GROWING[growing], style="bold")
        for cell in cells:
            numbers = [
                text
                for name in names
                for text in (
                    f"{1000 * cell['seconds'][name]:.1f}",
                    f"{cell['memory'][name] / 1e6:,.0f}",
                )
            ]
            alone = 1000 * cell["operations"] / report["ceiling"]
            made.add_row(f"{cell['at']:.4g}", *numbers, f"{alone:.1f}")
    return made


def picture(report: Report) -> Any:
    """Returns the report as a matplotlib figure: times above, memory below."""
    from minibert.inspection.plots import COLOURS, GREY, figure

    made = figure(13, 7)
    panels = made.subplots(2, len(report["curves"]), sharex="col", sharey="row", squeeze=False)
    for column, (growing, cells) in zip(panels.T, report["curves"].items(), strict=True):
        at = [cell["at"] for cell in cells]
        for name, colour, mark in zip(report["contenders"], COLOURS, "os^", strict=False):
            seconds = [1000 * cell["seconds"][name] for cell in cells]
            memory = [cell["memory"][name] / 1e6 for cell in cells]
            column[0].loglog(at, seconds, color=colour, marker=mark, label=name)
            column[1].loglog(at, memory, color=colour, marker=mark, label=name)
        alone = [1000 * cell["operations"] / report["ceiling"] for cell in cells]
        column[0].loglog(at, alone, color=GREY, linestyle="--", label="matrix products alone")
        column[1].set_xlabel(GROWING[growing])
        for panel in column:
            panel.set_xticks(at, [f"{one:.3g}" for one in at])
            panel.set_xticks([], minor=True)
            panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("time of a forward pass (ms)")
    panels[1, 0].set_ylabel("peak host memory (MB)")
    panels[0, 0].legend()
    made.suptitle("Cost of a forward pass of BERT, float32")
    return made


def new_picture(text: str) -> str:
    """Returns a path after checking that it is writable and that matplotlib supports its format."""
    from minibert.inspection.plots import figure

    known = figure(1, 1).canvas.get_supported_filetypes()
    if os.path.splitext(text)[1].lower().removeprefix(".") not in known:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one of .{', .'.join(known)}")
    return reporting.new_file(text)


def faults(report: Report) -> list[str]:
    """Returns no faults: curves have no bounds."""
    return []


def main() -> None:
    """Measures, prints and draws."""
    parser = reporting.parser("growth", __doc__)
    parser.add_argument("--size", choices=["tiny", "full"], default="full", help="size of curves")
    parser.add_argument(
        "--repeats", type=reporting.positive, default=3, help="turns of each contender"
    )
    parser.add_argument("--picture", metavar="PATH", type=new_picture, help="a file for the figure")
    arguments = parser.parse_args()
    report = compare(arguments.repeats, arguments.size == "tiny")
    reporting.finish(report, table(report), arguments, faults)
    if arguments.picture:
        picture(report).savefig(arguments.picture)


if __name__ == "__main__":
    main()
