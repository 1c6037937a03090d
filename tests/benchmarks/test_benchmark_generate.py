"""The benchmark of generation runs and judges."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import generate
from benchmarks.generate import MAX_RATIOS, OURS


def report(ratios: dict[int, float], device: str = "cpu", dtype: str = "float32") -> dict:
    runs = [
        {
            "dtype": dtype,
            "batch": batch,
            "ratios": {"transformers": {"median": ratio, "minimum": 99.0}},
        }
        for batch, ratio in ratios.items()
    ]
    return {"device": device, "runs": runs}


@pytest.mark.parametrize(
    ("given", "broken"),
    [
        (report(MAX_RATIOS), []),
        (report({1: 0.61, 8: 0.7}), ["batch 1: 0.61 × transformers' time, over 0.6 ×"]),
        (report({1: 0.6, 8: 0.71}), ["batch 8: 0.71 × transformers' time, over 0.7 ×"]),
        (report({1: 9.0, 8: 9.0}, device="gpu"), []),  # bounds are for a CPU
        (report({1: 9.0, 64: 9.0}, dtype="bfloat16"), []),
    ],
)
def test_judges(given, broken):
    assert generate.faults(given) == broken


@pytest.mark.slow
def test_runs(tmp_path):
    pytest.importorskip("torch", reason="the other contender is PyTorch")
    path = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.generate", "--size", "tiny", "--repeats", "2"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--json", str(path)],
        cwd=os.path.dirname(os.path.dirname(generate.__file__)),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert [run["batch"] for run in found["runs"]] == list(MAX_RATIOS)
    for run in found["runs"]:
        assert run["results"].keys() == {OURS, "transformers"}
        for name, result in run["results"].items():
            assert name in done.stdout
            assert 0 < result["minimum"] <= result["median"] < 60
            assert result["first"] > 0
        assert run["ratios"]["transformers"]["median"] > 0


def test_different_words_are_not_timed():
    ids = np.zeros((2, generate.PROMPT), int)
    padding = ((0, 0), (0, generate.NEW))
    contenders = {
        OURS: lambda ids: np.pad(ids, padding),
        "other": lambda ids: np.pad(ids, padding) + 1,
    }
    with pytest.raises(SystemExit, match="other wrote other tokens than minibert, batch 2"):
        generate.measure(contenders, ids, 1, True)
    contenders["other"] = lambda ids: ids
    with pytest.raises(SystemExit, match=r"other wrote \(2, 32\), not \(2, 96\)"):
        generate.measure(contenders, ids, 1, False)
