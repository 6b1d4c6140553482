"""Devices to compile for: TPU slices that need not be there, or GPUs.

    v4:2x2x1  v5e:16x16  v5p:4x4x4  v6e:16x16  tpu7x:2x2x2      chips along each dimension
    h100:8    h200:16                                           number of GPUs

libtpu compiles for TPUs without a TPU. GPU programs are compiled only on such GPUs; elsewhere
arrays are laid out over simulated CPU devices, and costs are estimated.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from ba_jax.config import ConfigError, expected
from ba_jax.metrics.chips import CHIPS, Chip

# Without these libtpu asks a metadata server which TPU this is, and waits for it.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
# libtpu needs these bounds for a slice smaller than its default host.
_SINGLE = {"v5e": (1, 1, 1), "v6e": (1, 1, 1)}


class PlanError(ValueError):
    """A chip, topology, mesh or config that cannot be planned; names the valid values."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to plan for.

    Attributes:
      name: "v5p:4x4x4".
      chip: kind of chip.
      chips: their number in all slices.
      slices: number of slices.
      devices: devices for a mesh; two per chip if a chip is two devices.
      compiles: whether programs can be compiled for them.
    """

    name: str
    chip: Chip
    chips: int
    slices: int
    devices: Sequence[Any]
    compiles: bool

    @property
    def share(self) -> float:
        """Share of a chip that a device is."""
        return self.chips / len(self.devices)


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Parse the name of a topology into chip and shape.

    Raises:
      ConfigError: another form, an unknown chip, or another number of dimensions than the chip's.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    if not match:
        raise ConfigError(
            f"--topology={name}: expected CHIP:SHAPE such as v5p:4x4x4, v6e:16x16 or h100:8; the "
            f"chips are {', '.join(CHIPS)}"
        )
    if match[1] not in CHIPS:
        raise ConfigError(f"--topology={name}: chip {expected(match[1], CHIPS)}")
    chip = CHIPS[match[1]]
    shape = tuple(map(int, match[2].split("x")))
    if len(shape) != max(chip.dimensions, 1) or min(shape) < 1:
        form = "x".join("N" * chip.dimensions) or "N"
        raise ConfigError(f"--topology={name}: expected {chip.name}:{form}, each N at least 1")
    return chip, shape


def wrapped_axes(chip: Chip, shape: tuple[int, ...]) -> tuple[bool, bool, bool]:
    """Tell which axes of a slice have links from their last chip back to the first.

    v4, v5p and tpu7x are built of cubes of 4 x 4 x 4: a slice of whole cubes is a torus, a smaller
    one is open (docs.cloud.google.com/tpu/docs/v5p: "All 4x4x4 and larger slices (one cube) have
    full 3D torus connectivity. Slices smaller than a full cube [...] don't have wrap-around
    links"). A pod of v5e or v6e is 16 x 16: only an axis of 16 is closed. So does MaxText
    (`accelerator_to_spec_map.py` of 0.2.5: v6e-128, 8x16, has (False, True, False)). In an open
    slice XLA writes a gather as an all-reduce, which moves twice as much.
    """
    if chip.dimensions == 3:
        return (all(size % 4 == 0 for size in shape),) * 3
    return (shape[0] == 16, shape[1] == 16, False)


def prepare_process(name: str, effort: float = -1.0) -> None:
    """Configure JAX for a topology; call it before JAX starts a backend.

    TPUs of the host are not opened: the compiled programs never run.

    Args:
      name: such as "v5e:8x8".
      effort: XLA's optimisation effort, -1 to 1: -1 compiles fastest, 0 as users do. JAX 0.12 knows
        its sign alone.
    """
    chip, shape = parse_topology(name)
    if "jax_exec_time_optimization_effort" in jax.config.values:
        jax.config.update("jax_exec_time_optimization_effort", effort)
    else:
        level = "UNKNOWN" if not effort else "O1" if effort < 0 else "O3"
        jax.config.update("jax_optimization_level", level)
    # The cache cannot load programs for absent devices.
    jax.config.update("jax_enable_compilation_cache", False)
    if chip.is_tpu:
        for key, value in ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        jax.config.update("jax_platforms", "cpu")
    else:
        jax.config.update("jax_num_cpu_devices", math.prod(shape))


def open_topology(name: str, slices: int = 1) -> Topology:
    """Open the devices of a topology.

    Raises:
      PlanError: a topology unknown here or to libtpu, or libtpu is missing.
    """
    chip, shape = parse_topology(name)
    if slices < 1:
        raise PlanError(f"slices = {slices}: expected at least 1")
    chips = math.prod(shape) * slices
    if chip.is_tpu:
        devices = _tpu_devices(name, chip, shape, slices)
        return Topology(name, chip, chips, slices, devices, True)
    if slices > 1:
        raise PlanError(f"slices = {slices} with {name}: expected 1, GPUs have none")
    try:
        gpus = [gpu for gpu in jax.devices("gpu") if chip.name in gpu.device_kind.lower()]
    except RuntimeError:  # JAX has no GPU backend
        gpus = []
    if len(gpus) >= chips:
        return Topology(name, chip, chips, 1, gpus[:chips], True)
    devices = jax.devices("cpu")
    if len(devices) < chips:
        raise PlanError(f"{name}: {len(devices)} simulated devices, expected {chips}")
    return Topology(name, chip, chips, 1, devices[:chips], False)


def _tpu_devices(name: str, chip: Chip, shape: tuple[int, ...], slices: int) -> list[Any]:
    from jax.experimental import topologies

    options: dict[str, Any] = {"wrap": wrapped_axes(chip, shape)}
    if slices > 1:
        options["num_slices"] = slices
    if math.prod(shape) == 1 and chip.name in _SINGLE:
        options["chips_per_host_bounds"] = _SINGLE[chip.name]
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except Exception as error:  # the plugin raises errors of jaxlib and of Python
        first = str(error).strip().splitlines()[0]
        raise PlanError(
            f"topology {name!r} in {slices} slices: libtpu refuses it ({first}); known "
            "are, for example, v4:2x2x1, v5e:2x2 to 16x16, v5p:2x2x1 to 8x16x16, v6e:2x2 to 16x16, "
            "tpu7x:2x2x1; `pip install libtpu` if it is missing"
        ) from error
    return list(description.devices)
