"""Devices to compile for: TPU slices that need not be there, or GPUs.

    v4:2x2x1  v5e:16x16  v5p:4x4x4  v6e:16x16  tpu7x:2x2x2      chips along each dimension
    h100:8    h200:16                                           how many

libtpu compiles for TPUs without one. GPUs are compiled for where they are; elsewhere their arrays
are laid out over as many simulated CPU devices, and what compiling would tell is estimated.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from ba_jax.metrics.chips import CHIPS, Chip

# Without these libtpu asks a metadata server which TPU this is, and waits for it.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# What libtpu wants to know of a slice smaller than its default host.
_SINGLE = {"v5e": (1, 1, 1), "v6e": (1, 1, 1)}


class PlanError(ValueError):
    """A chip, topology, mesh or config that cannot be planned; names the valid values."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
      name: "v5p:4x4x4".
      chip: of which kind.
      chips: how many, of all slices.
      slices: how many.
      devices: to make a mesh of; two a chip where a chip is two devices.
      compiles: they can be compiled for.
    """

    name: str
    chip: Chip
    chips: int
    slices: int
    devices: Sequence[Any]
    compiles: bool

    @property
    def share(self) -> float:
        """Of a chip that a device is."""
        return self.chips / len(self.devices)


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Chip and shape of a topology's name.

    Raises:
      PlanError: not of this form, or of another number of dimensions than the chip's.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match:
        raise PlanError(
            f"topology {name!r}: expected CHIP:SHAPE such as v5p:4x4x4, v6e:16x16 or h100:8; the "
            f"chips are {', '.join(CHIPS)}"
        )
    if match[1] not in CHIPS:
        raise PlanError(f"chip {match[1]!r}: expected one of {', '.join(CHIPS)}")
    chip = CHIPS[match[1]]
    shape = tuple(map(int, match[2].split("x")))
    if len(shape) != max(chip.dimensions, 1) or min(shape) < 1:
        form = "x".join("N" * chip.dimensions) or "N"
        raise PlanError(f"topology {name!r}: expected {chip.name}:{form}, each N at least 1")
    return chip, shape


def prepare_process(name: str) -> None:
    """Makes JAX ready for a topology; before anything else of JAX runs.

    TPUs that a host may have are left to others: what is compiled here never runs.
    """
    chip, shape = parse(name)
    # Programs for devices that are not there cannot be read back from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    if chip.is_tpu:
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        jax.config.update("jax_platforms", "cpu")
    else:
        jax.config.update("jax_num_cpu_devices", math.prod(shape))


def open_topology(name: str, slices: int = 1) -> Topology:
    """The devices of a topology.

    Raises:
      PlanError: an unknown topology, one that libtpu does not know, or no libtpu.
    """
    chip, shape = parse(name)
    if slices < 1:
        raise PlanError(f"slices = {slices}: expected at least 1")
    chips = math.prod(shape) * slices
    if chip.is_tpu:
        devices = _tpu_devices(name, chip, shape, slices)
        return Topology(name, chip, chips, slices, devices, True)
    if slices > 1:
        raise PlanError(f"slices = {slices} with {name}: expected 1, GPUs have none")
    gpus = [gpu for gpu in _gpus() if chip.name in gpu.device_kind.lower()]
    if len(gpus) >= chips:
        return Topology(name, chip, chips, 1, gpus[:chips], True)
    devices = jax.devices("cpu")
    if len(devices) < chips:
        raise PlanError(f"{name}: {len(devices)} simulated devices, expected {chips}")
    return Topology(name, chip, chips, 1, devices[:chips], False)


def _gpus() -> list[Any]:
    try:
        return jax.devices("gpu")
    except RuntimeError:
        return []


def _tpu_devices(name: str, chip: Chip, shape: tuple[int, ...], slices: int) -> list[Any]:
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if math.prod(shape) == 1 and chip.name in _SINGLE:
        options["chips_per_host_bounds"] = _SINGLE[chip.name]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # whatever the plugin raises: jaxlib's and Python's errors
        first = str(error).strip().splitlines()[0]
        raise PlanError(
            f"topology {name!r} in {slices} slices: libtpu refuses it ({first}); known are for "
            "example v4:2x2x1, v5e:2x2 to 16x16, v5p:2x2x1 to 8x16x16, v6e:2x2 to 16x16, "
            "tpu7x:2x2x1; `pip install libtpu` if it is not there"
        ) from error
    return list(found.devices)
