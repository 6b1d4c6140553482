"""The table of plans."""

from __future__ import annotations

from benchmarks import plans


def test_all_stages_on_all_pods():
    commands = plans.commands()
    assert len(commands) == 9 and len(plans.commands("stage2")) == 3
    assert commands["lm_stage2_v6e_16x16"] == [
        "--config=configs/lm_stage2.py:7b",
        "--topology=v6e:16x16",
        "--rows=2",
        "--config.train.attention=splash",
    ]


def test_rows_are_as_wide_as_the_head():
    arguments = plans.commands()["tokenizer_v5p_4x4x4"]
    time = {"bound": 1.234, "by": "ici", "serial": 2.5, "expected": 3.0, "mfu": 0.5}
    time |= {"a_day": {"audio_seconds": 7.2e9}}
    plan = {"peak_bytes": 12.34e9, "hbm_bytes": 102e9, "fits": True, "time": time}
    row = plans.table_row(arguments, plan)
    assert row == (
        *("tokenizer:1b5", "v5p:4x4x4", "1", "12.3 of 102", "yes"),
        *("1.23", "ici", "2.50", "3.00", "50%", "2.00 M hours"),
    )
    unmeasured = plan | {"time": time | {"expected": None}}
    assert plans.table_row(arguments, unmeasured)[8] == ""
    unbounded = plans.table_row(arguments, plan | {"fits": False, "time": None})
    assert len(unbounded) == len(row) == len(plans.HEAD) and unbounded[4] == "no"
