"""Text to interleaved records, with a synthesiser and a recogniser of tones."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from ba_jax.audio import read_audio
from ba_jax.config import ConfigError, from_mapping
from ba_jax.corpora.interleave.text import Lengths
from ba_jax.corpora.interleave.writer import Writer, WriterSettings
from ba_jax.corpora.sources.base import Item, Rejection
from ba_jax.corpora.sources.synthetic import Synthetic
from ba_jax.data.record import Part, Record, check_record, write_metadata, write_shard
from ba_jax.speech import tools
from ba_jax.speech.text_norm import join_words
from tests.unit.corpora import tone_speech

PARTS = Lengths(target=2.0, low=0.5, high=8.0)


@pytest.fixture
def voices(monkeypatch):
    """Fake tools, by the names that the configs below use."""
    made = {"synthesiser": tone_speech.Synthesiser(), "recogniser": tone_speech.Recogniser()}
    monkeypatch.setattr(tools, "make_tool", lambda kind, name: made[kind])
    return made


def make(path, **changes) -> Synthetic:
    return Synthetic(name="tones", path=str(path), blends=False, parts=PARTS, **changes)


def run(source: Synthetic) -> tuple[list[Record], list[Rejection]]:
    made = []
    for item in source.items():
        made += [item] if isinstance(item, Rejection) else source.records(item)
    records = [results for results in made if isinstance(results, Record)]
    return [check_record(record) for record in records], [
        results for results in made if isinstance(results, Rejection)
    ]


def write_text(path, count: int, seed: int = 0) -> list[str]:
    sentences = tone_speech.sentences(count, seed=seed)
    path.write_text(" ".join(sentences), encoding="utf-8")
    return sentences


def test_text_becomes_records(tmp_path, voices):
    sentences = write_text(tmp_path / "a.txt", 12)
    records, rejected = run(make(tmp_path / "a.txt"))
    assert rejected == []
    (record,) = records
    assert record.kind == "interleaved" and record.language == "en" and record.source == "tones"
    assert record.id.startswith("a-000001")
    assert " ".join(part.text for part in record.parts) == " ".join(sentences)
    assert {part.speaker for part in record.parts} <= {"ann", "bob"}
    assert len({part.speaker for part in record.parts}) == 1
    for part in record.parts:
        assert PARTS.low <= part.seconds <= PARTS.high
        assert join_words([w.text for w in part.words], "en") == part.text
        wave_S, rate = read_audio(part.audio)
        assert len(wave_S) / rate == pytest.approx(part.seconds, abs=1e-3)
        heard = tone_speech.bursts(wave_S, rate)
        assert [b.word for b in heard] == part.text.lower().replace(".", "").split()
        times = [(w.start, w.end) for w in part.words]
        assert np.allclose(times, [(b.start, b.end) for b in heard], atol=0.03)


def test_a_misheard_part_ends_the_record(tmp_path, voices):
    words = tone_speech.WORDS
    sentences = [" ".join(words[i : i + 6]).capitalize() + "." for i in range(0, 54, 6)]
    (tmp_path / "a.txt").write_text(" ".join(sentences), encoding="utf-8")
    voices["recogniser"].misheard = dict.fromkeys(words[24:30], "nonsense")
    records, rejected = run(make(tmp_path / "a.txt"))
    assert [r.reason for r in rejected] == ["misheard"]
    assert rejected[0].seconds > 1 and sentences[4][:20] in rejected[0].detail
    assert [" ".join(p.text for p in record.parts) for record in records] == [
        " ".join(sentences[:4]),
        " ".join(sentences[5:]),
    ]
    assert len({record.id for record in records}) == 2


def test_held_out_voices_speak_other_splits(tmp_path, voices):
    write_text(tmp_path / "a.txt", 4)
    for split, expected in (("train", {"ann", "bob"}), ("test", {"am_adam"})):
        records, _ = run(make(tmp_path / "a.txt", split=split))
        assert {part.speaker for record in records for part in record.parts} <= expected
        items = [item for item in make(tmp_path / "a.txt", split=split).items()]
        assert {item.split for item in items} == {split}


def test_one_voice_and_one_speed_a_record_chosen_by_seed_and_id(tmp_path, voices):
    for number in range(8):
        write_text(tmp_path / f"doc{number:02d}.txt", 3, seed=number)
    spoken = []
    for seed in (0, 0, 1):
        voices["synthesiser"].said.clear()
        records, _ = run(make(tmp_path, seed=seed, recogniser=""))
        assert len(records) == 8
        spoken.append(list(voices["synthesiser"].said))
    assert spoken[0] == spoken[1] != spoken[2]
    assert {voice for _, voice, _ in spoken[0]} == {"ann", "bob"}
    assert all(0.9 <= speed <= 1.15 for _, _, speed in spoken[0])
    assert len({speed for _, _, speed in spoken[0]}) == 8


def test_long_texts_make_records_of_under_300_seconds(tmp_path, voices):
    sentences = write_text(tmp_path / "a.txt", 150)
    records, rejected = run(make(tmp_path / "a.txt", coding="flac", recogniser=""))
    assert rejected == [] and len(records) >= 2
    assert all(record.seconds < 300 and len(record.parts) >= 2 for record in records)
    assert " ".join(p.text for r in records for p in r.parts) == " ".join(sentences)
    assert min(record.seconds for record in records) > 60


def test_unspeakable_paragraphs_are_counted_and_divide_the_text(tmp_path, voices):
    entry, two, three = (" ".join(tone_speech.sentences(3, seed=s)) for s in range(3))
    lines = [entry, "See https://example.com/x", two, "今天天气很好", three, "Word."]
    (tmp_path / "a.txt").write_text("\n\n".join(lines), encoding="utf-8")
    records, rejected = run(make(tmp_path / "a.txt"))
    assert [r.reason for r in rejected] == ["a web or e-mail address", "other language"]
    assert [r.where for r in rejected] == [f"{tmp_path}/a.txt:3", f"{tmp_path}/a.txt:7"]
    items = [item for item in make(tmp_path / "a.txt").items() if isinstance(item, Item)]
    assert [item.where[-2:] for item in items] == [":1", ":5", ":9"]
    texts = [" ".join(p.text for p in record.parts) for record in records]
    assert texts[:2] == [entry, two] and texts[2].startswith(three)


def test_lone_and_unspeakable_parts_are_counted(tmp_path, voices):
    (tmp_path / "a.txt").write_text("Word.", encoding="utf-8")
    records, rejected = run(make(tmp_path / "a.txt"))
    assert records == [] and [r.reason for r in rejected] == ["a lone part"]

    def fail(text, voice, speed=1.0):
        raise tools.SpeechToolError("says nothing")

    voices["synthesiser"].speak = fail
    write_text(tmp_path / "a.txt", 3)
    records, rejected = run(make(tmp_path / "a.txt"))
    assert records == [] and {r.reason for r in rejected} == {"not spoken"}


def test_lines_wrapped_by_hand_are_one_paragraph(tmp_path, voices):
    sentences = tone_speech.sentences(4)
    (tmp_path / "a.txt").write_text(" ".join(sentences).replace(" ", "\r\n"), encoding="utf-8")
    records, _ = run(make(tmp_path / "a.txt"))
    assert " ".join(p.text for p in records[0].parts) == " ".join(sentences)


def test_files_are_not_joined(tmp_path, voices):
    texts = [write_text(tmp_path / f"{name}.txt", 3, seed=s) for s, name in enumerate("ab")]
    records, _ = run(make(tmp_path))
    assert [" ".join(p.text for p in r.parts) for r in records] == [" ".join(t) for t in texts]
    assert [record.id[:1] for record in records] == ["a", "b"]


def test_jsonl(tmp_path, voices):
    sentences = tone_speech.sentences(4)
    rows = [
        {"id": "x", "text": " ".join(sentences[:2]) + "\n" + " ".join(sentences[2:])},
        {"id": "y", "text": " ".join(sentences), "split": "test"},
        {"id": "z", "text": ""},
    ]
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(row) for row in rows] + ["{", '{"text": "\\ud800"}']
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    source = make(path)
    items = list(source.items())
    good = [item for item in items if isinstance(item, Item)]
    assert [(item.id, item.split) for item in good] == [("x-0000", "train"), ("y-0000", "test")]
    reasons = [results.reason for results in items if isinstance(results, Rejection)]
    assert reasons == ["empty transcript", "malformed JSON", "lone surrogate", "not UTF-8"]
    assert all(f"{path}:" in results.where for results in items)
    (record,) = [made for made in source.records(good[0]) if isinstance(made, Record)]
    assert " ".join(p.text for p in record.parts) == " ".join(sentences)


def test_a_dataset_of_texts(tmp_path, voices):
    sentences = tone_speech.sentences(4)
    text = Record("t1", "text", "en", (Part(text=" ".join(sentences)),), "texts")
    other = Record(
        "d1", "dialogue", "en", (Part(text="a", role="user"), Part(text="b", role="assistant")), "t"
    )
    shard = write_shard(tmp_path / "texts-train.array_record-00000-of-00001", [text, other])
    write_metadata(tmp_path, "texts", {"train": [shard]})
    records, rejected = run(make(tmp_path))
    assert [" ".join(p.text for p in r.parts) for r in records] == [" ".join(sentences)]
    assert [r.reason for r in rejected] == ["not text"]


def test_a_language_model_cuts_and_the_rules_stand_in(tmp_path, voices, monkeypatch):
    """The first paragraph is cut as the model says, the second by the rules, with a notice."""
    entry, other = (tone_speech.sentences(3, seed=s) for s in range(2))
    (tmp_path / "a.txt").write_text("\n\n".join(map(" ".join, (entry, other))))

    def ask(self, prompt):
        return json.dumps([" ".join(entry[:2]), entry[2]] if entry[0] in prompt else other[:2])

    monkeypatch.setattr(Writer, "_ask", ask)
    settings = WriterSettings("http://h/v1", "m", replies="r.jsonl", normalise=False)
    notice, item = make(tmp_path / "a.txt", writer=settings).items()
    assert (notice.reason, notice.where[-2:]) == ("cut by the rules", ":1")
    assert item.payload[1:3] == (" ".join(entry[:2]), entry[2])
    assert " ".join(item.payload[1:]) == " ".join([*entry, *other])


def test_pickling_leaves_the_tools_behind(tmp_path, voices):
    write_text(tmp_path / "a.txt", 3)
    source = make(tmp_path / "a.txt")
    before = run(source)[0]
    source.tool("synthesiser").said = lambda: None  # cannot be pickled
    again = pickle.loads(pickle.dumps(source))
    assert again == source and "_synthesiser" not in again.__dict__
    voices["synthesiser"].said = []
    assert run(again)[0] == before


def test_config():
    source = from_mapping(
        Synthetic, {"name": "x", "path": "y", "parts": {"target": 4.0}, "slowest": 1}
    )
    assert source.parts.target == 4.0 and source.slowest == 1.0
    with pytest.raises(ConfigError, match="unknown keys"):
        from_mapping(Synthetic, {"name": "x", "path": "y", "voice": "ann"})
    for bad in (
        {"language": "French"},
        {"slowest": 1.2},
        {"max_seconds": 20.0},
        {"max_seconds": 400.0},
    ):
        with pytest.raises(ValueError, match="expected"):
            from_mapping(Synthetic, {"name": "x", "path": "y", **bad})
