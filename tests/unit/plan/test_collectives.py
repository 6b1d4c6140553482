"""Groups of devices in the collectives of a compiled program."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.plan.collectives import replica_groups


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
    assert sorted(map(sorted, replica_groups(text))) == groups


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_groups_of_a_mesh_part_the_devices(x, y, z, axis):
    text = f"replica_groups=mesh['x'={x},'y'={y},'z'={z}] {{'{'xyz'[axis]}'}}"
    groups = replica_groups(text)
    assert sorted(device for group in groups for device in group) == list(range(x * y * z))
    assert {len(group) for group in groups} == {(x, y, z)[axis]}
