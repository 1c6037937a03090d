"""Recovery of runs: failed evaluations, teachers, earlier steps, damaged checkpoints."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from checkout import PYTHONPATH, SUPPORT

pytest.importorskip("grain", reason="the data are Grain's")
pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")

from minibert.errors import InputError, TargetError, WeightsFileError
from minibert.train import (
    Checkpoints,
    Evaluation,
    causal_lm,
    checkpoint_errors,
    distillation,
    fit,
    restore,
    with_teacher,
)
from training import batches, digest, trainer

pytestmark = pytest.mark.unoptimised


def held():
    return list(batches(epochs=1))[:2]


@pytest.fixture(scope="module")
def undisturbed():
    """A run of twelve steps."""
    evaluation = Evaluation(batches=held(), every=5)
    return fit(trainer(12), batches(), steps=12, evaluation=evaluation)


class Failing:
    """Evaluation batches; one iteration over them fails."""

    def __init__(self):
        self.readings = 0

    def __iter__(self):
        self.readings += 1
        if self.readings == 3:  # at step 10; `Evaluation` looks at them first
            raise OSError("the disk is gone")
        return iter(held())


@pytest.mark.slow
def test_a_failing_evaluation_loses_no_step(undisturbed, tmp_path):
    def run(evaluated):
        return fit(
            trainer(12),
            batches(),
            steps=12,
            evaluation=Evaluation(batches=evaluated, every=5),
            checkpoints=Checkpoints(folder=tmp_path / "c", every=50, resume=True),
            log=tmp_path / "log.jsonl",
        )

    with pytest.raises(OSError, match="the disk is gone"):
        run(Failing())
    assert 10 in {int(name) for name in os.listdir(tmp_path / "c")}
    result = run(held())
    assert digest(result.trainer) == digest(undisturbed.trainer)
    assert result.best_step == undisturbed.best_step
    for ours, theirs in zip(result.history, undisturbed.history, strict=True):
        assert {k: v for k, v in ours.items() if "second" not in k} == {
            k: v for k, v in theirs.items() if "second" not in k
        }
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history


def test_the_same_trainer_continues():
    trained, evaluation = trainer(12), Evaluation(batches=held(), every=2)
    fit(trained, batches(), steps=4, evaluation=evaluation)
    result = fit(trained, batches(), steps=6, evaluation=evaluation)
    assert [line["step"] for line in result.history] == [5, 6]


def test_checkpoints_need_a_folder():
    with pytest.raises(InputError, match="folder: expected a path, found None"):
        Checkpoints(folder=None)


@pytest.mark.slow
def test_a_damaged_checkpoint(tmp_path):
    """In processes of their own: Orbax leaves coroutines that warn when they are collected."""
    script = SUPPORT / "training.py"
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "JAX_PLATFORMS": "cpu"}

    def run():
        command = [sys.executable, str(script), str(tmp_path)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert run().returncode == 0
    last = max((tmp_path / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    files = [path for path in (last / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    done = run()
    assert done.returncode == 1
    assert f"WeightsFileError: {last}: a damaged checkpoint" in done.stderr


@pytest.mark.slow
def test_distillation_resumes(tmp_path):
    """The teacher's logits are computed again, for the remaining batches."""
    teacher = trainer(12).model

    def run(steps):
        return fit(
            trainer(12, objective=distillation(causal_lm)),
            with_teacher(teacher, batches()),
            steps=steps,
            checkpoints=Checkpoints(folder=tmp_path / str(steps % 2), resume=True),
        )

    assert run(2).step == 2
    again, whole = run(4), run(5)
    assert [line["step"] for line in again.history] == [3, 4]
    ours, theirs = again.history[-1], whole.history[3]
    assert ours["loss"] == theirs["loss"]
    with pytest.raises(AttributeError, match="get_state"):
        iter(with_teacher(teacher, held())).get_state  # noqa: B018


@pytest.mark.slow
def test_a_copied_checkpoint_is_not_another_steps(tmp_path):
    def run(steps):
        checkpoints = Checkpoints(folder=tmp_path / "c", every=2, resume=True)
        return fit(trainer(12), batches(), steps=steps, checkpoints=checkpoints)

    run(4)
    shutil.copytree(tmp_path / "c" / "4", tmp_path / "c" / "6")
    said = (
        r"c/6: a damaged checkpoint \(it holds step 4, as the copy of another does\); the "
        r"checkpoint of step 4 is intact: move .*c/6 away"
    )
    with pytest.raises(WeightsFileError, match=said):
        run(6)
    with pytest.raises(WeightsFileError, match="it holds step 4"):
        restore(trainer(12), tmp_path / "c", 6)
    os.rename(tmp_path / "c" / "6", tmp_path / "copy")
    assert run(6).step == 6


FULL = """
import resource, shutil, sys
from training import batches, digest, trainer
from minibert.errors import TargetError
from minibert.train import Checkpoints, fit

def run(steps):
    checkpoints = Checkpoints(folder=sys.argv[1], every=2, resume=True)
    return fit(trainer(12), batches(), steps=steps, checkpoints=checkpoints)

def said(steps):
    try:
        run(steps)
    except TargetError as reason:
        return str(reason)

if sys.argv[2] == "file sizes":
    run(2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in map(int, sys.argv[3:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        print(said(6))
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
else:
    run(2)
    usage, free = shutil.disk_usage, int(sys.argv[3])
    shutil.disk_usage = lambda path: usage(path)._replace(free=free)
    print(said(6))
    shutil.disk_usage = usage
print(digest(run(6).trainer) == digest(fit(trainer(12), batches(), steps=6).trainer))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "full", [("file sizes", "100", "4000", "30000"), ("space", "100000")], ids=lambda full: full[0]
)
def test_a_full_disk(full, tmp_path):
    """One line that names the last complete checkpoint, from which the run resumes."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "c"), *full],
        env={**os.environ, "PYTHONPATH": f"{PYTHONPATH}:{SUPPORT}", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *lines, same = done.stdout.splitlines()
    assert same == "True"
    for line in lines:
        assert line.startswith(f"{tmp_path / 'c'}: a checkpoint cannot be written (")
        assert line.endswith(
            "; the checkpoint of step 2 is complete, and training can resume there"
        )
    assert "ERROR:" not in done.stderr
    assert full[0] == "file sizes" or "Traceback" not in done.stderr


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")
OF_TENSORSTORE = ValueError("RESOURCE_EXHAUSTED: write [os_error_code='28'] x")


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (FULL_DISK, "No space left on device"),
        (OF_TENSORSTORE, "No space left on device"),
        (ValueError("odd"), "'odd'"),
    ],
)
def test_what_remains_is_named(reason, why, tmp_path):
    first = rf"cannot be written \({why}\); there is none before"
    with pytest.raises(TargetError, match=first), checkpoint_errors.written(tmp_path):
        raise reason
    for name in ("2", "10", "10.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    later = rf"\({why}\); the checkpoint of step 10 is complete"
    with pytest.raises(TargetError, match=later), checkpoint_errors.written(tmp_path):
        raise reason
    with pytest.raises(InputError, match="of the data"), checkpoint_errors.written(tmp_path):
        raise InputError("of the data")


def test_a_checkpoint_must_fit(tmp_path):
    checkpoint_errors.check_free_space(tmp_path, {"kernel": np.zeros(3)})
    huge = np.broadcast_to(np.float64(0), (2**57,))  # of one element in memory
    with pytest.raises(TargetError, match=r"it needs [0-9,]{25} bytes, and [0-9,]+ are free"):
        checkpoint_errors.check_free_space(tmp_path, {"kernel": huge})


def test_tracebacks_that_are_raised_too_are_not_logged(caplog, monkeypatch):
    log = logging.getLogger("asyncio")
    for name in ("absl", "asyncio"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    with checkpoint_errors.without_tracebacks():
        log.error("one", exc_info=FULL_DISK)
        log.error("two", exc_info=OF_TENSORSTORE)
        log.error("three", exc_info=ValueError("another"))
        log.error("four")
    log.error("five", exc_info=FULL_DISK)
    with pytest.raises(InputError), checkpoint_errors.without_tracebacks():
        raise InputError("of the data")
    with checkpoint_errors.without_tracebacks():
        pass
    log.error("six", exc_info=FULL_DISK)  # it may be of the first
    assert [record.message for record in caplog.records] == ["three", "four", "five"]
