"""Conversions that are killed: the target is absent or complete, and no temporary files remain."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from flax import nnx

import minibert
from checkout import ROOT
from folders import contents
from forked import Forked

pytestmark = pytest.mark.unoptimised


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A model large enough for writing it to take a while."""
    folder = tmp_path_factory.mktemp("models") / "source"
    config = minibert.BertConfig(num_hidden_layers=2)
    minibert.BertModel(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("models") / "old"
    config = minibert.BertConfig.tiny(num_hidden_layers=3)
    minibert.BertModel(config, rngs=nnx.Rngs(0)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def start(source, tmp_path_factory):
    """Starts a conversion of `source`, and returns when it is writing."""
    programs = str(tmp_path_factory.mktemp("programs"))  # a killed one may leave half of one

    def run(home, *flags):
        command = [str(source), str(home / "out"), "--no-verify", *flags]
        process = Forked(converted, command, JAX_COMPILATION_CACHE_DIR=programs)
        while process.poll() is None and not list(home.rglob(".minibert-new-*")):
            time.sleep(0.002)
        return process

    return run


def converted(arguments):
    """The command `python -m convert`."""
    from convert.__main__ import command

    command()(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["new", "overwriting"])
def test_killed_at_random_moments(start, flags, source, old, tmp_path):
    """kill -9, ten times each: absent or complete; the next run puts back and cleans up."""
    expected, before = contents(source), contents(old)
    draw, seen, littered = random.Random(0), set(), 0
    for turn in range(10):
        home = tmp_path / str(turn)
        home.mkdir()
        if flags:
            minibert.load(old).save_pretrained(home / "out")
            (home / "out" / "thesis.tex").write_text("mine")
        process = start(home, *flags)
        time.sleep(draw.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        littered += bool(list(home.rglob(".minibert-*")))
        assert not flags or (home / "out" / "thesis.tex").read_text() == "mine"
        if (home / "out" / "config.json").exists():
            found = contents(home / "out")
            assert found == expected or (flags and found == before)
            seen.add("new" if found == expected else "old")
        else:
            seen.add("absent")
            assert not flags or list(home.glob("out/.minibert-*"))
        again = start(home, "--overwrite")
        again.communicate()
        assert again.poll() == 0
        assert os.listdir(home) == ["out"]
        assert contents(home / "out") == expected
        own = {"config.json", "model.safetensors"} | ({"thesis.tex"} if flags else set())
        assert set(os.listdir(home / "out")) == own
    assert littered
    assert seen & {"absent", "old"}


SWALLOWED = """
import gc, os, signal, time
from minibert.__main__ import run

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process inherits

def interrupted(*_):
    gc.callbacks.remove(interrupted)
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass

def command():
    gc.callbacks.append(interrupted)
    gc.collect()
    time.sleep(60)

run(lambda: command)
"""


def test_an_interrupt_that_python_ignores():
    """In a callback of the garbage collector: obeyed all the same, in one line."""
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


INSIDE_OF_EXEC = """
import os, signal, time
from minibert.__main__ import run

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process inherits
run(lambda: lambda: exec("os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"))
"""


def test_an_interrupt_inside_of_exec(tmp_path):
    """As while libraries define dataclasses: Python would end by the signal, and its status."""
    (tmp_path / "given.py").write_text(INSIDE_OF_EXEC)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "given"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_interrupt_of_which_another_error_is_made():
    """As a library does that cannot be imported because of it."""
    from minibert.cli.convert import _interruptible

    def imported():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError from None

    with pytest.raises(KeyboardInterrupt), _interruptible():
        imported()


def importing(process):
    """Returns whether a process imports libraries already, or has ended."""
    try:
        return "numpy" in pathlib.Path(f"/proc/{process.pid}/maps").read_text()
    except OSError:
        return True


@pytest.mark.slow
def test_interrupted_at_random_moments(source, old, tmp_path):
    """Ctrl-C from the first import to the exit: one line and its status, and the old or the new."""
    pytest.importorskip("orbax.checkpoint")
    expected, before = contents(source), contents(old)
    draw, seen, least = random.Random(0), set(), {}
    for turn in range(-3, 20):  # the first three are not interrupted: how long do they take?
        kind = turn % 3
        home = tmp_path / str(turn)
        home.mkdir()
        flags = [[], ["--overwrite"], ["--to", "orbax"]][kind]
        if kind == 1:
            minibert.load(old).save_pretrained(home / "out")
        command = [sys.executable, "-m", "convert", source, home / "out", "--no-verify", *flags]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while not importing(process):
            time.sleep(0.01)
        start = time.monotonic()
        if turn >= 0:
            time.sleep(draw.uniform(0, least[kind]))
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        least.setdefault(kind, time.monotonic() - start)
        interrupted = process.returncode == 130
        assert (process.returncode, said) == ((130, "interrupted\n") if interrupted else (0, ""))
        if (home / "out").exists():
            found = contents(home / "out")
            assert len(found) == len(expected) if kind == 2 else found in (expected, before)
            assert interrupted or kind == 2 or found == expected
        assert (home / "out").exists() or (interrupted and kind != 1)
        assert set(os.listdir(home)) <= {"out"}
        assert not list(home.glob("out/.minibert-*"))
        seen.add((interrupted, turn >= 0))
    assert (True, True) in seen


@pytest.mark.slow
def test_interrupted(start, source, tmp_path):
    """Ctrl-C at random moments of the writing: always obeyed, and nothing is left."""
    draw = random.Random(1)
    for turn in range(4):
        home = tmp_path / str(turn)
        home.mkdir()
        process = start(home)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGINT)
        process.communicate()
        if process.poll() == 0:  # it was past the last moment to stop
            assert contents(home / "out") == contents(source)
        else:
            assert os.listdir(home) == []
