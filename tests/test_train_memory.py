"""A training process keeps the memory that it frees."""

import platform
import subprocess
import sys

import pytest

from minibert.train import keep_memory, memory

PROGRAM = """
import ctypes, resource, sys, threading
from minibert.train import keep_memory

if sys.argv[1] == "kept":
    assert keep_memory()
libc, size = ctypes.CDLL(None), 256 << 20
libc.malloc.restype = ctypes.c_void_p

def use():
    room = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(room, 1, ctypes.c_size_t(size))
    libc.free(room)

for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=use)  # whose memory would be its own, and mapped
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
@pytest.mark.parametrize(("kept", "least", "most"), [("kept", 0, 999), ("given back", 60_000, 1e6)])
def test_pages_are_the_systems_once(kept, least, most):
    command = [sys.executable, "-c", PROGRAM, kept]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert least <= int(done.stdout) <= most


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert not keep_memory()
