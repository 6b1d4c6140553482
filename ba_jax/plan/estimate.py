"""How long a step takes at least, and what that makes of a day."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ba_jax.plan.compiled import CollectiveSum, Compiled
from ba_jax.plan.topology import Topology

DAY = 86400.0


@dataclasses.dataclass(frozen=True)
class Bound:
    """Bounds of a step, seconds: as if everything else cost nothing.

    Attributes:
      compute: the devices' FLOPs at their peak, with what remat repeats.
      hbm: bytes moved at the memory's full speed.
      ici: bytes received from others of the slice over all links at once.
      dcn: bytes received from other slices.
      seconds: the largest of them.
      mfu: the model's FLOPs over what the chips could do in `seconds`.
      a_day: amount -> how much of it a day of such steps is.
    """

    compute: float
    hbm: float
    ici: float
    dcn: float
    seconds: float
    mfu: float
    a_day: dict[str, float]

    @property
    def by(self) -> str:
        """What bounds it."""
        names = ("compute", "hbm", "ici", "dcn")
        return max(names, key=lambda name: getattr(self, name))


def bound(
    topology: Topology,
    model_flops: float,
    device_flops: float,
    bytes_accessed: float,
    collectives: Mapping[str, CollectiveSum],
    amounts: Mapping[str, float],
) -> Bound:
    """Bounds from the chip's figures.

    Args:
      topology: its chips.
      model_flops: of a step, all chips together.
      device_flops: of a step, all chips together, see `Compiled`.
      bytes_accessed: of a device.
      collectives: of a device.
      amounts: of a step, "tokens" and the like.
    """
    chip, share = topology.chip, topology.share
    inside = sum(one.received for one in collectives.values())
    across = sum(one.received_across for one in collectives.values())
    parts = (
        device_flops / (topology.chips * chip.peak),
        bytes_accessed / (chip.hbm_bandwidth * share),
        inside / (chip.ici_bandwidth * share),
        across / (chip.dcn_bandwidth * share),
    )
    seconds = max(parts)
    return Bound(
        *parts,
        seconds,
        model_flops / (topology.chips * chip.peak * seconds) if seconds else 0.0,
        {name: amount * DAY / seconds for name, amount in amounts.items()} if seconds else {},
    )


def bound_of(topology: Topology, compiled: Compiled, model_flops: float, amounts) -> Bound:
    """`bound` of a compiled step."""
    return bound(
        topology,
        model_flops,
        compiled.device_flops,
        compiled.bytes_accessed,
        compiled.collectives,
        amounts,
    )
