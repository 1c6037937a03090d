"""Training in several real processes, each with its own devices and its own rows."""

import socket
import subprocess
import sys

import numpy as np
import pytest
from test_sharding import MIX, check_equal, environment, finished, start, trained

from conftest import FLOAT64


def own_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def processes(jobs, count, devices=8):
    """What each of some processes finds; how many devices they have is of all together."""
    address, own = own_address(), devices // count
    started = [start(jobs, address, str(count), str(n), devices=own) for n in range(count)]
    try:
        return [finished(process) for process in started]
    finally:
        for process in started:
            process.kill()


def alone_and_together(jobs, count, devices=8):
    """The results of each job in one process with one device, and in each of several processes."""
    plain = [job | {"sizes": None} for job in jobs]
    distinct = [job for number, job in enumerate(plain) if job not in plain[:number]]
    found = trained(distinct, devices=1)
    alone = [found[distinct.index(job)] for job in plain]
    several = processes(jobs, count, devices)
    return [pair for found in several for pair in zip(alone, found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "meshes"), [(2, [MIX, {"fsdp": 8}]), (4, [MIX])])
def test_processes_give_the_losses_of_one_device(count, meshes):
    jobs = [
        {"family": family, "layers": 1, "dropout": 0.1, "sizes": sizes}
        for family in ("gpt2", "bert")
        for sizes in meshes
    ]
    for alone, together in alone_and_together(jobs, count):
        check_equal(alone, together)


def check_windows(jobs, count, devices):
    """Losses on what `data` makes, in several processes and in one; what the several print."""
    jobs = [{"family": "gpt2", "layers": 1, "dropout": 0.1, "windows": True} | job for job in jobs]
    pairs = alone_and_together(jobs, count, devices)
    for alone, together in pairs:
        assert np.abs(np.subtract(together["windows"], alone["windows"])).max() <= FLOAT64
    return [together for _, together in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "meshes"),
    [
        (2, [{"data": 2}]),
        (4, [{"data": 4}, {"data": 2, "fsdp": 2}, {"fsdp": 2, "tensor": 2}]),
    ],
)
def test_processes_draw_what_one_device_draws(count, meshes):
    """Dropout in each part of a batch, of the rows that `data` makes for each process."""
    pytest.importorskip("grain", reason="the data are Grain's")
    check_windows([{"accumulate": 2, "sizes": sizes} for sizes in meshes], count, count)


NARROW = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from minibert.sharding.placement import check_shares
from minibert.sharding.mesh import Sharding
for number in range(20):  # of whose checksums half have 32 bits
    check_shares(Sharding.of_devices(tensor=2), {"ids": np.arange(8) + number})
    own = jax.process_index()
    check_shares(Sharding.of_devices(fsdp=2), {"ids": np.arange(8) + 100 * own + number})
"""


def test_shares_are_compared_in_32_bits_too():
    address = own_address()
    commands = [[sys.executable, "-c", NARROW, address, str(number)] for number in range(2)]
    started = [subprocess.Popen(command, env=environment(1)) for command in commands]
    assert [process.wait(timeout=300) for process in started] == [0, 0]


@pytest.mark.slow
def test_processes_that_share_tensors_pass_the_same_rows():
    """Four processes of two devices each: a tensor axis of four lies over two of them."""
    pytest.importorskip("grain", reason="the data are Grain's")
    found = check_windows([{"sizes": {"data": 2, "tensor": 4}}], 4, 8)
    for number, together in enumerate(found):
        assert together["shares"] == 2
        if number in (0, 3):  # whose neighbours gave the other half
            assert "found different ones; pass share=sharding.share" in together["said"]
