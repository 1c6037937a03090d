"""The notebooks print and draw what is committed when they run from top to bottom."""

import functools
import io
import os
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("nbclient")
pytest.importorskip("torch")  # where it is missing is a JAX that draws other random numbers

import nbformat
from flax import nnx

import minibert
from benchmarks import embedded_text
from notebook_runs import FOLDER, code_cells, descriptions, pictures, texts

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
SECONDS = 120  # of CPU time, which a busy machine does not stretch: a minute of two cores
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
BY_VARIABLE = [name for name in NAMES if name[0] in "1256"]


@functools.cache
def committed(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(path, to, **variables):
    """Returns a notebook after a run in a process of its own, and the CPU seconds of the run."""
    command = [sys.executable, str(FOLDER.parent / "tests" / "support" / "notebook_runs.py")]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(FOLDER.parent),
        **variables,
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, str(path), "--to", str(to)], env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return nbformat.read(to / path.name, as_version=4), seconds


@pytest.fixture(scope="module", params=NAMES)
def ran(request, tmp_path_factory):
    """A notebook's name, a fresh run of it, and its seconds."""
    path = FOLDER / f"{request.param}.ipynb"
    return request.param, *executed(path, tmp_path_factory.mktemp("notebooks"))


def allowed(number):
    """Returns how far a number may be from this one: a thousandth, or one unit in its last digit.

    A whole number may not be off at all. What is a hair's breadth from the middle between two last
    digits may be rounded either way.
    """
    mantissa, _, power = number.partition("e")
    places = len(mantissa.partition(".")[2])
    if not places and not power:
        return 0.0
    return max(1e-3 * abs(float(number)), 1.01 * 10.0 ** (int(power or 0) - places))


def alike(found, expected):
    """Returns whether two texts are equal up to a thousandth of their numbers."""
    found, expected = (" ".join(text.split()) for text in (found, expected))
    ours, theirs = NUMBER.findall(found), NUMBER.findall(expected)
    return NUMBER.sub("#", found) == NUMBER.sub("#", expected) and all(
        one == other or abs(float(one) - float(other)) <= allowed(other)
        for one, other in zip(ours, theirs, strict=True)
    )


def test_what_is_alike():
    assert alike("loss  2.3451", "loss 2.3470")
    assert alike("0.07", "0.08")
    assert not alike("loss 2.3451", "loss 2.3499")
    assert not alike("1960 words", "1961 words")
    assert not alike("a word", "a world")
    assert not alike("1.2e-07", "1.4e-07")


def test_there_are_six():
    assert len(NAMES) == 6
    for name in NAMES:
        cells = code_cells(committed(name))
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), name
        assert not any(out.output_type == "error" for cell in cells for out in cell.outputs)


def test_the_table_has_no_empty_place():
    """Every item of the courses is shown in a section that there is, and tested by a test."""
    lines = (FOLDER / "README.md").read_text().splitlines()
    rows = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    rows = [[part.strip() for part in row] for row in rows if row[0].strip() != "what"]
    assert len(rows) == 29
    headings = {
        name[0]: "\n".join(c.source for c in committed(name).cells if c.cell_type == "markdown")
        for name in NAMES
    }
    for row in rows:
        assert len(row) == 3, row
        assert all(row), row
        number = ""
        for place in row[1].split("; "):
            number, _, section = place.rpartition(" · ") if " · " in place else (number, "", place)
            pattern = rf"^##? {re.escape(section)}|^\*\*{re.escape(section)}"
            found = re.search(pattern, headings[number], re.MULTILINE)
            assert section == "beginning" or found, place
        for test in re.findall(r"`(test_[^`]*)`", row[2]):
            file, _, function = test.partition("::")
            (path,) = (FOLDER.parent / "tests").rglob(file)
            assert f"def {function}" in path.read_text(), test
        assert "`test_" in row[2], row


@pytest.mark.slow
def test_text(ran):
    name, fresh, _ = ran
    source = "".join(cell.source for cell in code_cells(fresh))
    if "read_documents" in source and embedded_text.sha256() != embedded_text.SHA256:
        pytest.skip(f"the text is that of Python {embedded_text.PYTHON}")
    for found, expected in zip(code_cells(fresh), code_cells(committed(name)), strict=True):
        assert found.source == expected.source
        assert alike(texts(found), texts(expected)), f"{texts(found)}\nnot\n{texts(expected)}"


@pytest.mark.slow
def test_pictures(ran):
    image = pytest.importorskip("matplotlib.image")
    name, fresh, _ = ran
    count = 0
    for found, expected in zip(code_cells(fresh), code_cells(committed(name)), strict=True):
        assert len(pictures(found)) == len(pictures(expected)) == len(descriptions(found))
        for png in (*pictures(found), *pictures(expected)):
            pixels = image.imread(io.BytesIO(png))[..., :3]
            assert min(pixels.shape[:2]) > 150
            assert pixels.std() > 0.05
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
        for figure in descriptions(found):
            count += 1
            axes = [one for one in figure["axes"] if not one["colorbar"]]
            assert figure["title"] or axes[0]["title"]
            assert all(one["has_data"] for one in axes)
            for side in ("xlabel", "ylabel"):  # axes side by side share them
                assert any(one[side] for one in axes), figure
            for side in ("xticks", "yticks"):
                assert any(any(one[side]) for one in axes), figure
            for bar in figure["axes"]:
                assert not bar["colorbar"] or (bar["ylabel"] and any(bar["yticks"])), figure
    assert count >= 1


@pytest.mark.slow
def test_time(ran):
    name, _, seconds = ran
    assert seconds < SECONDS, name


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_VARIABLE)
def test_another_checkpoint(name, tmp_path):
    """Setting one variable suffices: nothing else depends on sizes or vocabularies."""
    other = tmp_path / "other"
    config = minibert.BertConfig.tiny(
        vocab_size=2048, num_hidden_layers=5, max_position_embeddings=80
    )
    model = minibert.BertForMaskedLM(config, rngs=nnx.Rngs(0))
    model.save_pretrained(other)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(f"{minibert.assets.BERT}/{file}", other)
    settings = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").write_text(settings.replace("128", "80"))
    notebook = nbformat.from_dict(committed(name))
    line = "CHECKPOINT = minibert.assets.BERT"
    (cell,) = [cell for cell in notebook.cells if line in cell.source]
    cell.source = cell.source.replace(line, f"CHECKPOINT = {str(other)!r}")
    path = tmp_path / "given" / f"{name}.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    fresh, _ = executed(path, tmp_path, JAX_DISABLE_MOST_OPTIMIZATIONS="1")  # no number is compared
    assert sum(len(pictures(cell)) for cell in fresh.cells if cell.cell_type == "code") >= 2
