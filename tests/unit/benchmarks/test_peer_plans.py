"""Plans beside another framework's: the table, and the command line."""

from __future__ import annotations

import pytest

from benchmarks import peer_plans


def test_sides_are_columns():
    ours = dict.fromkeys(peer_plans._ROWS, 2.0)
    sides = {"maxtext": ours | {"serial": 1.0, "expected": 1.2}, "ours": ours | {"expected": None}}
    lines = peer_plans.format_sides(sides, 4096, 0.6)
    assert lines[0].split()[-2:] == ["maxtext", "ours"]
    assert any(line.split() == ["serial", "roofline", "1", "s", "2", "s"] for line in lines)
    assert lines[-3].split()[-2:] == ["60.0%", "30.0%"]
    assert lines[-2].split()[-1] == "50.0%" and lines[-1].split()[-1] == "3,413"


def test_a_peer_needs_its_python(capsys):
    with pytest.raises(SystemExit) as error:
        peer_plans.main(["--topology=v5p:4x4x4", "--peer=maxtext"])
    assert error.value.code == 2
    assert "--peer=maxtext: expected --peer_python" in capsys.readouterr().err
