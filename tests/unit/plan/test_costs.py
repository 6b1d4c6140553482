"""Out-of-memory messages, and times of a step against counts by hand."""

from __future__ import annotations

import pytest

from ba_jax.metrics.chips import CHIPS
from ba_jax.plan import costs
from ba_jax.plan.collectives import Collective
from ba_jax.plan.costs import CollectiveSum, OutOfMemory, step_time
from ba_jax.plan.hlo import InstructionCost
from ba_jax.plan.topology import Topology

MESSAGE = """\
RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used \
20.52G of 15.75G hbm. Exceeded hbm capacity by 4.77G.

Total hbm usage >= 20.77G:
    reserved        258.00M
    program          18.61G
    arguments         1.91G

  Largest program allocations in hbm:

  1. Size: 4.64G
     Operator: op_name="jit(step)/text_logits/dot_general"
     Shape: f32[4,2048,152064]{2,1,0:T(8,128)}
     Unpadded size: 4.64G
     XLA label: fusion.12 = fusion(...)
     Allocation type: HLO temp
     ==========================

  2. Size: 896.00M
     Shape: bf16[28,4,4096,1024]{3,2,1,0:T(8,128)(2,1)}
     Allocation type: HLO temp
"""


def test_out_of_memory_message():
    used, limit, largest = costs.parse_out_of_memory(MESSAGE)
    assert used == int(20.52 * 2**30) and limit == int(15.75 * 2**30)
    assert largest == [
        (int(4.64 * 2**30), "f32[4,2048,152064]", "jit(step)/text_logits/dot_general"),
        (896 * 2**20, "bf16[28,4,4096,1024]", ""),
    ]


def test_out_of_memory_message_of_temporaries():
    error = OutOfMemory(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (34.39G) exceeds available HBM (15.75G)."
    )
    assert error.used == int(34.39 * 2**30) and error.limit == int(15.75 * 2**30)
    assert error.temporaries_alone and error.largest == []


def test_out_of_memory_message_without_sizes():
    error = OutOfMemory("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.5G")
    assert (error.used, error.limit, error.largest) == (int(3.5 * 2**30), 0, [])
    assert OutOfMemory("RESOURCE_EXHAUSTED").used == 0


def make_topology(chip: str, chips: int, devices: int, slices: int = 1) -> Topology:
    return Topology(f"{chip}:{chips}", CHIPS[chip], chips, slices, range(devices), True)


def test_times_by_hand():
    topology = make_topology("v5p", 4, 4)
    collectives = {
        "all-gather": CollectiveSum(1, 1, received=600e9, received_across=0.0),
        "all-reduce": CollectiveSum(1, 1, received=0.0, received_across=6.25e9 * 5),
    }
    args = (topology, 4 * 459e12, 8 * 459e12, 2765e9 * 3, collectives)
    time = step_time(*args, serial=10.0, trains=True)
    assert time.compute == pytest.approx(2) and time.hbm == pytest.approx(3)
    assert time.ici == pytest.approx(1) and time.dcn == pytest.approx(5)
    assert time.bound == pytest.approx(5) and time.by == "dcn"
    assert time.mfu(time.bound) == pytest.approx(1 / 5)
    assert time.best == ("expected", pytest.approx(12)) and time.measured_on == "v5p"
    assert time.a_day({"tokens": 1000.0}) == {"tokens": pytest.approx(1000 * 86400 / 12)}
    assert step_time(*args, serial=10.0).best == ("serial", 10.0)  # generation
    assert step_time(*args, trains=True).best == ("bound", time.bound)


@pytest.mark.parametrize(
    ("chip", "expected", "measured_on"),
    [("v6e", 1.6, "v6e"), ("v5e", 1.6, "v6e"), ("v4", 1.2, "v5p"), ("tpu7x", None, "")],
)
def test_no_slowdown_is_invented(chip, expected, measured_on):
    time = step_time(make_topology(chip, 4, 4), 1e12, 1e12, 1e9, {}, 1.0, trains=True)
    assert (time.expected, time.measured_on) == (expected, measured_on)


def test_a_device_may_be_half_a_chip():
    """A TPU7x is two devices."""
    args = (1e15, 1e15, 1e12, {"all-gather": CollectiveSum(1, 1, 1e9, 0)})
    whole, half = (
        step_time(make_topology("tpu7x", 4, 4), *args),
        step_time(make_topology("tpu7x", 4, 8), *args),
    )
    assert half.compute == whole.compute
    assert half.hbm == pytest.approx(2 * whole.hbm) and half.ici == pytest.approx(2 * whole.ici)


def test_products_of_8_bits_at_twice_the_peak():
    chip, topology = CHIPS["v6e"], make_topology("v6e", 4, 4)
    assert step_time(topology, 1.0, 4 * chip.peak, 0.0, {}, doubled=3 * chip.peak).compute == 0.625
    cost = InstructionCost("products", 4 * chip.peak, 0.0, (), doubled=3 * chip.peak)
    assert costs.serial_seconds([cost], topology) == 2.5


def test_serial_roofline_by_hand():
    """Each instruction takes its longest part, and nothing hides but what is asynchronous."""
    v5p = CHIPS["v5p"]
    gather = {"kind": "all-gather", "bytes": v5p.ici_bandwidth * 2, "group": 2, "times": 1.0}
    waited = Collective(**gather, crosses=False)
    across = Collective(**gather, crosses=True)
    hidden = Collective(**gather, crosses=False, is_async=True)
    costs_ = [
        InstructionCost("products", 3 * v5p.peak, 2 * v5p.hbm_bandwidth, ()),
        InstructionCost("copy", 0.0, 5 * v5p.hbm_bandwidth, ()),
        InstructionCost("gather", 0.0, 0.5 * v5p.hbm_bandwidth, (waited,)),
        InstructionCost("start", 0.0, 0.25 * v5p.hbm_bandwidth, (hidden,)),
        InstructionCost("other slice", 0.0, 0.0, (across,)),
    ]
    dcn = v5p.ici_bandwidth / v5p.dcn_bandwidth
    whole, half = make_topology("v5p", 4, 4), make_topology("v5p", 4, 8)
    assert costs.serial_seconds(costs_, whole) == pytest.approx(3 + 5 + 1 + 0.25 + dcn)
    assert costs.serial_seconds(costs_, half) == pytest.approx(2 * (3 + 5 + 1 + 0.25 + dcn))
    sums = costs.sum_collectives(costs_)["all-gather"]
    assert (sums.count, sums.received) == (3, 2 * v5p.ici_bandwidth)
    assert sums.received_across == sums.asynchronous == v5p.ici_bandwidth
