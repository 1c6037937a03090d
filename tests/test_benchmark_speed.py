"""The benchmarks of calls, starts and forward passes run and judge."""

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import forward, host, start
from benchmarks.__main__ import ROOT

needs_peers = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the other contenders need PyTorch"
)


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
        (forward.faults, {"cells": {"a": {"ratio": 1.0}}}, []),
        (
            forward.faults,
            {"cells": {"a": {"ratio": 0.5}, "b": {"ratio": 1.25}}},
            ["b: 1.25 × the fastest other's time, over 1.0 ×"],
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
    assert "forwards: expected some of load, forward, host" in done.stderr
