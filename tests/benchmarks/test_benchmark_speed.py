"""The benchmarks of calls, starts and forward passes run and judge."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import environments, forward, growth, host, peers, reporting, start
from benchmarks.__main__ import ROOT

needs_peers = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the other contenders need PyTorch"
)
ALL = {"device": "cpu", "dtype": "float32", "contenders": forward.FASTEST}


@pytest.mark.parametrize(
    ("judge", "report", "broken"),
    [
        (host.faults, {"milliseconds": {"minibert.compiled": 0.25}}, []),
        (
            host.faults,
            {"milliseconds": {"minibert.compiled": 0.26}},
            ["a call: 0.26 ms, over 0.25 ms"],
        ),
        (start.faults, {"ratio": 1.0}, []),
        (
            start.faults,
            {"ratio": 1.5},
            ["start: 1.50 × sentence-transformers' time, over 1.0 ×"],
        ),
        (forward.faults, ALL | {"cells": {"a": {"ratio": 1.0}}}, []),
        (
            forward.faults,
            ALL | {"cells": {"a": {"ratio": 0.5}, "b": {"ratio": 1.25}}},
            ["b: 1.25 × the fastest other's time, over 1.0 ×"],
        ),
        (
            forward.faults,
            ALL | {"cells": {"a": {"ratio": 0.5}}, "contenders": ["PyTorch", "torch.compile"]},
            ["onnxruntime was not measured"],
        ),
    ],
)
def test_judges(judge, report, broken):
    assert judge(report) == broken


def test_products_are_counted():
    """BERT-base, one row of 128 tokens: twice 85 million weights a token, and attention."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    linear = 2 * 128 * 84_934_656
    attention = 2 * 12 * 2 * 128 * 128 * 768
    assert forward.products(SimpleNamespace(**sizes), (1, 128)) == linear + attention


def test_batches_are_ragged():
    ids, mask = forward.batch((8, 128), 97)
    assert ids.shape == mask.shape == (8, 128)
    lengths = mask.sum(axis=1)
    assert lengths[0] == 128
    assert 64 <= lengths.min() < 100
    assert (np.sort(mask)[:, ::-1] == mask).all()
    assert ids.max() < 97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["host", pytest.param("forward", marks=needs_peers)])
def test_runs(name, tmp_path):
    """Bounds of tiny models are not looked at: theirs is another measure."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--tiny", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Bounds" in done.stdout
    assert "failed" not in done.stdout
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["versions"]["jax"]
    if name == "host":
        assert report["milliseconds"]["minibert.compiled"] > 0
    else:
        assert report["cells"].keys() == {"tiny 1 × 8", "tiny 2 × 16"}
        assert all(len(t) == 1 for cell in report["cells"].values() for t in cell["turns"].values())


class Other:
    """A contender whose states are a bit away; its seconds and memory come down call by call."""

    def __init__(self, away: float, seconds: float):
        self.away, self.seconds, self.calls = away, seconds, 0

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> tuple[float, np.ndarray, float]:
        self.calls += 1
        states = np.full((*ids.shape, 3), self.away, np.float32)
        seconds = self.seconds * (1 + 1 / self.calls)
        return seconds, np.where(mask[..., None], states, np.nan), 1e6 / self.calls


def test_who_has_other_states_is_not_counted():
    away = {"minibert": (0, 2.0), "near": (1e-5, 4.0), "slow": (0, 8.0), "far": (1e-3, 1.0)}
    runs = {name: Other(*each) for name, each in away.items()}
    cell = forward.in_turn(runs, *forward.batch((2, 8), 97), lambda: 7.0, 2, 5e-5)
    assert cell["differ"] == {"far": pytest.approx(1e-3)}
    assert cell["ratio"] == 0.5
    assert cell["turns"]["far"] == [1 + 1 / 3, 1 + 1 / 4]  # the third call, and the fourth
    assert cell["seconds"]["far"] == 1 + 1 / 4
    assert cell["memory"]["far"] == 1e6
    assert cell["ceiling"] == 7.0
    del runs["near"], runs["slow"]
    with pytest.raises(SystemExit, match="no other has minibert's states"):
        forward.in_turn(runs, *forward.batch((2, 8), 97), lambda: 7.0, 2, 5e-5)


def test_a_short_pass_comes_after_others(monkeypatch):
    monkeypatch.setattr(forward, "REST", 0)
    runs = {"minibert": Other(0, 0.05), "other": Other(0, 4.0)}  # short for one is short for all
    forward.in_turn(runs, *forward.batch((2, 8), 97), lambda: 7.0, 2, 5e-5)
    assert [run.calls for run in runs.values()] == [2 + 2 * (forward.WARM + 1)] * 2


def test_a_peer_that_fails_says_why(tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)minibert failed:.*config\.json"):
        peers.Peer("minibert", str(tmp_path), "float32")


def test_what_is_not_installed_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(environments, "FOLDER", "/nowhere")
    names = peers.installed("float32", "cpu")
    assert names[:3] == ["minibert", "PyTorch", "torch.compile"]
    assert "KerasHub" not in names
    assert "KerasHub: skipped; python -m benchmarks setup" in capsys.readouterr().err
    assert peers.installed("bfloat16", "cpu") == peers.installed("float32", "gpu") == names[:3]


def test_a_wide_table_is_whole_in_a_file(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    report = {"versions": {"python": "3"}, "machine": "this"}
    columns = [f"a column of {number}" for number in range(9)]
    table = reporting.table(report, "wide", *columns)
    reporting.finish(report, table, SimpleNamespace(json=None, check=False), list)
    printed = capsys.readouterr().out
    assert all(column in printed for column in columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calls", "0"], "argument --calls: expected a whole number of at least 1, found '0'"),
        (["--calls", "few"], "argument --calls: expected a whole number of at least 1"),
        (["--json", "nowhere/figures.json"], "argument --json: 'nowhere/figures.json' cannot be"),
        (["--json", "."], "argument --json: '.' cannot be written"),
        (["--json", ""], "argument --json: '' cannot be written"),
    ],
)
def test_wrong_options(options, message, monkeypatch, capsys):
    """Before anything is measured."""
    monkeypatch.setattr("sys.argv", ["host", *options])
    monkeypatch.setattr(host, "compare", None)
    with pytest.raises(SystemExit, match="2"):
        host.main()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", ["curves.txt", "png", "nowhere/curves.png"])
def test_what_is_no_picture(path, monkeypatch, capsys):
    """Before anything is measured."""
    monkeypatch.setattr("sys.argv", ["growth", "--picture", path])
    monkeypatch.setattr(growth, "compare", None)
    with pytest.raises(SystemExit, match="2"):
        growth.main()
    assert f"argument --picture: '{path}'" in capsys.readouterr().err


def test_growth_is_drawn():
    cell = {"seconds": {"minibert": 0.1, "PyTorch": 0.2}, "operations": 2e9}
    cell["memory"] = {"minibert": 3e8, "PyTorch": 4e8}
    curves = {
        growing: [cell | {"at": growth.place(growing, point)} for point in points]
        for growing, points in growth.points(tiny=False).items()
    }
    drawn = growth.picture(
        {"contenders": ["minibert", "PyTorch"], "curves": curves, "ceiling": 1e11}
    )
    panels = drawn.axes
    assert len(panels) == 6
    assert [panel.get_xlabel() for panel in panels[3:]] == list(growth.GROWING.values())
    assert panels[0].get_ylabel() == "time of a forward pass (ms)"
    assert [line.get_label() for line in panels[0].lines][-1] == "matrix products alone"
    np.testing.assert_allclose(panels[0].lines[-1].get_ydata(), 20)
    assert [text.get_text() for text in panels[5].get_xticklabels()][-1] == "84.9"


@needs_peers
@pytest.mark.slow
def test_growth_is_measured(monkeypatch):
    monkeypatch.setattr(growth, "CONTENDERS", ("minibert", "PyTorch"))
    monkeypatch.setattr(growth, "MIDDLE", ((1, 64), 2, 16))
    monkeypatch.setattr(growth, "MODELS", ((1, 64), (2, 64)))
    report = growth.compare(1, tiny=True)
    assert [cell["at"] for cell in report["curves"]["length"]] == [16, 32]
    assert growth.table(report).row_count == 9
    for cells in report["curves"].values():
        for cell in cells:
            assert cell["seconds"].keys() == {"minibert", "PyTorch"}
            assert all(0 < megabytes < 2e9 for megabytes in cell["memory"].values())


@needs_peers
@pytest.mark.slow
def test_starts(tmp_path):
    """The cache is filled by one process, and found by the next."""
    report = start.compare("tiny", 1)
    assert report["seconds"].keys() == {"minibert", start.CACHED, "sentence-transformers"}
    assert all(seconds > 0 for seconds in report["seconds"].values())


def test_an_unknown_one():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "forwards"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "forwards: expected some of load, forward, growth, host" in done.stderr
