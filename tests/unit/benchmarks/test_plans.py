"""The table of plans."""

from __future__ import annotations

from benchmarks import plans


def test_all_stages_on_all_pods():
    commands = plans.commands()
    assert len(commands) == len(plans.PLANS) == 13 and len(plans.commands("stage2")) == 6
    assert commands["lm_stage2_v6e_16x16_splash_fused_2"] == [
        "--config=configs/lm_stage2.py:7b",
        "--topology=v6e:16x16",
        "--rows=2",
        "--config.train.attention=splash_fused",
        "--slices=2",
    ]


def test_rows_are_as_wide_as_the_head():
    arguments = plans.commands()["tokenizer_v5p_4x4x4_xla"]
    time = {"bound": 1.234, "by": "ici", "serial": 2.5, "expected": 3.0, "mfu": 0.5}
    time |= {"a_day": {"audio_seconds": 7.2e9, "tokens": 3e9}}
    plan = {"peak_bytes": 12.34e9, "hbm_bytes": 102e9, "fits": True, "time": time}
    row = plans.table_row(arguments, plan)
    assert row == (
        *("tokenizer:1b5", "v5p:4x4x4", "1", "xla", "12.3 of 102", "yes"),
        *("1.23", "ici", "2.50", "3.00", "50%", "2.00 M hours"),
    )
    unmeasured = plans.table_row(arguments, plan | {"time": time | {"expected": None}})
    assert unmeasured[8:10] == ("2.50", "")
    two = plans.table_row(
        plans.commands("splash_fused_2")["lm_stage2_v6e_16x16_splash_fused_2"], plan
    )
    assert two[1] == "2 x v6e:16x16" and two[-1] == "3.0 G tokens"
    untimed = plans.table_row(arguments, plan | {"fits": False, "time": None})
    assert len(untimed) == len(row) == len(plans.HEAD) and untimed[5] == "no"
