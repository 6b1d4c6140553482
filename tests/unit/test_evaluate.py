"""The command `python -m ba_jax.evaluate`."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.unit.evals import small_bench

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.deep
@pytest.mark.slow
def test_all_suites_with_the_real_judge(tmp_path):
    """Figures, report and audio of each suite are written."""
    tiny = small_bench.tiny()
    checkpoints = small_bench.write_checkpoints(tmp_path / "checkpoints")
    config = tmp_path / "config.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({tiny!r})\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ba_jax.evaluate", f"--config={config}", f"--out={out}"]
    command.append(f"--checkpoint={','.join(checkpoints)}")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| asr_wer |" in (out / "report.md").read_text()
    assert "<audio" in (out / "index.html").read_text()
    figures = json.loads((out / "figures.json").read_text())
    assert figures["tts_judge"] == {"en": "whisper-tiny.en", "zh": "whisper-base"}
    assert list(figures["mel_mae_by_codebooks"]) == ["1", "2", "3"]
    for name in ("asr_wer", "qa_s2t", "qa_t2t", "qa_s2s", "tts_judge_wer"):
        assert f"{name} " in done.stdout
    assert figures["judge_wer_on_reference"] < 0.3
    assert figures["reconstruction_pesq_wb"] >= 1 and figures["s2tt_items"] == 4
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert len(items) == 4 + 4 + 2 + 2 + 2 + 2 + 2
    for item in items:
        for path in item["audio"].values():
            assert not path or (out / path).is_file()
    failed = subprocess.run(
        [*command, "--suite=sing"], env=environment, capture_output=True, text=True
    )
    assert failed.returncode == 2 and "suite 'sing', expected one of" in failed.stderr
