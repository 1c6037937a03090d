"""The least time a program can take on a chip: that of its products, its memory or its network.

Williams, Waterman and Patterson, "Roofline: an insightful visual performance model" (2009). The
bound is optimistic: every unit at its published peak, and all three at work at once.
"""

import dataclasses

import numpy as np

from benchmarks.hlo_costs import Collective

DOCS = "docs.cloud.google.com/tpu/docs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip's published figures.

    Attributes:
        flops: bfloat16 operations a second.
        hbm: bytes of memory.
        bandwidth: bytes a second, of memory.
        link: bytes a second that one port of the interconnect sends (a chip's published figure
            counts both directions of all ports).
        ring: how many chips in a row close to a ring; shorter rows end (the scaling book,
            jax-ml.github.io/scaling-book/tpus).
        source: where the figures are from.
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
    """Through how many ports the chip in the corner of a group reaches the rest of it.

    Args:
        chip: the kind.
        members: the group's coordinates, `(chips, dimensions)`.
    """
    found = 0
    for along in members.T:
        length = len(set(along.tolist()))
        found += 0 if length == 1 else 2 if length > 2 and length % chip.ring == 0 else 1
    return found


def network_seconds(chip: Chip, places: np.ndarray, collective: Collective) -> float:
    """The least time of a collective, as often as it is done.

    Args:
        chip: the kind.
        places: the devices' coordinates in the order of the mesh, `(devices, dimensions)`.
        collective: what is to be done.
    """
    ports = min(links(chip, places[group]) for group in collective.groups)
    return collective.times * collective.sent / (ports * chip.link)
