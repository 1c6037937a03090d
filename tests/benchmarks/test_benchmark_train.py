"""The benchmark of a training step runs and judges."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import train
from benchmarks.train import MAX_RATIO, OURS


def report(ratio: float, device: str = "cpu", dtype: str = "float32") -> dict:
    run = {"dtype": dtype, "ratios": {"PyTorch": ratio}}
    return {"model": "gpt2 full", "device": device, "runs": [run]}


@pytest.mark.parametrize(
    ("given", "broken"),
    [
        (report(MAX_RATIO), []),
        (report(1.01), ["gpt2 full: 1.01 × PyTorch's time, over 1.0 ×"]),
        (report(9.0, device="gpu"), []),  # the bound is for a CPU
        (report(9.0, dtype="bfloat16"), []),
    ],
)
def test_judges(given, broken):
    assert train.faults(given) == broken


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_runs(family, tmp_path):
    pytest.importorskip("torch", reason="the other contender is PyTorch")
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.train", "--model", family, "--size", "tiny"]
    done = subprocess.run(
        [*command, "--length", "16", "--repeats", "2", "--json", str(path)],
        cwd=os.path.dirname(os.path.dirname(train.__file__)),
        env=os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["batch"] == [8, 16]
    (run,) = found["runs"]
    assert run["results"].keys() == {OURS, "PyTorch"}
    for name, result in run["results"].items():
        assert name in done.stdout
        assert 0 < result["minimum"] <= result["median"] < 60
        assert result["losses"] == pytest.approx(run["results"][OURS]["losses"], rel=train.AGREE)
        assert result["losses"] == sorted(result["losses"], reverse=True)


def test_other_losses_are_not_timed():
    steps = {OURS: lambda batch: 1.0, "other": lambda batch: 1.001}
    with pytest.raises(SystemExit, match=r"other's losses are .*minibert's"):
        train.measure(steps, {}, 1, "float32")
