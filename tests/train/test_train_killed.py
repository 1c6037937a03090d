"""A run that is killed at any time is resumed to exactly the parameters of an undisturbed run."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest

pytest.importorskip("grain", reason="the data are Grain's")
pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")

import training
from forked import Forked
from training import STEPS

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a run in a folder; all runs of this module share a cache of compiled programs."""
    programs = str(tmp_path_factory.mktemp("programs"))  # a killed one may leave half of one

    def run(folder, workers=0, adapter=False):
        return Forked(training.main, folder, workers, adapter, JAX_COMPILATION_CACHE_DIR=programs)

    return run


def finished(process):
    printed = process.communicate()
    assert process.poll() == 0
    return json.loads(printed)["digest"]


def logged(folder):
    path = folder / "log.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def being_saved(folder):
    try:
        return any("tmp" in name for name in os.listdir(folder / "checkpoints"))
    except FileNotFoundError:
        return False


def seen(folder):
    """Returns the records of each step, one for each time that it ran."""
    found = {}
    for line in (folder / "seen").read_text().splitlines():
        step, _, examples = line.partition(" ")
        found.setdefault(int(step), set()).add(examples)
    return found


def undisturbed_values(lines):
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, finished(start(folder))


def check_same(folder, digest, undisturbed):
    whole, expected = undisturbed
    assert digest == expected
    assert undisturbed_values(logged(folder)) == undisturbed_values(logged(whole))
    assert [line["step"] for line in logged(folder)] == list(range(1, STEPS + 1))
    assert seen(folder) == seen(whole)
    assert all(len(runs) == 1 for runs in seen(folder).values())


@pytest.mark.slow
def test_killed_five_times(start, undisturbed, tmp_path):
    """At random steps, and twice while a checkpoint is being written."""
    draw, done, killed = np.random.default_rng(0), 0, []
    for number in range(5):
        process = start(tmp_path)
        goal = done + int(draw.integers(2, 8))
        while process.poll() is None:
            lines = logged(tmp_path)
            done = lines[-1]["step"] if lines else 0
            if done >= goal and (number % 2 == 0 or being_saved(tmp_path)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        process.communicate()
        assert process.poll() == -signal.SIGKILL, "it was done before it was killed"
        killed.append(done)
    assert 0 < max(killed) < STEPS
    check_same(tmp_path, finished(start(tmp_path)), undisturbed)


def kill_at_steps(start, folder, goals, draw, *options):
    """Runs that are killed at a random moment after the log has reached a goal."""
    killed = []
    for goal in goals:
        process = start(folder, *options)
        while process.poll() is None:
            done = max((line["step"] for line in logged(folder)), default=0)
            if done >= goal:
                time.sleep(draw.uniform(0, 0.06))  # a step takes about half of it
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.0005)
        # until everyone that holds the pipe is gone: workers that outlive their run would wait
        process.communicate(timeout=60)
        killed.append((done, process.poll()))
    return killed


@pytest.mark.slow
def test_killed_twenty_times_with_workers_accumulation_and_an_adapter(start, tmp_path):
    seed = 0
    draw = np.random.default_rng(seed)
    goals = np.sort(draw.choice(np.arange(1, STEPS - 3), 20, replace=False)).tolist()
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    expected = finished(start(whole, adapter=True))
    killed = kill_at_steps(start, folder, goals, draw, 2, True)
    sys.stdout.write(f"seed {seed}, goals {goals}, killed (step, exit status) {killed}\n")
    assert all(status == -signal.SIGKILL for _, status in killed)
    check_same(folder, finished(start(folder, 2, adapter=True)), (whole, expected))


@pytest.mark.slow
def test_ended_by_sigterm(start, undisturbed, tmp_path):
    """With data from two other processes; it stops after a step, and saves that step."""
    process = start(tmp_path, workers=2)
    while len(logged(tmp_path)) < 8:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    finished(process)
    steps = [int(name) for name in os.listdir(tmp_path / "checkpoints")]
    assert max(steps) == logged(tmp_path)[-1]["step"] < STEPS
    check_same(tmp_path, finished(start(tmp_path, workers=2)), undisturbed)
