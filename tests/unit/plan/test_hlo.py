"""Reading a compiled program's text: counts by hand."""

from __future__ import annotations

import pathlib
import re

import jax
import pytest

from ba_jax.metrics.chips import CHIPS
from ba_jax.plan import costs, hlo
from ba_jax.plan.traced import count_flops
from tests.integration import plan_programs

# A loop of 3 over a layer whose weights it slices out of a stack, gathers and multiplies; a fusion
# that writes into a buffer in place; XLA:TPU's reduce-scatter; a conditional; an array in VMEM.
DATA = pathlib.Path(__file__).parents[2] / "data" / "plan"
TEXT = (DATA / "loop.hlo").read_text()
LAYER = 8 * 16 * 4


def collectives(text: str, *slices: int) -> list[hlo.Collective]:
    return [c for cost in hlo.HloProgram(text, *slices).costs() for c in cost.collectives]


def bytes_accessed(text: str) -> float:
    return sum(cost.bytes for cost in hlo.HloProgram(text).costs())


def test_a_loop_counts_as_often_as_it_runs():
    program = hlo.HloProgram(TEXT)
    assert program.unknown_loops == []
    assert program.weights["body"] == 3
    by_kind = {c.kind: c for c in collectives(TEXT)}
    assert set(by_kind) == {"all-gather", "reduce-scatter"}
    gather, scatter = by_kind["all-gather"], by_kind["reduce-scatter"]
    assert (gather.times, gather.bytes, gather.group) == (3, 4 * LAYER, 4)
    assert gather.received == 3 * 3 * LAYER  # of four parts it has one
    assert (scatter.times, scatter.bytes) == (1, LAYER)
    assert scatter.received == 3 * LAYER


def test_bytes_count_hbm_traffic():
    scalars = 3 * (3 * 4)  # next, and i and one that make it
    slices = 3 * (2 * LAYER + 4)  # layer: a slice read, a slice written, i
    gathers = 3 * LAYER  # its result is in VMEM
    updates = 3 * (16 * 8 * 4 + 4)  # in place: what is new, which comes from VMEM, and i
    scattered = 5 * LAYER
    branch = 2 * LAYER  # the one that moves more
    expected = scalars + slices + gathers + updates + scattered + branch
    assert bytes_accessed(TEXT) == expected


def test_products_of_8_bits_in_a_fusion():
    text = """
%fused (a: s8[16,8], b: s8[8,4], c: bf16[16,2], d: s8[2,4]) -> (s32[16,4], bf16[16,4]) {
  %a = s8[16,8]{1,0} parameter(0)
  %b = s8[8,4]{1,0} parameter(1)
  %c = bf16[16,2]{1,0} parameter(2)
  %d = s8[2,4]{1,0} parameter(3)
  %x = s32[16,4]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
  %y = bf16[16,4]{1,0} convolution(%c, %d), dim_labels=bf_io->bf
  ROOT %z = (s32[16,4]{1,0}, bf16[16,4]{1,0}) tuple(%x, %y)
}

ENTRY %main (a: s8[16,8], b: s8[8,4], c: bf16[16,2], d: s8[2,4]) -> (s32[16,4], bf16[16,4]) {
  %a = s8[16,8]{1,0} parameter(0)
  %b = s8[8,4]{1,0} parameter(1)
  %c = bf16[16,2]{1,0} parameter(2)
  %d = s8[2,4]{1,0} parameter(3)
  ROOT %f = (s32[16,4]{1,0}, bf16[16,4]{1,0}) fusion(%a, %b, %c, %d), kind=kOutput, calls=%fused
}"""
    for chip, doubled in (("v6e", 2 * 16 * 8 * 4), ("v5p", 0)):
        *_, cost = hlo.HloProgram(text, doubles=CHIPS[chip].doubles).costs()
        assert (cost.flops, cost.doubled) == (2 * 16 * (8 + 2) * 4, doubled)


def test_a_loop_without_a_known_count_counts_once_and_is_listed():
    program = hlo.HloProgram(TEXT.replace("direction=LT", "direction=NE"))
    assert program.unknown_loops and program.weights["body"] == 1
    annotated = TEXT.replace(
        "condition=%condition, body=%body",
        'condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"7"}}',
    )
    assert hlo.HloProgram(annotated).weights["body"] == 7


def test_text_without_a_program():
    with pytest.raises(ValueError, match="without an entry"):
        hlo.HloProgram("HloModule nothing\n")


def test_collectives_across_slices_are_counted_separately():
    text = TEXT.replace("replica_groups={{0,1,2,3}}", "replica_groups={{0,1},{2,3}}")
    text = text.replace("[1,4]<=[4]", "[2,2]<=[2,2]T(1,0)")
    sums = costs.sum_collectives(hlo.HloProgram(text, slice_size=2, slices=2).costs())
    gather, scatter = sums["all-gather"], sums["reduce-scatter"]
    assert gather.received == 0 and gather.received_across > 0
    assert scatter.received > 0 and scatter.received_across == 0


def test_transfers_through_hosts_are_collectives_of_slices():
    """XLA:TPU's form of an all-reduce over 2 slices, and of a copy to another slice."""
    transfer = (
        "  %recv.{0} = (f32[9,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) recv(%after-all.{0}), "
        "channel_id={0}, is_host_transfer=true, frontend_attributes={{"
        '_xla_megascale_target="{{1,2}}x{{0:3}}",_xla_megascale_transfer_type="{1}"}}\n'
    )
    lines = transfer.format(1, "ALL_REDUCE") + transfer.format(2, "ONE_TO_ONE")
    text = TEXT.replace("  %new = ", f"{lines}  %new = ")
    before = costs.sum_collectives(hlo.HloProgram(TEXT, 4, 2).costs())
    sums = costs.sum_collectives(hlo.HloProgram(text, 4, 2).costs())
    size = 3 * 9 * 8 * 128 * 4  # in a loop of 3
    assert sums["all-reduce"].received_across == size
    assert sums["collective-permute"].received_across == size
    assert before["all-gather"] == sums["all-gather"]


def test_asynchronous_collectives():
    """Started and done: the result is the second of what the start gives."""
    text = TEXT.replace(
        "%gathered = f32[32,16]{1,0:T(8,128)S(1)} all-gather(%layer)",
        "%g.1 = (f32[8,16]{1,0:T(8,128)}, f32[32,16]{1,0:T(8,128)S(1)}) all-gather-start(%layer)",
    ).replace(
        "  %new = ",
        "  %gathered = f32[32,16]{1,0:T(8,128)S(1)} all-gather-done(%g.1)\n  %new = ",
    )
    (gather,) = [c for c in collectives(text) if c.kind == "all-gather"]
    assert (gather.times, gather.bytes, gather.is_async) == (3, 4 * LAYER, True)
    assert bytes_accessed(text) == bytes_accessed(TEXT)


# Real programs for 64 v5p, see `plan_programs`: loops over 4 layers of 3584 features.
D, FFN, Q, K = (getattr(plan_programs, n) for n in ("WIDTH", "FFN", "HEADS", "KV_HEADS"))
KERNEL, CHAIN = ((DATA / f"{name}.hlo").read_text() for name in ("kernel", "chain"))


@pytest.mark.parametrize(("name", "text"), [("kernel", KERNEL), ("chain", CHAIN)])
def test_flops_of_a_program_are_those_that_were_traced(name, text):
    program = plan_programs.program(name)
    traced = count_flops(jax.make_jaxpr(program)(*plan_programs.arguments(name)))
    compiled = hlo.HloProgram(text, kernels=traced.kernels)
    # The kernel's program multiplies the output and its gradient as vectors, not as a product.
    vectors = 4 * 2 * plan_programs.LENGTH * Q * 128 if name == "kernel" else 0
    assert sum(cost.flops for cost in compiled.costs()) == traced.total - vectors
    assert (compiled.unknown_loops, compiled.unknown_kernels) == ([], [])


def test_nothing_is_lost_after_a_kernel():
    """Its metadata take three lines, the last of which begins like the end of a computation."""
    assert KERNEL.count("kernel_metadata={\n") > 4
    sums = costs.sum_collectives(hlo.HloProgram(KERNEL).costs())
    layer = 2 * D * (Q + K + Q) * 128  # query, key and out in bfloat16
    assert sums["all-gather"].bytes == 4 * 2 * layer  # forward, and again for the backward pass
    assert sums["all-reduce"].bytes == 4 * layer
    assert sums["all-gather"].count == 4 * 2 * 3 and sums["all-gather"].asynchronous == 0
    joined = KERNEL.replace('{\n"', '{"').replace('"\n}', '"}')
    assert joined.count("\n") < KERNEL.count("\n")
    assert list(hlo.HloProgram(joined).costs()) == list(hlo.HloProgram(KERNEL).costs())


def test_a_kernel_without_known_flops_is_listed():
    kernels = hlo.HloProgram(KERNEL)
    list(kernels.costs())
    names = {key.partition("[")[0] for key in kernels.unknown_kernels}
    assert names == {
        "splash_mha_fwd_segmented_residuals",
        "splash_mha_dkv_segmented_no_residuals",
        "splash_mha_dq_segmented_no_residuals",
    }


def test_a_collective_that_runs_through_fusions_counts_once():
    """One of a layer's two gathers is asynchronous: three fusions with its channel."""
    (channel,) = set(re.findall(r"(channel_id=\d+).*chain_id", CHAIN))
    assert CHAIN.count(channel) == 3
    gathers = [c for c in collectives(CHAIN) if c.kind == "all-gather"]
    weight = 2 * D * FFN
    assert sorted((c.times, c.bytes, c.is_async) for c in gathers) == [
        (4, weight, False),
        (4, weight, True),
    ]
    # Buffers in flight are handed on: fewer bytes than four times each weight, read and written.
    assert bytes_accessed(CHAIN) < 4 * 4 * 2 * weight
