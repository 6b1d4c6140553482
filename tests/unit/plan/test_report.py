"""Tables, pictures, advice and the command's errors."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

from ba_jax.config import from_mapping
from ba_jax.metrics.chips import CHIPS
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.plan import advice, decode, estimate, picture, report
from ba_jax.plan import plan as planning
from ba_jax.plan.compiled import CollectiveSum, Compiled, Memory, OutOfMemory
from ba_jax.plan.topology import Topology, open_topology
from ba_jax.run_config import parse_config
from ba_jax.sharding import MeshSettings, ShardingError
from configs import lm_stage2, models
from tests.unit.plan.test_estimate import MESSAGE

ROOT = pathlib.Path(__file__).resolve().parents[3]
GIB = 2**30


def a_plan(**changes) -> report.Plan:
    topology = Topology("v5e:2x2", CHIPS["v5e"], 4, 1, range(4), True)
    memory = Memory(6 * GIB, GIB, 5 * GIB, 4 * GIB, GIB // 2)
    collectives = {"all-gather": CollectiveSum(12, 3e9, 2e9, 0)}
    compiled = Compiled(memory, 8e12, 5e10, 2e10, collectives, (), 12.0)
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
        "bound": estimate.bound_of(topology, compiled, 6e12, amounts),
    }
    return report.Plan(**(values | changes))


def test_the_table_has_everything():
    text = "\n".join(report.lines(a_plan()))
    assert "v5e:2x2: 4 chips, mesh replica=1 fsdp=4 tensor=1 sequence=1" in text
    for expected in ("7,615.6", "6,525.6", "9,072.7", "12.3 GB", "17.2 GB", "fits: 72%"):
        assert expected in text
    assert "6 T" in text and "all-gather" in text and "12 s" in text
    # 50 GB at 819 GB/s, more than 8 TFLOP on four chips and 2 GB received.
    assert "hbm" in text and "61.1 ms" in text and "<- bounds it" in text
    assert "MFU at most 12.5%" in text and "hours of audio" in text and "G tokens" in text
    assert "DOES NOT FIT" in "\n".join(report.lines(a_plan(hbm_bytes=8 * GIB)))


def test_json_has_what_scripts_read():
    found = json.loads(json.dumps(report.as_dict(a_plan())))
    assert found["peak_bytes"] == int(11.5 * GIB) and found["hbm_bytes"] == 16 * GIB
    assert found["fits"] is True and found["model_flops"] == 6e12
    assert found["bytes_accessed"] == 5e10 and found["compile_seconds"] == 12.0
    assert found["collectives"]["all-gather"]["received"] == 2e9
    assert found["bound"]["by"] == "hbm"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1.5e3, "1.5 kB"), (18.24e9, "18.2 GB"), (1.234e14, "123 TB")],
)
def test_sizes(value, text):
    assert report.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(3.84, "3.84 s"), (0.005, "5 ms"), (2e-6, "2 us")])
def test_durations(value, text):
    assert report.duration(value) == text


def test_the_picture_adds_up_and_marks_the_limit(tmp_path):
    plan = a_plan()
    assert sum(picture.parts(plan).values()) == plan.peak_bytes
    picture.draw(plan, tmp_path / "bar.png")
    image = Image.open(tmp_path / "bar.png").convert("RGB")
    bar = image.height - picture._MARGIN - picture._LINE * (1 + len(picture.parts(plan)))
    row = [image.getpixel((x, bar - picture._BAR // 2)) for x in range(image.width)]
    red = [x for x, pixel in enumerate(row) if pixel == (255, 0, 0)]
    filled = [x for x, pixel in enumerate(row) if pixel not in ((255, 255, 255), (255, 0, 0))]
    inner = image.width - 2 * picture._MARGIN
    assert red and abs(red[0] - picture._MARGIN - inner) < 4
    assert abs(len(filled) / inner - plan.peak_bytes / plan.hbm_bytes) < 0.01


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
    config = parse_config(lm_stage2.get_config("7b"))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, remat="none"))
    mesh = {"replica": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    kinds = {"optimiser": 12 * GIB, "frozen parameters": 2 * GIB}
    told = advice.training(config, mesh, 4, kinds, 16 * GIB, True, True)
    text = "\n".join(told)
    for expected in (
        "--config.train.remat=full (now none)",
        "--config.train.attention=splash (now xla)",
        "--config.train.frozen_param_dtype=bfloat16 (now float32): 1.07 GB less",
        "--config.train.accumulation_steps=2 (now 1)",
        "--rows=2 (now 4)",
        "larger --config.mesh.fsdp (now 4)",
        "--config.mesh.replica=1 (now 2)",
        "--config.mesh.sequence=2",
        "--config.mesh.tensor=2",
    ):
        assert expected in text
    plan = a_plan(peak_bytes=int(20.52 * GIB), hbm_bytes=int(15.75 * GIB), compiled=None)
    message = str(planning.DoesNotFit(plan, OutOfMemory(MESSAGE), told))
    assert "22 GB of 16.9 GB, 5.12 GB over" in message
    assert "f32[4,2048,152064]" in message and told[0] in message
    full = dataclasses.replace(config, train=dataclasses.replace(config.train, remat="full"))
    few = "\n".join(advice.training(full, mesh, 1, {}, GIB, False, False))
    assert not any(word in few for word in ("remat", "splash", "frozen", "sequence", "rows"))


def test_copies_of_the_model_go_over_slices():
    two = dataclasses.replace(a_plan().topology, slices=2)
    found = planning.settings_for(MeshSettings(replica=1, fsdp=-1), two)
    assert (found.replica, found.slices) == (2, 2)
    assert planning.settings_for(MeshSettings(replica=4), two).replica == 4
    with pytest.raises(planning.PlanError, match="replica = 3 on 2 slices"):
        planning.settings_for(MeshSettings(replica=3), two)


def test_what_a_frame_needs_by_hand():
    """Design figures: 13.05 GB of layers, 2.47 + 8 x 0.308 + 0.14 of the head, 57 kB a token."""
    parts = ("llm", "audio_embed", "audio_head")
    config = from_mapping(BaichuanAudioConfig, models.get_config("7b")).only(*parts)
    frame = decode.needed_bytes(config, "frame", 1, 2048, 2)
    assert frame == pytest.approx(13.05e9 + 2.47e9 + 8 * 0.308e9 + 0.14e9 + 57344 * 2048, rel=2e-3)
    sixteen = decode.needed_bytes(config, "frame", 16, 2048, 2)
    assert sixteen - frame == 15 * 57344 * 2048
    text = decode.needed_bytes(config, "text", 1, 2048, 2)
    assert text == pytest.approx(13.05e9 + 1.09e9 + 57344 * 2048, rel=2e-3)


def command(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "ba_jax.plan", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_command_says_what_is_known_and_what_it_made(tmp_path):
    config = "--config=configs/lm_stage2.py:nano_codes"
    found = command(config, "--topology=v9z:2x2")
    assert found.returncode == 1 and "Traceback" not in found.stderr
    assert "chip 'v9z': expected one of v4, v5e, v5p, v6e, tpu7x, h100, h200" in found.stderr
    out, bar = tmp_path / "plan.json", tmp_path / "plan.png"
    rest = ("--config.mesh.fsdp=2", "--rows=2", f"--json={out}", f"--picture={bar}")
    found = command(config, "--topology=h200:8", *rest)
    assert found.returncode == 0, found.stderr
    assert "8 chips, mesh replica=4 fsdp=2 tensor=1 sequence=1" in found.stdout
    assert json.loads(out.read_text())["amounts"]["tokens"] == 2 * 8 * 256
    assert bar.stat().st_size > 1000


def test_meshes_and_rows_that_cannot_be():
    topology = open_topology("h100:1")
    config = parse_config(lm_stage2.get_config("nano_codes"))
    wrong = dataclasses.replace(config, mesh=MeshSettings(fsdp=3))
    with pytest.raises(ShardingError, match="expected sizes whose product is the 1 devices"):
        planning.training(wrong, topology)
    with pytest.raises(planning.PlanError, match="0 rows"):
        planning.training(config, topology, rows=0)
    with pytest.raises(planning.PlanError, match="0 rows with 2048 positions"):
        planning.decoding(config.model, MeshSettings(), topology, "frame", rows=0)


def test_gpus_that_are_not_there_are_estimated():
    plan = planning.training(
        parse_config(lm_stage2.get_config("7b")), open_topology("h100:1"), rows=1
    )
    # 8.05 G parameters with AdamW, 12 bytes each, 1.09 G frozen ones and the batch.
    arguments = sum(plan.kinds.values())
    assert arguments == pytest.approx(8.05e9 * 12 + 1.09e9 * 4, rel=0.01)
    assert not plan.fits and plan.hbm_bytes == 80e9
    kept = plan.peak_bytes - arguments - plan.kinds["trained parameters"]
    # Of each layer its input: 28 x 4096 x 3584 in bfloat16.
    assert 28 * 4096 * 3584 * 2 <= kept < 3 * 28 * 4096 * 3584 * 2
    assert "Estimated: none of these devices is here" in report.lines(plan)[-1]
    # Remat runs the forward pass again: four thirds of the model's FLOPs, and what it masks.
    assert plan.bound.by == "compute" and 0.5 < plan.bound.mfu < 0.75
