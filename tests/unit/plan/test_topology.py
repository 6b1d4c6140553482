"""Names of topologies, and devices that are absent."""

from __future__ import annotations

import pytest

from ba_jax.config import ConfigError
from ba_jax.plan.topology import PlanError, open_topology, parse_topology, wrapped_axes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", "CHIP:SHAPE such as"),
        ("v9z:2x2", "chip 'v9z', expected one of .'v4', 'v5e'"),
        ("v5e:2x2x2", "expected v5e:NxN"),
        ("v5p:4x4", "expected v5p:NxNxN"),
        ("h100:2x2", "expected h100:N,"),
        ("v6e:0x4", "at least 1"),
    ],
)
def test_wrong_names_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_topology(name)


@pytest.mark.parametrize(
    ("name", "wraps"),
    [
        ("v5p:4x4x4", "111"),
        ("v5p:4x4x8", "111"),
        ("v5p:2x4x4", "000"),
        ("v4:8x8x12", "111"),
        ("v4:2x2x2", "000"),
        ("tpu7x:4x4x4", "111"),
        ("tpu7x:2x2x1", "000"),
        ("v6e:16x16", "110"),
        ("v6e:8x16", "010"),
        ("v5e:8x8", "000"),
        ("v5e:16x16", "110"),
    ],
)
def test_axes_with_links_around(name, wraps):
    assert wrapped_axes(*parse_topology(name)) == tuple(wrap == "1" for wrap in wraps)


def test_absent_gpus_are_laid_out_on_cpu_devices():
    topology = open_topology("h100:1")
    assert not topology.compiles and topology.chips == 1 and topology.share == 1
    with pytest.raises(PlanError, match="slices = 2 with h100:1"):
        open_topology("h100:1", 2)
    with pytest.raises(PlanError, match="slices = 0"):
        open_topology("h100:1", 0)
