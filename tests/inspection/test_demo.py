"""`minibert demo`: a fresh process without a network, its report, its pictures, its refusals."""

import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

import minibert
from commands import run
from conftest import FLOAT32
from minibert import assets
from minibert.cli import demo as cli_demo

SECONDS = 60  # on two cores; of CPU time, which a busy machine does not stretch
OFFLINE = """
import socket, sys

def refuse(event, arguments):
    if event == "socket.connect" and arguments[0].family != socket.AF_UNIX:
        raise OSError("no network in this test")

sys.addaudithook(refuse)
sys.argv = ["minibert", "demo"]
from minibert.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished demo: its process and folder, and its seconds of CPU time."""
    home = tmp_path_factory.mktemp("demo")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment = kept | {"HF_HOME": str(home / "cache"), "JAX_PLATFORMS": "cpu"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=home, env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, home / "minibert-demo", seconds


@pytest.fixture(scope="module")
def report(demo):
    return json.loads((demo[1] / cli_demo.REPORT).read_text())


@pytest.mark.slow
def test_it_runs_offline_in_a_minute(demo):
    done, _, seconds = demo
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert seconds < 2 * SECONDS
    for line in ("tensors, all matched", "hidden_states[3]", "[MASK]", "All done in"):
        assert line in done.stdout
    assert "differs" not in done.stdout


@pytest.mark.slow
def test_it_proves_parity(report):
    assert cli_demo.BOUND == FLOAT32
    for found in report["parity"].values():
        assert found["equal"]
        assert len(found["ours"]) == 4
        assert max(found["ours"]) <= FLOAT32


@pytest.mark.slow
def test_it_finds_words_and_writes(report):
    for one in report["words"]:
        scores = list(one["words"].values())
        assert scores == sorted(scores, reverse=True)
        assert scores[0] > 0.02  # a uniform model's is 0.0005
    assert next(iter(report["words"][0]["words"])) == "exception"
    cosines = np.array(report["similarity"]["cosines"])
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-5)
    nearest = np.argsort(cosines, axis=1)[:, -2]
    assert nearest.tolist() == [1, 0, 3, 2, 5, 4]  # they come in pairs
    assert len(report["text"]["continuation"].split()) > 10


@pytest.mark.slow
def test_pictures_show_something(demo):
    image = pytest.importorskip("matplotlib.image")
    for name in cli_demo.PICTURES:
        pixels = image.imread(demo[1] / name)[..., :3]
        assert min(pixels.shape[:2]) > 200, name
        assert pixels.std() > 0.05, name
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50, name


@pytest.mark.slow
def test_pictures_have_titles_and_axes(report):
    pytest.importorskip("matplotlib")
    from minibert.inspection import demo_pictures

    bert = minibert.load(assets.BERT)
    figures = demo_pictures.pictures(report, bert, FLOAT32)
    for figure in figures:
        axes = figure.get_axes()
        assert figure.get_suptitle() or axes[0].get_title()
        assert figure.get_supxlabel() or any(one.get_xlabel() for one in axes)
        assert any(one.get_ylabel() or one.get_yticklabels() for one in axes)
        assert all(one.has_data() for one in axes)


@pytest.mark.slow
def test_without_matplotlib_it_says_so(report, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cli_demo._save(report, None, str(tmp_path))
    assert os.listdir(tmp_path) == [cli_demo.REPORT]
    assert "No figures" in capsys.readouterr().out


def test_a_changed_weight_differs():
    models = {"bert": minibert.load(assets.BERT)}
    assert cli_demo._verify(models)["bert"]["equal"]
    scale = models["bert"].bert.encoder.layer[1].output.LayerNorm.scale
    scale[...] = scale[...].at[0].multiply(1.1)  # of all of them, the next norm takes it back
    found = cli_demo._verify(models)["bert"]
    assert [error > FLOAT32 for error in found["ours"]] == [False, False, True, True]
    assert not found["equal"]


@pytest.mark.parametrize("names", [["notes.txt"], ["parity.png"], ["report.json", "notes.txt"]])
def test_what_is_not_its_own_stays(names, tmp_path):
    for name in names:
        (tmp_path / name).write_text("mine")
    done = run("demo", "--output", str(tmp_path))
    assert done.exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    assert run("demo", "--output", str(path)).exit_code == 1
    assert path.read_text() == "mine"


@pytest.mark.slow
def test_an_earlier_demo_is_replaced(demo, tmp_path):
    assert cli_demo._is_ours(str(demo[1]))
    assert not cli_demo._is_ours(str(tmp_path))
    assert not cli_demo._is_ours(str(pathlib.Path(tmp_path, "new")))
