"""Runs notebooks in fresh kernels.

`python tests/support/notebook_runs.py [NAME …]` updates their outputs.
With `--to FOLDER` the results are written there, with the figures' descriptions.
"""

import argparse
import base64
import pathlib
import re
import tempfile

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = pathlib.Path(__file__).parents[2] / "notebooks"
SECONDS = 300  # a cell; on a busy machine
DESCRIBED = "application/json"
SETUP = f"""
from matplotlib.figure import Figure

def described(figure):
    figure.draw_without_rendering()
    axes = [
        {{
            "title": one.get_title() or one.get_title(loc="left"),
            "xlabel": one.get_xlabel() or figure.get_supxlabel(),
            "ylabel": one.get_ylabel() or figure.get_supylabel(),
            "xticks": [label.get_text() for label in one.get_xticklabels()],
            "yticks": [label.get_text() for label in one.get_yticklabels()],
            "has_data": one.has_data(),
            "colorbar": one.get_label() == "<colorbar>",
        }}
        for one in figure.get_axes() if one.get_visible()
    ]
    return {{"title": figure.get_suptitle(), "axes": axes}}

def register(*_):  # again and again: `%matplotlib inline` takes it away
    get_ipython().display_formatter.formatters["{DESCRIBED}"].for_type(Figure, described)

get_ipython().events.register("pre_run_cell", register)
"""


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook after a run from top to bottom; its figures' outputs describe themselves too."""
    fresh = nbformat.from_dict(notebook)
    fresh.cells.insert(0, nbformat.v4.new_code_cell(SETUP))
    with tempfile.TemporaryDirectory() as sockets:  # of files: no ports, and no warning of them
        where = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        client = NotebookClient(
            fresh, timeout=SECONDS, kernel_name="python3", record_timing=False, config=where
        )
        client.execute(cwd=FOLDER)
    del fresh.cells[0]
    for number, cell in enumerate(code_cells(fresh), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
    return fresh


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: nbformat.NotebookNode) -> str:
    """What a cell printed and returned, but for pictures."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.text)
        elif "image/png" not in output.data:
            found.append(output.data["text/plain"] + "\n")
    return re.sub(r"(?<=\n)\n+", "\n", "".join(found))


def pictures(cell: nbformat.NotebookNode) -> list[bytes]:
    """A cell's pictures, as PNG."""
    shown = [output.data for output in cell.outputs if "data" in output]
    return [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]


def descriptions(cell: nbformat.NotebookNode) -> list[dict]:
    """What a cell's figures say of themselves."""
    shown = [output.data for output in cell.outputs if "data" in output]
    return [data[DESCRIBED] for data in shown if DESCRIBED in data]


def main() -> None:
    """Runs the notebooks named, or all, and writes their outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--to", type=pathlib.Path, metavar="FOLDER")
    options = parser.parse_args()
    paths = [FOLDER / f"{name.removesuffix('.ipynb')}.ipynb" for name in options.names]
    for path in paths or sorted(FOLDER.glob("*.ipynb")):
        notebook = run(nbformat.read(path, as_version=4))
        if options.to is None:
            for cell in code_cells(notebook):
                for output in cell.outputs:
                    output.get("data", {}).pop(DESCRIBED, None)
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, (options.to or FOLDER) / path.name)


if __name__ == "__main__":
    main()
