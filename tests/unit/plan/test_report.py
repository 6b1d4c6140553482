"""Plans as text, JSON and a picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ba_jax.metrics.chips import CHIPS
from ba_jax.plan import report
from ba_jax.plan.costs import CollectiveSum, CompiledStep, StepMemory, step_time
from ba_jax.plan.topology import Topology

GIB = 2**30


def make_plan(**changes) -> report.StepPlan:
    topology = Topology("v5e:2x2", CHIPS["v5e"], 4, 1, range(4), True)
    memory = StepMemory(6 * GIB, GIB, 5 * GIB, 4 * GIB, GIB // 2)
    collectives = {"all-gather": CollectiveSum(12, 3e9, 2e9, 0)}
    compiled = CompiledStep(memory, 8e12, 2e12, 5e10, 2e10, collectives, 0.08, (), 12.0)
    amounts = {"tokens": 4096.0, "audio_seconds": 163.84}
    values = {
        "what": "lm: 4 rows",
        "topology": topology,
        "mesh": {"replica": 1, "fsdp": 4, "tensor": 1, "sequence": 1},
        "counts": {"llm": (7_615_616_512, 6_525_621_760), "audio_head": (1_457_112_584, 0)},
        "kinds": {"trained parameters": 2 * GIB, "optimiser": 4 * GIB},
        "peak_bytes": memory.peak,
        "hbm_bytes": 16 * GIB,
        "model_flops": 6e12,
        "needed_bytes": None,
        "amounts": amounts,
        "compiled": compiled,
        "time": step_time(topology, 6e12, 8e12, 5e10, collectives, 0.08, trains=True),
        "trains": True,
    }
    return report.StepPlan(**(values | changes))


def test_text():
    text = "\n".join(report.format_plan(make_plan()))
    assert "v5e:2x2: 4 chips, mesh replica=1 fsdp=4 tensor=1 sequence=1" in text
    for expected in ("7,615.6", "6,525.6", "9,072.7", "12.3 GB", "17.2 GB", "fits: 72%"):
        assert expected in text
    assert "6 T" in text and "all-gather" in text and "12 s" in text
    # 50 GB at 819 GB/s, more than 8 TFLOP on four chips and 2 GB received.
    assert "hbm" in text and "61.1 ms" in text and "<- bounds it" in text
    assert "MFU at most 12.5%" in text and "serial roofline: 80 ms, MFU 9.5%" in text
    assert "expected: 128 ms, MFU 5.9% (measured steps of v6e took 1.6 x the serial" in text
    assert "v5e is unmeasured, the nearest is taken" in text
    assert "a day (by the expected time): 30.7 k hours of audio, 2.76 G tokens" in text
    assert "DOES NOT FIT" in "\n".join(report.format_plan(make_plan(hbm_bytes=8 * GIB)))


def test_json():
    figures = json.loads(json.dumps(report.as_dict(make_plan())))
    assert figures["peak_bytes"] == int(11.5 * GIB) and figures["hbm_bytes"] == 16 * GIB
    assert figures["fits"] is True and figures["model_flops"] == 6e12
    assert figures["bytes_accessed"] == 5e10 and figures["compile_seconds"] == 12.0
    assert figures["collectives"]["all-gather"]["received"] == 2e9
    assert figures["time"]["by"] == "hbm" and figures["time"]["best"] == "expected"
    assert figures["time"]["seconds"] == pytest.approx(0.128)
    assert figures["time"]["a_day"]["tokens"] == pytest.approx(4096 * 86400 / 0.128)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1.5e3, "1.5 kB"), (18.24e9, "18.2 GB"), (1.234e14, "123 TB")],
)
def test_sizes(value, text):
    assert report.format_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(3.84, "3.84 s"), (0.005, "5 ms"), (2e-6, "2 us")])
def test_durations(value, text):
    assert report.format_seconds(value) == text


def test_picture_of_the_memory(tmp_path):
    plan = make_plan()
    assert sum(report.memory_parts(plan).values()) == plan.peak_bytes
    report.draw_memory(plan, tmp_path / "bar.png")
    pixels = np.asarray(Image.open(tmp_path / "bar.png").convert("RGB"))
    assert (pixels == (255, 0, 0)).all(-1).any()  # the limit
    assert (pixels == (0x00, 0x72, 0xB2)).all(-1).any()  # the first kind
