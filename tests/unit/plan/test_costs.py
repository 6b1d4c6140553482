"""FLOPs of traced programs, out-of-memory messages, and bounds against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ba_jax.metrics.chips import CHIPS
from ba_jax.plan import costs
from ba_jax.plan.costs import CollectiveSum, OutOfMemory, bound_time
from ba_jax.plan.topology import Topology


def flops(function, *shapes) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return costs.count_flops(jax.make_jaxpr(function)(*arguments))


def test_products_convolutions_and_loops():
    assert flops(lambda a, b: a @ b, (4, 8), (8, 16)) == 2 * 4 * 8 * 16
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 4, 8), (3, 8, 2)) == 2 * 3 * 64

    def loop(x, w):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, w)[0]

    assert flops(loop, (4, 8), (5, 8, 8)) == 5 * 2 * 4 * 8 * 8
    # A backward pass has a product for the weights and one for the inputs.
    assert flops(jax.grad(lambda x, w: loop(x, w).sum(), (0, 1)), (4, 8), (5, 8, 8)) == 3 * 2560

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )

    assert flops(convolve, (2, 10, 3), (3, 3, 7)) == 2 * 2 * 8 * 7 * 3 * 3

    def choose(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)

    assert flops(choose, (8, 8), (8, 8)) == 2 * 8**3


def test_remat_is_counted_again():
    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w)

    def loss(function):
        return jax.grad(lambda x, w: function(x, w).sum(), (0, 1))

    once = flops(loss(layer), (8, 8), (8, 8))
    again = flops(loss(jax.checkpoint(layer)), (8, 8), (8, 8))
    assert once == 6 * 2 * 8**3
    assert once < again <= 8 * 2 * 8**3


def test_bytes_that_scans_keep_for_the_backward_pass():
    def loss(x, w):
        return jax.lax.scan(lambda c, w: (jnp.sin(c @ w), None), x, w)[0].sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((6, 8), (5, 8, 8))]
    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*shapes)
    kept = costs.count_kept_bytes(jaxpr, rows=6)
    # The input and the derivative of the sine, not the gradient of the weights.
    assert kept in (5 * 6 * 8 * 4, 2 * 5 * 6 * 8 * 4)


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


def test_bound_by_hand():
    topology = make_topology("v5p", 4, 4)
    collectives = {
        "all-gather": CollectiveSum(1, 1, received=600e9, received_across=0.0),
        "all-reduce": CollectiveSum(1, 1, received=0.0, received_across=6.25e9 * 5),
    }
    bound = bound_time(
        topology, 4 * 459e12, 8 * 459e12, 2765e9 * 3, collectives, {"tokens": 1000.0}
    )
    assert bound.compute == pytest.approx(2) and bound.hbm == pytest.approx(3)
    assert bound.ici == pytest.approx(1) and bound.dcn == pytest.approx(5)
    assert bound.seconds == pytest.approx(5) and bound.by == "dcn"
    assert bound.mfu == pytest.approx(1 / 5)
    assert bound.a_day == {"tokens": pytest.approx(1000 * 86400 / 5)}


def test_a_device_may_be_half_a_chip():
    """A TPU7x is two devices."""
    args = (1e15, 1e15, 1e12, {"all-gather": CollectiveSum(1, 1, 1e9, 0)}, {})
    whole, half = (
        bound_time(make_topology("tpu7x", 4, 4), *args),
        bound_time(make_topology("tpu7x", 4, 8), *args),
    )
    assert half.compute == whole.compute
    assert half.hbm == pytest.approx(2 * whole.hbm) and half.ici == pytest.approx(2 * whole.ici)
