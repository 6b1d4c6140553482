"""Whole evaluations of a tiny random model: parts, going on, scoring again, bad input."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ba_jax import sharding
from ba_jax.audio import write_audio
from ba_jax.checkpoints.components import find, load, load_to_generate
from ba_jax.checkpoints.layout import CheckpointError
from ba_jax.config import ConfigError, from_mapping, to_mapping
from ba_jax.data.record import Part, Record, RecordError, shard_name, write_metadata, write_shard
from ba_jax.evals.base import Bench
from ba_jax.evals.judges import recogniser as judge_lib
from ba_jax.evals.suite import EvalError
from ba_jax.evaluate import evaluate
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sharding import ShardingError
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.evals import small_bench

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tiny():
    return small_bench.tiny()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return small_bench.write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def asked(monkeypatch):
    """How many prompts the model was given each time."""
    counts = []
    generate = Bench.generate

    def counting(self, prompts, *args):
        counts.append(len(prompts))
        return generate(self, prompts, *args)

    monkeypatch.setattr(Bench, "generate", counting)
    return counts


def test_a_component_comes_from_the_last_checkpoint_that_holds_it(tiny, checkpoints):
    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    sources = find(checkpoints, config, ("audio_encoder", "audio_decoder", "llm"))
    assert {name: pathlib.Path(folder).name for name, folder in sources.items()} == {
        "audio_encoder": "lm",
        "audio_decoder": "codec",
        "llm": "lm",
    }
    variables = load(config, sources)
    assert sorted(variables["params"]) == ["audio_decoder", "audio_encoder", "llm"]
    with pytest.raises(CheckpointError, match="none holds flow_unet"):
        find(checkpoints[1:], config, ("flow_unet",))
    with pytest.raises(CheckpointError, match="no such folder"):
        find(["nowhere"], config, ("llm",))
    other = {**tiny["model"], "llm": {**tiny["model"]["llm"], "layers": 3}}
    with pytest.raises(CheckpointError, match="misshapen params/llm"):
        load(from_mapping(BaichuanAudioConfig, other), {"llm": sources["llm"]})


def test_settings_that_shapes_do_not_tell_are_those_of_the_run(tiny, checkpoints, tmp_path):
    """An LLM or a flow with other constants than it was trained with gives noise, not an error."""
    sizes = from_mapping(BaichuanAudioConfig, tiny["model"])
    for component, source, section, key, trained in (
        ("llm", checkpoints[1], "llm", "rope_theta", 5e5),
        ("flow_unet", checkpoints[0], "flow_matching", "residual_std", 0.7),
    ):
        run = tmp_path / component
        shutil.copytree(source, run / "checkpoints" / "5" / "weights")
        model = to_mapping(sizes)
        written = run / "config.json"
        model["flow_matching"]["steps"] = 4  # may be chosen when sampling
        written.write_text(json.dumps({"model": model}))
        assert find([str(run)], sizes, (component,))
        model[section][key] = trained
        written.write_text(json.dumps({"model": model}))
        message = f"trained with {section}.{key} = {trained}, .*--config.model.{section}.{key}="
        with pytest.raises(ConfigError, match=message):
            find([str(run)], sizes, (component,))
        assert find([str(run)], from_mapping(BaichuanAudioConfig, model), (component,))
        written.write_text("{")
        with pytest.raises(ConfigError, match="config.json: damaged, expected the config of a run"):
            find([str(run)], sizes, (component,))
        written.unlink()
        assert find([str(run)], sizes, (component,))


def test_layers_come_apart_on_one_cpu(tiny, checkpoints):
    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    sources = find(checkpoints, config, ("llm",))
    mesh = sharding.make_mesh(sharding.MeshSettings(), jax.devices()[:1])
    for given in (None, mesh):
        llm = load_to_generate(config, sources, given)["params"]["llm"]
        assert "layers_0" in llm and "layers" not in llm
        assert sharding.mesh_of(llm["layers_0"]) == given
    assert "layers" in load(config, sources)["params"]["llm"]


def test_written_suites_and_going_on(tiny, checkpoints, tmp_path, asked, capsys):
    names = ["asr", "s2tt", "qa_s2t", "qa_t2t"]
    figures = evaluate(tiny, checkpoints, tmp_path, names)
    assert figures["asr_items"] == figures["s2tt_items"] == 4
    assert figures["qa_s2t_items"] == figures["qa_t2t_items"] == 2
    low, high = figures["asr_wer_ci95"]
    assert 0 < low <= figures["asr_wer"] <= high
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    counts = {"asr": 4, "s2tt": 4, "qa_s2t": 2, "qa_t2t": 2}
    assert [item["suite"] for item in items] == [
        n for n, count in counts.items() for _ in range(count)
    ]
    assert (tmp_path / "failed.jsonl").read_text() == ""
    assert "| asr_wer |" in (tmp_path / "report.md").read_text()
    assert "<audio" in (tmp_path / "index.html").read_text()
    generated = (tmp_path / "generations" / "asr.jsonl").read_text().splitlines()
    assert len(generated) == 5 and {"text", "ids", "codes"} <= set(json.loads(generated[1]))
    capsys.readouterr()
    # before there is anything but a language model
    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    save_variables(tmp_path / "llm", load(config, find(checkpoints, config, ("llm",))))
    before = evaluate(tiny, [str(tmp_path / "llm")], tmp_path / "before", ["qa_t2t"])
    assert before["qa_t2t"] == figures["qa_t2t"]
    # once more: nothing is done
    asked.clear()
    assert evaluate(tiny, checkpoints, tmp_path, names) == figures and not asked
    assert "1/4 asr: done before" in capsys.readouterr().out
    # a results file that was cut short is made again of what was saved
    (tmp_path / "suites" / "asr.json").write_text("{")
    again = evaluate(tiny, checkpoints, tmp_path, ["asr"])
    assert again["asr_wer"] == figures["asr_wer"] and not asked
    # other settings, and a wish, generate again; another judge does not
    other = {**tiny, "eval": {**tiny["eval"], "judge": {"processes": 1, "beam": 2}}}
    evaluate(other, checkpoints, tmp_path, ["asr"])
    assert not asked
    evaluate({**tiny, "eval": {**tiny["eval"], "seed": 1}}, checkpoints, tmp_path, ["asr"])
    evaluate(tiny, checkpoints, tmp_path, ["asr"], start="generate")
    assert asked == [4, 4]


def test_scored_again_without_a_model(tiny, checkpoints, tmp_path, asked):
    figures = evaluate(tiny, checkpoints, tmp_path, ["asr"])
    path = tmp_path / "generations" / "asr.jsonl"
    header, *lines = map(json.loads, path.read_text().splitlines())
    for line, item in zip(lines, small_items(tmp_path), strict=True):
        line["text"] = item["reference"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (header, *lines)))
    asked.clear()
    found = evaluate(tiny, [], tmp_path, ["asr"], start="score")
    assert found["asr_wer"] == 0 != figures["asr_wer"] and not asked
    assert found["checkpoints"] == figures["checkpoints"]
    with pytest.raises(EvalError, match="stage 'sing', expected one of"):
        evaluate(tiny, [], tmp_path, ["asr"], start="sing")


def small_items(folder):
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def encoded(wave_S):
    stream = io.BytesIO()
    write_audio(stream, np.asarray(wave_S, np.float32), 16000, "flac")
    return stream.getvalue()


def spoken(id, wave_S, text="one two", audio=None):
    audio = encoded(wave_S) if audio is None else audio
    part = Part(text, audio, None, len(wave_S) / 16000, translation="一二")
    return Record(id, "speech", "en", (part,), "bad")


def write_dataset(folder, records):
    folder.mkdir(parents=True)
    shard = write_shard(folder / shard_name("bad", "test", 0, 1), records)
    write_metadata(folder, "bad", {"test": [shard]})
    return folder


def tone(seconds):
    return 0.1 * np.sin(np.arange(int(seconds * 16000)) / 20)


def test_bad_recordings(tiny, checkpoints, tmp_path, monkeypatch):
    """Each gives a result or a reason of its own; the others are what they are alone."""
    monkeypatch.setattr(judge_lib, "Judge", small_bench.LengthJudge)
    suites = ["asr", "s2tt", "tts", "codec"]
    good, whole = spoken("good", tone(1.0)), encoded(tone(1.0))
    bad = [
        spoken("empty", tone(0.03)),
        spoken("silence", np.zeros(16000)),
        spoken("noise", np.random.default_rng(0).standard_normal(16000) * 0.1),
        spoken("cut", tone(1.0), audio=whole[: len(whole) // 2]),
        spoken("no-audio", tone(1.0), audio=b"\0" * 100),
        spoken("wrong-length", tone(9.0), audio=whole),
        spoken("long", tone(600.0)),
        spoken("no-text", tone(1.0), text=""),
        spoken("no-words", tone(1.0), text="?!"),
    ]
    config = {**tiny, "eval": {**tiny["eval"], "sources": (), "limit": 0, "save_every": 3}}

    def run(name, records):
        folder = write_dataset(tmp_path / name, records)
        own = {**config, "eval": {**config["eval"], "dataset": str(folder)}}
        figures = evaluate(
            own, checkpoints, tmp_path / f"{name}-out", ["asr", "s2tt", "tts", "codec"]
        )
        lines = small_items(tmp_path / f"{name}-out")
        items = {(line["suite"], line["id"]): line for line in lines}
        assert len(items) == len(lines)
        return figures, items

    _, alone = run("alone", [good])
    figures, items = run("mixed", [*bad[:4], good, *bad[4:]])
    for suite in suites:
        own = dict(items[suite, "good"])
        for key in ("mel_mae",):  # another batch rounds otherwise
            assert own.pop(key, None) == pytest.approx(alone[suite, "good"].pop(key, None))
        assert own == alone[suite, "good"]
    reasons = {key: item["failed"] for key, item in items.items() if "failed" in item}
    heard = {id: reason for (suite, id), reason in reasons.items() if suite == "asr"}
    assert heard == {
        "empty": "generate: recording of 0.030 s: no frame of codes",
        "cut": heard["cut"],
        "no-audio": heard["no-audio"],
        "wrong-length": "generate: recording: audio cut short: 1.000 s, expected 9.000 s",
        "long": heard["long"],
        "no-text": "generate: task asr: no text",
    }
    assert "recording: " in heard["cut"] and "recording: " in heard["no-audio"]
    assert "positions, expected at most 64 (generation.lengths)" in heard["long"]
    assert figures["asr_items"] == 10 and figures["asr_failed"] == 6
    assert figures["codec_failed"] == 5 and "no-text" not in {
        id for suite, id in reasons if suite == "codec"
    }
    # To say something needs no recording; a reference that is lost is told.
    assert {id for suite, id in reasons if suite == "tts"} == {"no-text"}
    assert items["tts", "cut"]["audio"]["reference"] == ""
    listed = [
        json.loads(line) for line in (tmp_path / "mixed-out/failed.jsonl").read_text().splitlines()
    ]
    assert {
        (one["suite"], one["id"]): f"{one['stage']}: {one['reason']}" for one in listed
    } == reasons
    for item in items.values():
        if "failed" in item:
            assert not item.get("correct") and item.get("errors", 0) == item.get("units", 0)


def test_a_mesh_that_the_devices_do_not_fill(tiny, checkpoints, tmp_path):
    with pytest.raises(ShardingError, match="expected sizes whose product is the 1 devices"):
        evaluate({**tiny, "mesh": {"replica": 3}}, checkpoints, tmp_path, ["asr"])


def test_packages_are_missed_before_anything_is_done(tiny, checkpoints, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(EvalError, match=r"pystoi is not installed: pip install 'ba_jax\[eval\]'"):
        evaluate(tiny, checkpoints, tmp_path, ["asr", "reconstruction"])
    assert not (tmp_path / "generations").exists()


def test_nothing_to_evaluate_on(tiny, checkpoints, tmp_path):
    (tmp_path / "empty").mkdir()
    for dataset, split, error, match in (
        (tmp_path / "none", "test", RecordError, "no dataset_info.json"),
        (tmp_path / "empty", "test", RecordError, "no dataset_info.json"),
        ("embedded", "tset", RecordError, "no split 'tset'"),
        (write_dataset(tmp_path / "nobody", []), "test", RecordError, "split 'test' has no record"),
    ):
        own = {**tiny["eval"], "dataset": str(dataset), "split": split, "sources": ()}
        with pytest.raises(error, match=match):
            evaluate({**tiny, "eval": own}, checkpoints, tmp_path / "out", ["asr"])


@pytest.mark.slow
def test_command_line(tiny, checkpoints, tmp_path):
    """All suites, with the real judge; figures and audio of each are there."""
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
    figures = json.loads((out / "figures.json").read_text())
    assert figures["tts_judge"] == {"en": "whisper-tiny.en", "zh": "whisper-base"}
    assert list(figures["mel_mae_by_codebooks"]) == ["1", "2", "3"]
    for name in ("asr_wer", "qa_s2t", "qa_t2t", "qa_s2s", "tts_judge_wer"):
        assert f"{name} " in done.stdout
    assert figures["judge_wer_on_reference"] < 0.3
    assert figures["reconstruction_pesq_wb"] >= 1 and figures["s2tt_items"] == 4
    items = small_items(out)
    assert len(items) == 4 + 4 + 2 + 2 + 2 + 2 + 2
    for item in items:
        for path in item["audio"].values():
            assert not path or (out / path).is_file()
    failed = subprocess.run(
        [*command, "--suite=sing"], env=environment, capture_output=True, text=True
    )
    assert failed.returncode == 1 and "suite 'sing', expected one of" in failed.stderr
