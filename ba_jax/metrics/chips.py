"""Table of accelerator chips, from the makers' figures: peak, memory, and links between chips.

TPUs: Google's pages "TPU v4", "v5e", "v5p", "v6e", "TPU7x (Ironwood)" (docs.cloud.google.com/tpu),
read in 2026; v4's links from Jouppi et al. 2023 (arXiv 2304.01433: six of 50 GB/s). GPUs: NVIDIA's
data sheets of the H100 SXM and the H200 (NVLink 4: 900 GB/s both ways together).

Products of 8-bit numbers are twice as fast where these say so: of integers 393 (v5e), 1836 (v6e)
and 1979 TOPS (H100, H200), of float8 4614 (TPU7x) and 1979 TFLOPS (H100, H200), all dense. The page
of TPU7x gives v5p and v6e no more for float8 than for bf16; neither page gives v5p or TPU7x a
figure for integers.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of a chip.

    Attributes:
      name: as in a topology, "v5e".
      kinds: `device_kind` of its JAX devices. Exact names: the PCIe and NVL cards, and slices of a
        card, are slower.
      peak: bf16 FLOP/s, dense.
      hbm_bytes: memory; a small part of it is not available to programs.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second sent over all links to other chips of the slice (and received).
      dcn_bandwidth: the same to chips of other slices, its share of the host's network.
      dimensions: dimensions of a slice's torus; 0 for GPUs.
      tensor_cores: TensorCores of a TPU chip; several may be fused into one device.
      doubled: kinds of 8-bit products that have twice the peak, as HLO names them: "s8", "f8".
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    dimensions: int
    tensor_cores: int = 1
    doubled: tuple[str, ...] = ()

    def doubles(self, *dtypes: str) -> bool:
        """Whether products of such factors are doubled; types by HLO's or by JAX's names."""
        names = (dtype.replace("float8", "f8").replace("int8", "s8") for dtype in dtypes)
        return all(name.startswith(self.doubled) for name in names)

    @property
    def is_tpu(self) -> bool:
        """Whether programs can be compiled for it without such a chip."""
        return self.dimensions > 0


_GB, _GIB, _GBIT = 10**9, 2**30, 1e9 / 8
_V4, _V5E, _V5P = ("TPU v4",), ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p")
_V6E, _V7X = ("TPU v6 lite", "TPU v6e"), ("TPU7x",)
_H100, _H200 = ("NVIDIA H100 80GB HBM3",), ("NVIDIA H200",)

CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # A host's network is not stated for v4: taken as v5p's.
        Chip("v4", _V4, 275e12, 32 * _GIB, 1200e9, 300e9, 50 * _GBIT, 3, tensor_cores=2),
        Chip("v5e", _V5E, 197e12, 16 * _GIB, 819e9, 200e9, 25 * _GBIT, 2, doubled=("s8",)),
        Chip("v5p", _V5P, 459e12, 95 * _GIB, 2765e9, 600e9, 50 * _GBIT, 3, tensor_cores=2),
        Chip("v6e", _V6E, 918e12, 32 * _GIB, 1638e9, 400e9, 100 * _GBIT, 2, doubled=("s8",)),
        Chip(
            *("tpu7x", _V7X, 2307e12, 192 * _GIB, 7380e9, 600e9, 100 * _GBIT, 3),
            tensor_cores=2,
            doubled=("f8",),
        ),
        # Eight in a host; InfiniBand NDR, a port a card, between hosts.
        Chip("h100", _H100, 989e12, 80 * _GB, 3350e9, 450e9, 400 * _GBIT, 0, doubled=("s8", "f8")),
        Chip("h200", _H200, 989e12, 141 * _GB, 4800e9, 450e9, 400 * _GBIT, 0, doubled=("s8", "f8")),
    )
}


def peak_flops(device: Any) -> float | None:
    """bf16 FLOP/s of a JAX device, or None for one that is not in the table (a CPU).

    The `num_cores` of a TPU device says how many of its chip's cores it has; without it, all.
    """
    chip = next((chip for chip in CHIPS.values() if device.device_kind in chip.kinds), None)
    if chip is None or not chip.is_tpu:
        return chip and chip.peak
    cores = getattr(device, "num_cores", None) or chip.tensor_cores
    return chip.peak * cores / chip.tensor_cores
