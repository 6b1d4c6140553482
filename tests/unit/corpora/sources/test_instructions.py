"""Instructions to spoken dialogues, with a synthesiser and a recogniser of tones."""

from __future__ import annotations

import json
import pickle

import pytest

from ba_jax.config import ConfigError
from ba_jax.corpora import runner
from ba_jax.corpora.interleave.writer import Writer
from ba_jax.corpora.sources.base import Item, Notice, Rejection
from ba_jax.corpora.sources.instructions import Instructions
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.record import RecordSource
from ba_jax.speech import tools
from tests.unit.corpora import tone_speech

QUESTIONS = tone_speech.sentences(8, seed=1)
ANSWERS = [" ".join(tone_speech.sentences(3, seed=seed)) for seed in range(8)]
PARTS = {"target": 2.0, "low": 0.5, "high": 8.0}


class Opinions:
    """Dislikes speech of over 8 seconds."""

    def rate(self, wave_S, rate):
        return {"dnsmos_overall": 2.0 if len(wave_S) > 8 * rate else 4.0}


@pytest.fixture
def made(monkeypatch):
    """Fake tools by kind."""
    known = {
        "synthesiser": tone_speech.Synthesiser(),
        "recogniser": tone_speech.Recogniser(),
        "mos": Opinions(),
    }
    monkeypatch.setattr(tools, "make_tool", lambda kind, name: known[kind])
    return known


def write(folder, rows) -> str:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def rows(count, **fields):
    return [
        {"id": f"i{n}", "question": q, "answer": a} | fields
        for n, (q, a) in enumerate(zip(QUESTIONS[:count], ANSWERS, strict=False))
    ]


def config(path, **source):
    source = {"path": path, "assistant": "ann", "blends": False, "parts": PARTS} | source
    values = {"kind": "instructions", "items_per_shard": 2, "max_rejected": 1.0}
    return runner.config_from(values | {"source": source})


def listed(path, **source):
    """Reasons of the rejections, and ids of the items."""
    items = list(config(path, **source).make_source().items())
    reasons = [item.reason for item in items if isinstance(item, Rejection)]
    return reasons, [item.id for item in items if isinstance(item, Item)]


def run(config, out):
    report = runner.prepare(config, out, workers=0)
    return report, [record for split in report["splits"] for record in RecordSource(out, split)]


def test_dialogues_answer_piece_by_piece(tmp_path, made):
    instructions = rows(3) + rows(4, split="test")[3:]
    report, records = run(config(write(tmp_path, instructions)), tmp_path / "out")
    assert report["rejected"]["records"] == 0 and report["asides"] == {"tts": 0, "asr": 0}
    assert not (tmp_path / "out" / "tts").exists()
    by_id = {record.id: record for record in records}
    for n, instruction in enumerate(instructions):
        question, *pieces = by_id[f"i{n}"].parts
        assert question.text == instruction["question"] and question.role == "user"
        assert question.speaker in (("am_adam",) if n == 3 else ("ann", "bob"))
        assert len(pieces) > 1 and {p.role for p in pieces} == {"assistant"}
        assert " ".join(piece.text for piece in pieces) == instruction["answer"]
        assert {piece.speaker for piece in pieces} == {"ann"}
    # Text and speech of the answer take turns, as `alternate` decodes them.
    maker = ExampleMaker("sft", questions="spoken", answers="spoken", frames=lambda *_: 8)
    example = maker(by_id["i0"])
    assert [bool(s.text) for s in example.segments[1:]] == [True, False] * len(pieces)


def test_selection_counts_everything_by_reason(tmp_path, made):
    good = rows(6, type="a") + [{"question": QUESTIONS[6], "answer": ANSWERS[6], "type": "b"}]
    bad = [
        {"question": QUESTIONS[0].lower(), "answer": ANSWERS[1], "type": "a"},
        {"question": QUESTIONS[7], "answer": "- time\n- year", "type": "a"},
        {"question": QUESTIONS[7], "answer": "See https://x.org", "type": "a"},
        {"question": "今天天气很好", "answer": ANSWERS[1], "type": "a"},
        {"question": QUESTIONS[7], "answer": " ".join(ANSWERS * 3), "type": "a"},
        {"question": QUESTIONS[7], "answer": ANSWERS[7], "type": "c"},
        {"question": QUESTIONS[7], "answer": ANSWERS[7], "type": "a", "language": "Latin"},
        {"question": QUESTIONS[7], "type": "a"},
    ]
    path = write(tmp_path, good + bad)
    reasons, ids = listed(path, types=("a", "b"), per_type=4)
    assert sorted(reasons) == sorted(
        ["near duplicate", "layout", "a web or e-mail address", "other language"]
        + ["answer too long", "type not wanted"]
        + ["unknown language", "bad value"]
        + ["type is full"] * 2
    )
    assert len(ids) == 5 and "rows-7" in ids
    assert listed(path, types=("a", "b"), per_type=4) == (reasons, ids)


def test_failures_make_datasets_of_their_own(tmp_path, made):
    """The first take of i0's question fails; i1's question is never understood."""
    instructions = rows(3)
    missed = QUESTIONS[1].lower().strip(".").split()[:2]
    made["recogniser"].misheard = {word: "nonsense" for word in missed}
    instructions[0]["answer"] = instructions[2]["answer"] = "Home house. Water room."
    assert not set(missed) & set("home house water room".split())
    speak, failed = made["synthesiser"].speak, []

    def fail_once(text, voice, speed=1.0):
        if text == QUESTIONS[0] and not failed:
            failed.append(text)
            raise tools.SpeechToolError("hoarse")
        return speak(text, voice, speed)

    made["synthesiser"].speak = fail_once
    out = tmp_path / "out"
    report, records = run(config(write(tmp_path, instructions)), out)
    spoiled = [i for i in (0, 2) if set(missed) & set(QUESTIONS[i].lower().strip(".").split())]
    assert [record.id for record in records] == [f"i{i}" for i in (0, 2) if i not in spoiled]
    assert report["reasons"]["misheard"]["records"] == 1 + len(spoiled)
    assert report["asides"] == {"tts": 1, "asr": 1 + len(spoiled)}
    assert "| tts" in (out / "report.md").read_text()
    (spoken,) = RecordSource(out / "tts", "train")
    assert (spoken.id, spoken.parts[0].text) == ("i0-000", QUESTIONS[0])
    assert ExampleMaker("tts", frames=lambda *_: 8)(spoken).segments[0].text == QUESTIONS[0]
    heard = next(record for record in RecordSource(out / "asr", "train") if record.id == "i1-000")
    assert ExampleMaker("asr", frames=lambda *_: 8)(heard).segments[-1].text == QUESTIONS[1]
    # A run again, from the start or not, gives the same files.
    assert runner.prepare(config(write(tmp_path, instructions)), out, workers=0) == report
    failed.clear()
    assert run(config(write(tmp_path, instructions)), tmp_path / "again")[0] == report
    for path in sorted(out.rglob("*.array_record-*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(out)).read_bytes()


def test_poor_sound_is_rejected(tmp_path, made):
    instructions = rows(1)
    instructions[0]["question"] = " ".join(tone_speech.sentences(5, seed=3)).replace(".", "")
    report = runner.make_plan(config(write(tmp_path, instructions), min_mos=3.0))
    (item,) = report.jobs[0].items
    (rejection,) = report.source.records(item)
    assert rejection.reason == "poor sound" and "2.00, expected at least 3.0" in rejection.detail


def test_a_language_model_cuts_and_scores(tmp_path, made, monkeypatch):
    """The second answer is cut to something else: the rules cut it, and that is counted."""
    instructions = rows(3)

    def ask(self, prompt):
        number = next(n for n, a in enumerate(ANSWERS) if a in prompt)
        if prompt.startswith("Question"):
            return "7" if number < 2 else "3"
        sentences = ANSWERS[number].split(". ")
        pieces = [s.strip(".") + "." for s in sentences]
        return json.dumps(pieces if number == 0 else pieces[:1])

    monkeypatch.setattr(Writer, "_ask", ask)
    writer = {"base_url": "http://h/v1", "model": "m", "replies": "r.jsonl", "normalise": False}
    path = write(tmp_path, instructions)
    items = list(config(path, writer=writer, min_score=5.0).make_source().items())
    assert items[0].payload[2:] == tuple(s + "." for s in ANSWERS[0].strip(".").split(". "))
    assert isinstance(items[1], Notice) and items[1].reason == "cut by the rules"
    assert " ".join(items[2].payload[2:]) == ANSWERS[1]
    assert items[3].reason == "low score"
    report, _ = run(config(path, writer=writer, min_score=5.0), tmp_path / "out")
    assert report["warnings"] == {"cut by the rules": 1}
    assert report["reasons"]["low score"]["records"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"assistant": "am_adam"},
        {"tries": 0},
        {"likeness": 0.0},
        {"min_score": 5.0},
        {"min_mos": 6.0},
        {"language": "French"},
        {"writer": {"base_url": "http://h/v1", "model": "m"}},
        {"writer": {"base_url": "h", "model": "m"}},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(ConfigError, match="expected"):
        config("x", **bad).make_source()


def test_a_language_without_a_voice_is_counted(tmp_path, made):
    row = rows(1, language="fr")
    assert listed(write(tmp_path, row), assistant="") == (["no assistant's voice"], [])
    assert listed(write(tmp_path, row), assistant="ann")[1] == ["i0"]


def test_pickled_without_tools(tmp_path, made):
    source = Instructions(path=write(tmp_path, rows(1)), assistant="ann")
    source.tool("synthesiser")
    again = pickle.loads(pickle.dumps(source))
    assert again == source and "_tools" not in again.__dict__
