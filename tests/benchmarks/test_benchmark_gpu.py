"""The benchmark for a GPU runs at tiny sizes on the CPU, and outlives what goes wrong."""

import importlib.util
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from safetensors import safe_open

from benchmarks.environments import ROOT
from benchmarks.gpu import models
from benchmarks.gpu import report as reports
from benchmarks.gpu.__main__ import _judge
from benchmarks.gpu.job import Job
from benchmarks.gpu.steps import SECONDS, STEPS

TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="the peers need PyTorch")


def command(out: pathlib.Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--out", str(out), *options]


def run(out: pathlib.Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *options),
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=2000,
    )


def read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@needs_torch
@pytest.mark.slow
def test_every_step(tmp_path):
    """Every figure is finite, and the table shows every row."""
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report, table = read(tmp_path / "gpu.json"), (tmp_path / "gpu.md").read_text()
    assert table in done.stdout
    assert list(report["steps"]) == list(STEPS)
    assert report["versions"]["jax"]
    assert report["seconds"] > sum(step["seconds"] for step in report["steps"].values()) > 1
    for name, step in report["steps"].items():
        assert (step["status"], step["left_out"], step["errors"]) == ("ran", [], []), name
        assert step["rows"], name
        assert STEPS[name].title in table
        for row, found in step["rows"].items():
            assert f"| {row} |" in table
            figures = {k: v for k, v in found["figures"].items() if not isinstance(v, str)}
            assert figures, row
            assert all(math.isfinite(figure) and figure >= 0 for figure in figures.values()), row
            peers = {each for each in found.get("errors", {}) if not each.startswith("cuDNN")}
            assert not peers, row
    steps = report["steps"]
    assert {"minibert, ms", "PyTorch, ms", "of the ceiling"} <= figures_of(steps["forward"])
    assert {"minibert / torch.compile"} <= figures_of(steps["torch-compile"])
    assert {"max |o - t|", "ratio"} <= figures_of(steps["parity"])
    assert {"XLA, ms", "minibert / PyTorch"} <= figures_of(steps["attention"])
    assert len(steps["texts"]["rows"]) == 5
    states = steps["parity"]["rows"]["test_float32[base]"]["states"]
    assert states.keys() == {*(f"hidden_states[{layer}]" for layer in range(3)), "pooler_output"}


def figures_of(step: dict) -> set[str]:
    return {column for row in step["rows"].values() for column in row["figures"]}


@pytest.mark.slow
def test_what_is_missing_is_skipped_by_name(tmp_path):
    steps = ("parity", "attention", "torch-compile")
    options = [word for step in steps for word in ("--only", step)]
    done = run(tmp_path, *options, "--without", "torch")
    assert done.returncode == 0, done.stdout + done.stderr
    report = read(tmp_path / "gpu-parity-attention-torch-compile.json")
    parity, attention, compiled = report["steps"].values()
    assert parity["status"] == compiled["status"] == "skipped"
    assert parity["skipped"] == {"the step": "torch is not installed, and the reference is PyTorch"}
    assert (attention["status"], attention["skipped"]) == (
        "ran",
        {"PyTorch": "torch is not installed"},
    )
    assert "PyTorch, ms" not in figures_of(attention)
    assert "skipped: PyTorch: torch is not installed" in done.stdout


def test_without_a_card_steps_are_skipped_by_name(tmp_path):
    options = ["--only", "card", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *options],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    step = read(tmp_path / "gpu-card.json")["steps"]["card"]
    assert step["status"] == "skipped"
    assert step["skipped"] == {"the step": "needs a GPU; JAX finds cpu only"}


def test_one_that_fails_is_recorded_and_the_others_go_on(tmp_path):
    """optax cannot be imported, so that no step can import Flax; the first one does not."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "optax.py").write_text("raise RuntimeError('this optax is broken')")
    path = os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])
    done = run(tmp_path, "--only", "layers", "--only", "card", PYTHONPATH=path)
    assert done.returncode == 1
    layers, card = read(tmp_path / "gpu-layers-card.json")["steps"].values()
    assert layers["status"] == "failed"
    assert layers["errors"][0]["error"] == "RuntimeError: this optax is broken"
    assert "Traceback" in layers["log"]
    assert "this optax is broken" in done.stdout
    assert card["seconds"] > 0  # it was started


def test_one_that_measures_nothing_within_its_limit_fails(tmp_path):
    done = run(tmp_path, "--only", "card", "--seconds", "1")
    assert done.returncode == 1
    step = read(tmp_path / "gpu-card.json")["steps"]["card"]
    assert step["errors"][0]["error"] in (
        "stopped at its limit of 1 s",
        "measured nothing within its limit of 1 s",  # its process ended before the limit
    )
    assert step["seconds"] < 30


def test_what_was_measured_survives_a_kill(tmp_path):
    process = subprocess.Popen(
        command(tmp_path, "--only", "card", "--only", "layers"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    path, until = tmp_path / "gpu-card-layers.json", time.monotonic() + 240
    try:
        while time.monotonic() < until:
            if path.exists() and read(path)["steps"]["card"]["status"] == "ran":
                break
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    report = read(path)
    assert report["steps"]["card"]["status"] == "ran"
    assert report["steps"]["card"]["rows"]["copy"]["figures"]["GB/s"] > 0
    assert "layers" not in report["steps"] or report["steps"]["layers"]["status"] == "running"
    assert "## The card" in (tmp_path / "gpu-card-layers.md").read_text()


def step(**found: object) -> dict:
    empty = {
        "status": "running",
        "limit": 9.0,
        "rows": {},
        "errors": [],
        "left_out": [],
        "notes": {},
    }
    return empty | found


@pytest.mark.parametrize(
    ("given", "code", "late", "status", "left_out"),
    [
        (step(done=True, rows={"a": {}}, left_out=["a"]), 0, False, "ran", []),
        (step(done=True, rows={"a": {}}, left_out=["a", "b"]), 0, False, "ran", ["b"]),
        (step(done=True, left_out=["a", "b"]), 0, False, "failed", ["a", "b"]),
        (step(rows={"a": {}}, left_out=["a", "b"], begins="b"), 1, True, "ran", ["b"]),
        (step(left_out=["a", "b"], begins="a"), 1, True, "failed", ["b"]),
        (step(rows={"a": {}}, left_out=["a", "b"], begins="b"), -11, False, "failed", []),
        (
            step(done=True, errors=[{"error": "E", "at": "a"}], left_out=["a"]),
            0,
            False,
            "failed",
            [],
        ),
        (step(status="skipped", done=True), 0, False, "skipped", []),
    ],
)
def test_judged(given, code, late, status, left_out):
    _judge(given, code, late, "the log")
    assert (given["status"], given["left_out"]) == (status, left_out)
    assert given.get("log") == ("the log" if status == "failed" else None)


def test_a_cell_that_raises_does_not_end_a_step(tmp_path):
    job = Job(str(tmp_path / "lines"), 60, True, [], str(tmp_path))

    def measure(name: str, figure: float) -> None:
        job.row(name, {"figure": figure})

    job.each({"a": 1.0, "b": math.nan, "c": 2.0}, measure)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["row"] for line in lines if "row" in line] == ["a", "c"]
    (error,) = [line for line in lines if "error" in line]
    assert error == {"error": "ArithmeticError: b: figure is nan", "at": "b"}


def test_cells_for_which_there_is_no_time_are_left_out(tmp_path):
    job = Job(str(tmp_path / "lines"), 2.3, True, [], str(tmp_path))
    measured = []

    def measure(name: str, _: None) -> None:
        time.sleep(0.25)
        measured.append(name)

    job.each(dict.fromkeys("abc"), measure)
    assert measured == ["a"]


def test_weights_are_tied_as_the_config_says(tmp_path):
    """Else the two libraries would compute with different ones."""
    job = Job(str(tmp_path / "lines"), 60, True, [], str(tmp_path))
    with safe_open(os.path.join(models.gpt2_folder(job), "model.safetensors"), "np") as file:
        assert "transformer.wte.weight" in file.keys()
        assert "lm_head.weight" not in file.keys()


def test_all_steps_take_less_than_four_minutes():
    assert sum(step.seconds for step in STEPS.values()) == SECONDS < 240


def test_the_table_names_card_and_commit():
    report = {
        "versions": {"python": "3"},
        "cards": [{"name": "NVIDIA H100", "driver_version": "580"}],
        "commit": "abc",
        "changed since": True,
        "dry_run": False,
        "machine": "this",
        "started": "2026-01-01",
        "seconds": 1.0,
        "limit": 235,
        "cached": True,
        "steps": {},
    }
    table = reports.markdown(report)
    assert "- card: NVIDIA H100, 580\n" in table
    assert "- commit: abc, with changes\n" in table
    assert "first calls are too fast" in table


@pytest.mark.parametrize("option", [("--only", "nothing"), ("--seconds", "0")])
def test_wrong_options(option, tmp_path):
    done = run(tmp_path, *option)
    assert done.returncode == 2
    assert f"argument {option[0]}" in done.stderr
