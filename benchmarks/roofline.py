"""Lower bounds of a program's time on a chip, from its products, memory or network.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009). The
bound is optimistic: every unit runs at its published peak, and all three at the same time.
"""

import dataclasses

import numpy as np

from benchmarks.hlo_costs import Collective

DOCS = "docs.cloud.google.com/tpu/docs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip's published figures.

    Attributes:
        flops: bfloat16 operations per second.
        hbm: bytes of memory.
        bandwidth: bytes per second of memory.
        link: bytes per second that one port of the interconnect sends (a chip's published figure
            counts both directions of all ports).
        ring: how many chips in a row form a ring; shorter rows are open (the scaling book,
            jax-ml.github.io/scaling-book/tpus).
        source: the source of the figures.
    """

    flops: float
    hbm: float
    bandwidth: float
    link: float
    ring: int
    source: str


CHIPS = {
    "v5e": Chip(
        flops=197e12, hbm=16e9, bandwidth=819e9, link=400e9 / 8, ring=16, source=f"{DOCS}/v5e"
    ),
    "v6e": Chip(
        flops=918e12, hbm=32e9, bandwidth=1638e9, link=800e9 / 8, ring=16, source=f"{DOCS}/v6e"
    ),
    "v5p": Chip(
        flops=459e12, hbm=95e9, bandwidth=2765e9, link=1200e9 / 12, ring=4, source=f"{DOCS}/v5p"
    ),
}


def links(chip: Chip, members: np.ndarray) -> int:
    """Returns the number of ports by which a group's corner chip is connected to the group.

    Args:
        chip: the kind of chip.
        members: the group's coordinates, `(chips, dimensions)`.
    """
    found = 0
    for along in members.T:
        length = len(set(along.tolist()))
        found += 0 if length == 1 else 2 if length > 2 and length % chip.ring == 0 else 1
    return found


def network_seconds(chip: Chip, places: np.ndarray, collective: Collective) -> float:
    """Returns the minimum time of a collective, over all its runs.

    Args:
        chip: the kind of chip.
        places: the devices' coordinates in the order of the mesh, `(devices, dimensions)`.
        collective: the collective.
    """
    ports = min(links(chip, places[group]) for group in collective.groups)
    return collective.times * collective.sent / (ports * chip.link)
