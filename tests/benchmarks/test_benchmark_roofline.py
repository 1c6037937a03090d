"""The network of described TPUs: ports, and the min time of a collective."""

import numpy as np
import pytest

from benchmarks.hlo_costs import Collective
from benchmarks.roofline import CHIPS, links, network_seconds


def grid(*shape: int) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize(
    ("members", "ports"),
    [
        (grid(2, 2), 2),
        (grid(2, 1), 1),
        (grid(4, 1), 1),  # a row of four is no ring
        (grid(16, 1), 2),  # one of sixteen is
        (grid(16, 4), 3),
        (grid(16, 16), 4),
    ],
)
def test_counts_ports(members: np.ndarray, ports: int):
    assert links(CHIPS["v5e"], members) == ports


def test_network_seconds():
    gather = Collective("all-gather", 4 * 10**9, 0, [[0, 1, 2, 3]], 3)
    reduce = Collective("all-reduce", 4 * 10**9, 0, [[0, 1], [2, 3]], 1, results=2 * 10**9)
    places = grid(2, 2)
    assert network_seconds(CHIPS["v5e"], places, gather) == pytest.approx(3 * 3 / (2 * 50))
    assert network_seconds(CHIPS["v5e"], places, reduce) == pytest.approx((4 + 2) / 2 / 50)
