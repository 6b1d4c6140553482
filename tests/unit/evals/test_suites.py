"""Suites on made-up generations, and the command line on a tiny random model."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from ba_jax.checkpoint import CheckpointError, save_variables
from ba_jax.config import from_mapping
from ba_jax.data.record import RecordSource
from ba_jax.evals import asr, qa, suites, tts
from ba_jax.evals.base import Bench, EvalError, EvalSettings
from ba_jax.evaluate import evaluate, find, load
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.loop import Generated
from ba_jax.sampling.synthesize import Wave
from configs.eval import get_config

ROOT = pathlib.Path(__file__).resolve().parents[3]


class FakeJudge:
    """Hears what it was told."""

    names = {"en": "told", "zh": "told"}  # noqa: RUF012

    def __init__(self, heard):
        self.heard = heard

    def hear(self, waves, languages, progress=None):
        return [
            "" if wave is None else self.heard[wave.wave_S.tobytes()[:64], language]
            for wave, language in zip(waves, languages, strict=True)
        ]


@pytest.fixture
def settings():
    config = get_config("nano").to_dict()
    return from_mapping(EvalSettings, config["eval"] | {"limit": 2})


def bench_of(settings, tmp_path, model):
    """A bench whose model writes `model(record)` (text, frames) for each record it is asked."""
    config = from_mapping(BaichuanAudioConfig, get_config("nano").to_dict()["model"])
    bench = Bench(config, {}, settings, tmp_path, FakeJudge({}))
    bench.prompts = lambda records, task, **options: [(r, task, options) for r in records]

    def generate(prompts, what):
        found = []
        for record, _, _ in prompts:
            words, frames = model(record)
            codes = np.full((frames, 8), len(found), np.int32)
            found.append(Generated(bench.tokenizer.encode(words), codes, True))
        return found

    bench.generate = generate

    def speech_of(codes):
        return [
            None if not len(own) else Wave(np.full(480, 0.01 + own[0, 0] / 100, np.float32), 24000)
            for own in codes
        ]

    bench.speech_of = speech_of
    return bench


def tell(bench, waves, texts, languages):
    for wave, said, language in zip(waves, texts, languages, strict=True):
        bench.judge.heard[wave.wave_S.tobytes()[:64], language] = said


def test_recognition(settings, tmp_path):
    """All right but the first English statement, which lacks a word."""
    first = {}

    def model(record):
        words = record.parts[0].text
        if record.language == "en" and not first:
            first["id"] = record.id
            words = words.rsplit(" ", 1)[0]
        return words, 0

    outcome = asr.run(bench_of(settings, tmp_path, model))
    items = outcome.items
    assert len(items) == 8 and outcome.figures["asr_items"] == 8
    total = sum(item["units"] for item in items)
    english = sum(item["units"] for item in items if item["language"] == "en")
    assert outcome.figures["asr_wer"] == pytest.approx(1 / total)
    assert outcome.figures["asr_wer_en"] == pytest.approx(1 / english)
    assert outcome.figures["asr_cer_zh"] == 0 == outcome.figures["asr_wer_questions"]
    assert [item["id"] for item in items if not item["correct"]] == [first["id"]]
    for item in items:
        assert (tmp_path / item["audio"]["heard"]).is_file()


def test_written_answers(settings, tmp_path):
    """The right answer to English questions alone."""

    def model(record):
        return record.parts[1].text if record.language == "en" else "不知道。", 0

    for run, name in ((qa.spoken_to_text, "qa_s2t"), (qa.text_to_text, "qa_t2t")):
        figures = run(bench_of(settings, tmp_path, model)).figures
        assert figures == {name: 0.5, f"{name}_items": 4, f"{name}_en": 1.0, f"{name}_zh": 0.0}


def test_a_question_that_is_read_back_is_no_part_of_the_answer(settings, tmp_path):
    def model(record):
        question, answer = (part.text for part in record.parts)
        return f"{question}\n{answer if record.language == 'en' else question}", 0

    outcome = qa.spoken_to_text(bench_of(settings, tmp_path, model))
    assert outcome.figures["qa_s2t_en"] == 1.0 and outcome.figures["qa_s2t_zh"] == 0.0
    for item in outcome.items:
        assert item["read_back"] == item["question"]
        assert item["hypothesis"] == item["reference" if item["correct"] else "question"]


def test_spoken_answers(settings, tmp_path):
    """One is right, one wrong, one silent, one right but for a word; the judge errs on one."""
    frames = iter((3, 3, 0, 3))
    bench = bench_of(settings, tmp_path, lambda record: (record.parts[1].text, next(frames)))
    answers = [dialogue.parts[1] for dialogue in bench.dialogues]
    languages = [dialogue.language for dialogue in bench.dialogues]
    assert languages == ["en", "en", "zh", "zh"]
    real = [bench.wave(part) for part in answers]
    tell(bench, real, [answers[0].text, "nothing", answers[2].text, answers[3].text], languages)
    made = bench.speech_of([np.full((3, 8), i) for i in range(4)])
    heard = [answers[0].text, "The answer is wrong.", "never heard", answers[3].text + "吗"]
    tell(bench, made, heard, languages)
    outcome = qa.spoken_to_spoken(bench)
    assert [item["correct"] for item in outcome.items] == [True, False, False, True]
    figures = outcome.figures
    assert figures["qa_s2s"] == 0.5 and figures["qa_s2s_exact"] == 0.25
    assert figures["qa_s2s_text"] == 1.0 and figures["qa_s2s_on_reference"] == 0.75
    assert outcome.items[2]["hypothesis"] == "" and outcome.items[2]["audio"]["generated"] == ""
    assert (tmp_path / outcome.items[0]["audio"]["generated"]).is_file()


def test_speech(settings, tmp_path):
    bench = bench_of(settings, tmp_path, lambda record: ("", 3))
    said = [utterance.part.text for utterance in bench.statements]
    languages = [utterance.language for utterance in bench.statements]
    tell(bench, [bench.wave(u.part) for u in bench.statements], said, languages)
    made = bench.speech_of([np.full((3, 8), i) for i in range(4)])
    tell(bench, made, [said[0], "", said[2], said[3]], languages)
    outcome = tts.run(bench)
    lost, total = outcome.items[1]["units"], sum(item["units"] for item in outcome.items)
    assert outcome.figures["tts_judge_wer"] == pytest.approx(lost / total)
    assert outcome.figures["judge_wer_on_reference"] == 0
    assert outcome.figures["tts_judge"] == FakeJudge.names


def test_items_are_held_out_closed_sentences(settings, tmp_path):
    bench = bench_of(settings, tmp_path, None)
    records = RecordSource("embedded", "test")
    closed = {r.id for r in map(records.__getitem__, range(len(records))) if r.source == "closed"}
    assert {u.id for u in bench.statements} | {d.id for d in bench.dialogues} <= closed
    assert {u.id for u in bench.questions} == {f"{d.id}-question" for d in bench.dialogues}


def test_prompts_hold_what_is_heard_and_no_answer(settings, tmp_path):
    """Encoded are questions alone; what is stored is taken as it is."""
    config = from_mapping(BaichuanAudioConfig, get_config("nano").to_dict()["model"])
    bench = Bench(config, {}, settings, tmp_path, FakeJudge({}))
    encoded = []

    def encoder(waves, progress):
        encoded.extend(waves)
        return [np.full((len(wave) // 1280, 8), 7, np.int32) for wave in waves]

    bench.encoder = encoder
    dialogues = bench.dialogues[:2]
    stored = dataclasses.replace(dialogues[1].parts[0], codes_NQ=np.full((5, 8), 9))
    dialogues[1] = dataclasses.replace(dialogues[1], parts=(stored, dialogues[1].parts[1]))
    pad, tokens = config.tokens.audio_pad, config.tokens
    for task, options in (("sft", {"answers": "spoken"}), ("aqa", {})):
        first, second = bench.prompts(dialogues, task, **options)
        question = dialogues[0].parts[0]
        assert (first.ids_L == pad).sum() == round(question.seconds * 16000) // 1280
        assert (first.codes_LQ[first.ids_L == pad] == 7).all()
        assert (second.codes_LQ[second.ids_L == pad] == 9).all()
        assert (second.ids_L == pad).sum() == 5
        assert tokens.audiogen_start not in first.ids_L
    assert len(encoded) == 1  # the one question without codes, once
    written = bench.prompts(dialogues, "sft", questions="written", answers="spoken")
    said = bench.prompts([utterance.record for utterance in bench.statements], "tts")
    assert all(pad not in prompt.ids_L for prompt in written + said) and len(encoded) == 1
    assert all(prompt.ids_L[-1] == tokens.audiogen_start for prompt in said)


def test_nothing_to_evaluate_on(tmp_path):
    config = get_config("nano").to_dict()["eval"] | {"sources": ("nobody",)}
    bench = bench_of(from_mapping(EvalSettings, config), tmp_path, None)
    with pytest.raises(EvalError, match=r"split test: no record of \('nobody',\)"):
        asr.run(bench)
    with pytest.raises(EvalError, match="suite 'sing', expected one of"):
        suites.components(["sing"], "vocoder")


# --- a whole run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    """The tiny model's sizes around the embedded tokenizer."""
    from configs.models import get_config as sizes

    config = get_config("nano").to_dict()
    model = sizes("tiny").to_dict()
    model["tokens"] = sizes("nano").to_dict()["tokens"]
    model["llm"]["vocab_size"] = sizes("nano").llm.vocab_size
    for name in ("vq_bridge", "audio_embed", "audio_head"):
        model[name]["codebook_sizes"] = (64, 32, 16)
    generation = config["eval"]["generation"] | {"rows": 4, "max_text": 5, "max_frames": 8}
    synthesis = config["eval"]["synthesis"] | {"rows": 4, "frames": (48,), "steps": 2}
    evaluation = config["eval"] | {
        "limit": 1,
        "encode_rows": 4,
        "generation": generation,
        "synthesis": synthesis | {"iterations": 2},
    }
    return {"model": model, "eval": evaluation, "compilation_cache": ""}


@pytest.fixture(scope="module")
def checkpoints(tiny, tmp_path_factory):
    """The tokenizer and decoders in one checkpoint, the language model in another."""
    from tests.unit.models import conftest

    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    variables = conftest.variables.__wrapped__(config)
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, parts in (
        ("codec", ("audio_encoder", "vq_bridge", "audio_decoder", "flow_prenet", "flow_unet")),
        ("lm", ("llm", "audio_embed", "audio_head", "audio_encoder", "vq_bridge")),
    ):
        own = {
            collection: {part: tree[part] for part in parts if part in tree}
            for collection, tree in variables.items()
        }
        save_variables(folder / name, own)
    return [str(folder / "codec"), str(folder / "lm")]


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


def test_written_suites_and_resuming(tiny, checkpoints, tmp_path, monkeypatch, capsys):
    names = ["asr", "qa_s2t", "qa_t2t"]
    figures = evaluate(tiny, checkpoints, tmp_path, names)
    assert figures["asr_items"] == 4 and figures["qa_s2t_items"] == figures["qa_t2t_items"] == 2
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [item["suite"] for item in items] == ["asr"] * 4 + ["qa_s2t"] * 2 + ["qa_t2t"] * 2
    capsys.readouterr()
    # before there is anything but a language model
    config = from_mapping(BaichuanAudioConfig, tiny["model"])
    save_variables(tmp_path / "llm", load(config, find(checkpoints, config, ("llm",))))
    before = evaluate(tiny, [str(tmp_path / "llm")], tmp_path / "before", ["qa_t2t"])
    assert before["qa_t2t"] == figures["qa_t2t"]

    runs = []

    def fake(bench):
        runs.append(bench)
        return types.SimpleNamespace(figures={"asr_wer": 9.0}, items=[])

    fakes = {**suites.SUITES, "asr": suites.Suite(fake, suites.SUITES["asr"].components)}
    monkeypatch.setattr(suites, "SUITES", fakes)
    assert evaluate(tiny, checkpoints, tmp_path, names) == figures and not runs
    assert "1/3 asr: done before" in capsys.readouterr().out
    # other settings or --overwrite run it again; a file cut short does too
    other = {**tiny, "eval": {**tiny["eval"], "seed": 1}}
    assert evaluate(other, checkpoints, tmp_path, ["asr"])["asr_wer"] == 9.0
    evaluate(other, checkpoints, tmp_path, ["asr"], overwrite=True)
    (tmp_path / "suites" / "asr.json").write_text("{")
    evaluate(other, checkpoints, tmp_path, ["asr"])
    assert len(runs) == 3


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
    items = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert len(items) == 4 + 2 + 2 + 2 + 2 + 2
    for item in items:
        for path in item["audio"].values():
            assert not path or (out / path).is_file()
    failed = subprocess.run(
        [*command, "--suite=sing"], env=environment, capture_output=True, text=True
    )
    assert failed.returncode == 1 and "suite 'sing', expected one of" in failed.stderr
