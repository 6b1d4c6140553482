"""Reading a compiled program's text: counts by hand."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.plan import costs, hlo

# A loop of 3 over a layer whose weights it slices out of a stack, gathers and multiplies; a fusion
# that writes into a buffer in place; XLA:TPU's reduce-scatter; a conditional; an array in VMEM.
TEXT = (pathlib.Path(__file__).parents[2] / "data" / "plan" / "loop.hlo").read_text()
LAYER = 8 * 16 * 4


def test_a_loop_counts_as_often_as_it_runs():
    program = hlo.HloProgram(TEXT)
    assert program.unknown_loops == []
    assert program.weights["body"] == 3
    collectives = {c.kind: c for c in program.collectives()}
    assert set(collectives) == {"all-gather", "reduce-scatter"}
    gather, scatter = collectives["all-gather"], collectives["reduce-scatter"]
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
    assert hlo.HloProgram(TEXT).bytes_accessed == expected


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


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, x", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("dimensions={0}", []),
    ],
)
def test_groups_of_devices(text, groups):
    assert sorted(map(sorted, hlo.replica_groups(text))) == groups


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_groups_of_a_mesh_part_the_devices(x, y, z, axis):
    text = f"replica_groups=mesh['x'={x},'y'={y},'z'={z}] {{'{'xyz'[axis]}'}}"
    groups = hlo.replica_groups(text)
    assert sorted(device for group in groups for device in group) == list(range(x * y * z))
    assert {len(group) for group in groups} == {(x, y, z)[axis]}


def test_collectives_across_slices_are_counted_separately():
    text = TEXT.replace("replica_groups={{0,1,2,3}}", "replica_groups={{0,1},{2,3}}")
    text = text.replace("[1,4]<=[4]", "[2,2]<=[2,2]T(1,0)")
    collectives = costs.sum_collectives(hlo.HloProgram(text, slice_size=2, slices=2).collectives())
    assert collectives["all-gather"].received == 0 and collectives["all-gather"].received_across > 0
    assert (
        collectives["reduce-scatter"].received > 0
        and collectives["reduce-scatter"].received_across == 0
    )


def test_transfers_through_hosts_are_collectives_of_slices():
    """XLA:TPU's form of an all-reduce over 2 slices, and of a copy to another slice."""
    transfer = (
        "  %recv.{0} = (f32[9,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) recv(%after-all.{0}), "
        "channel_id={0}, is_host_transfer=true, frontend_attributes={{"
        '_xla_megascale_target="{{1,2}}x{{0:3}}",_xla_megascale_transfer_type="{1}"}}\n'
    )
    lines = transfer.format(1, "ALL_REDUCE") + transfer.format(2, "ONE_TO_ONE")
    text = TEXT.replace("  %new = ", f"{lines}  %new = ")
    before = costs.sum_collectives(hlo.HloProgram(TEXT, 4, 2).collectives())
    collectives = costs.sum_collectives(hlo.HloProgram(text, 4, 2).collectives())
    size = 3 * 9 * 8 * 128 * 4  # in a loop of 3
    assert collectives["all-reduce"].received_across == size
    assert collectives["collective-permute"].received_across == size
    assert before["all-gather"] == collectives["all-gather"]


def test_asynchronous_collectives():
    """Started and done: the result is the second of what the start gives."""
    text = TEXT.replace(
        "%gathered = f32[32,16]{1,0:T(8,128)S(1)} all-gather(%layer)",
        "%g.1 = (f32[8,16]{1,0:T(8,128)}, f32[32,16]{1,0:T(8,128)S(1)}) all-gather-start(%layer)",
    ).replace(
        "  %new = ",
        "  %gathered = f32[32,16]{1,0:T(8,128)S(1)} all-gather-done(%g.1)\n  %new = ",
    )
    (gather,) = [c for c in hlo.HloProgram(text).collectives() if c.kind == "all-gather"]
    assert (gather.times, gather.bytes) == (3, 4 * LAYER)
    assert hlo.HloProgram(text).bytes_accessed == hlo.HloProgram(TEXT).bytes_accessed
