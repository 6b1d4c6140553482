"""What a chip has, in the makers' figures: peak, memory, and the links between chips.

TPUs: Google's pages "TPU v4", "v5e", "v5p", "v6e", "TPU7x (Ironwood)" (docs.cloud.google.com/tpu),
read in 2026; v4's links from Jouppi et al. 2023 (arXiv 2304.01433: six of 50 GB/s). GPUs: NVIDIA's
data sheets of the H100 SXM and the H200 (NVLink 4: 900 GB/s both ways together).
"""

from __future__ import annotations

import dataclasses


class PlanError(ValueError):
    """A chip, topology, mesh or config that cannot be planned; says what is known."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip's figures.

    Attributes:
      name: as in a topology, "v5e".
      peak: bf16 FLOP/s, dense.
      hbm_bytes: of memory, what the makers say; a little of it is not the program's.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second that it sends over all its links to others of its slice (and
        receives as many).
      dcn_bandwidth: the same to chips of other slices, its share of the host's network.
      dimensions: of a slice's torus; 0 for GPUs.
      cores: JAX devices of a chip. Where it is 2, a device has half of everything.
    """

    name: str
    peak: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    dimensions: int
    cores: int = 1

    @property
    def is_tpu(self) -> bool:
        """It can be compiled for without one."""
        return self.dimensions > 0


_GB, _GIB, _GBIT = 10**9, 2**30, 1e9 / 8

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # A host's network is not stated for v4: taken as v5p's.
        Chip("v4", 275e12, 32 * _GIB, 1200e9, 300e9, 50 * _GBIT, 3),
        Chip("v5e", 197e12, 16 * _GIB, 819e9, 200e9, 25 * _GBIT, 2),
        Chip("v5p", 459e12, 95 * _GIB, 2765e9, 600e9, 50 * _GBIT, 3),
        Chip("v6e", 918e12, 32 * _GIB, 1638e9, 400e9, 100 * _GBIT, 2),
        Chip("tpu7x", 2307e12, 192 * _GIB, 7380e9, 600e9, 100 * _GBIT, 3, cores=2),
        # Eight in a host; InfiniBand NDR, a port a card, between hosts.
        Chip("h100", 989e12, 80 * _GB, 3350e9, 450e9, 400 * _GBIT, 0),
        Chip("h200", 989e12, 141 * _GB, 4800e9, 450e9, 400 * _GBIT, 0),
    )
}


def find_chip(name: str) -> Chip:
    """The chip of that name.

    Raises:
      PlanError: there is none.
    """
    if name not in CHIPS:
        raise PlanError(f"chip {name!r}: expected one of {', '.join(CHIPS)}")
    return CHIPS[name]
