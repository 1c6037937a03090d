"""A training process keeps the memory that it frees, and does not need more with every step."""

import json
import platform
import subprocess
import sys

import pytest

from minibert.cli.train import train
from minibert.train import keep_memory, memory

PROGRAM = """
import ctypes, resource, sys, threading
from minibert.train import keep_memory

if sys.argv[1] == "kept":
    assert keep_memory()
libc, size = ctypes.CDLL(None), 65_536 * resource.getpagesize()
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of one size
libc.malloc.restype = ctypes.c_void_p

def use():
    memory = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(memory, 1, ctypes.c_size_t(size))
    libc.free(memory)

for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)  # whose memory would be its own, and mapped
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
@pytest.mark.parametrize(("kept", "least", "most"), [("kept", 0, 999), ("given back", 60_000, 1e6)])
def test_pages_are_the_systems_once(kept, least, most):
    command = [sys.executable, "-c", PROGRAM, kept]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


@pytest.mark.parametrize(
    ("device", "expected"),
    [(None, ["kept", "run"]), ("cpu", ["kept", "run"]), ("CPU", ["kept", "run"]), ("tpu", ["run"])],
)
def test_the_command_keeps_it_before_jax_computes(device, expected, monkeypatch):
    calls = []

    def settings(device):
        calls.append("run")
        raise InterruptedError

    monkeypatch.setattr("minibert.train.keep_memory", lambda: calls.append("kept"))
    monkeypatch.setattr("minibert.cli.train.settings", settings)
    with pytest.raises(InterruptedError):
        train("config.toml", device=device)
    assert calls == expected


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert not keep_memory()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_steps_need_no_more_memory(tmp_path):
    """At most 1 MiB in 1,000 steps, of which the history takes 0.6."""
    pytest.importorskip("grain", reason="the data are Grain's")
    pytest.importorskip("orbax.checkpoint", reason="the checkpoints are Orbax's")
    import training
    from forked import Forked

    programs = str(tmp_path / "programs")
    run = Forked(training.grow, tmp_path, 5000, JAX_COMPILATION_CACHE_DIR=programs)
    half, whole = json.loads(run.communicate())
    assert run.poll() == 0
    assert whole - half <= 2.5, (half, whole)
