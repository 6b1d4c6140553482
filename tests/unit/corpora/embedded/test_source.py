"""Speaking the embedded corpus' scripts, with fake tools."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from ba_jax.corpora.embedded import EmbeddedCorpus, source
from ba_jax.corpora.embedded.script import Line, Script
from ba_jax.corpora.embedded.studio import Studio, sound_error_rate
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.data.record import Word, check_record
from ba_jax.speech.interfaces import Heard, SpeechToolError, Spoken


@pytest.mark.parametrize(
    ("text", "heard", "language", "error"),
    [
        ("Six minus four is two.", "6 - 4 is 2", "en", 0.0),
        ("Six minus four equals two.", "6-4=2", "en", 0.0),
        ("Six plus four is ten.", "6+4=10.", "en", 0.0),
        ("Six plus four is ten.", "Six plus five is ten.", "en", 1 / 4),
        ("It is gray.", "It is grey", "en", 0.0),
        ("It is gray.", "", "en", 1.0),
        ("九减四是五。", "9-4是5", "zh", 0.0),
        ("它是蓝色的。", "他是藍色的", "zh", 0.0),
        ("它吃草。", "它吃饭。", "zh", 1 / 3),
        ("答案是三。", "答案是山", "zh", 1 / 4),
        ("答案是三。", "...", "zh", 1.0),
    ],
)
def test_sound_error_rate(text, heard, language, error):
    assert sound_error_rate(text, heard, language) == pytest.approx(error)


class Tools:
    """A synthesiser and recogniser: voices named in `deaf` are not understood."""

    voices = {"a": "en", "b": "en", "c": "en"}

    def __init__(self, deaf=(), missing=False):
        self.deaf, self.missing, self.spoken = deaf, missing, []

    def speak(self, text, voice, speed=1.0):
        if self.missing:
            raise SpeechToolError("onnxruntime is not installed")
        if "xyzzy" in text:
            raise SpeechToolError(f"{text!r}: no such word")
        self.spoken.append((text, voice, speed))
        self._last = "nothing of the kind" if voice in self.deaf else text
        words = [Word(w, i / 4, (i + 1) / 4) for i, w in enumerate(text.split())]
        return Spoken(np.zeros(6000 * len(words), np.float32) + 0.1, 24000, tuple(words))

    def recognise(self, wave_S, rate, language):
        return Heard(self._last, (), 1.0, 0.0)


def studio(tools: Tools, folder) -> Studio:
    return Studio("flac", folder=folder, synthesiser=tools, recogniser=tools)


DIALOGUE = Script(
    id="en-x-q0-0",
    split="train",
    kind="dialogue",
    language="en",
    source="closed",
    lines=(
        Line("Answer.", "答。", "system"),
        Line("What is it?", "是什么？", "user", 0),
        Line("It is blue.", "它是蓝色的。", "assistant", 1),
    ),
    casts=((("a", 1.0), ("b", 0.9)), (("b", 1.0), ("c", 1.1))),
)


def test_perform_makes_a_record(tmp_path):
    tools = Tools()
    record = check_record(source.perform(DIALOGUE, studio(tools, tmp_path)))
    system, question, answer = record.parts
    assert (record.id, record.kind, record.source) == ("en-x-q0-0", "dialogue", "closed")
    assert not system.is_spoken and system.role == "system"
    assert (question.speaker, answer.speaker) == ("a", "b")
    assert question.audio[:4] == b"fLaC" and question.seconds == 0.75
    assert [word.text for word in answer.words] == ["It", "is", "blue."]
    assert answer.translation == "它是蓝色的。"


def test_a_voice_that_is_not_understood_is_replaced(tmp_path):
    record = source.perform(DIALOGUE, studio(Tools(deaf="a"), tmp_path))
    # The next to ask is b, so that b cannot answer.
    assert [part.speaker for part in record.parts] == ["", "b", "c"]


def test_lists_are_in_one_voice(tmp_path):
    lines = (Line("One.", "一。", speaker=0), Line("Two.", "二。", speaker=0))
    entry = Script("l", "train", "interleaved", "en", "closed", lines, (DIALOGUE.casts[0],))
    tools = Tools(deaf="a")
    record = source.perform(entry, studio(tools, tmp_path))
    assert [part.speaker for part in record.parts] == ["b", "b"]
    assert tools.spoken == [("One.", "a", 1.0), ("One.", "b", 0.9), ("Two.", "b", 0.9)]


def test_nobody_understood_is_a_rejection(tmp_path):
    with pytest.raises(Rejected) as caught:
        source.perform(DIALOGUE, studio(Tools(deaf="ab"), tmp_path))
    assert caught.value.reason == "not understood"
    assert "b: 'What is it?' heard as 'nothing of the kind'" in caught.value.detail


def test_the_script_sets_the_error_limit(tmp_path):
    import dataclasses

    lax = dataclasses.replace(DIALOGUE, limit=2.0)
    assert source.perform(lax, studio(Tools(deaf="abc"), tmp_path)).parts[1].speaker == "a"


def test_an_unspeakable_text_is_a_rejection_but_a_missing_tool_is_not(tmp_path):
    line = Line("An xyzzy.", "一。", speaker=0)
    entry = Script("l", "train", "speech", "en", "closed", (line,), DIALOGUE.casts[:1])
    with pytest.raises(Rejected) as caught:
        source.perform(entry, studio(Tools(), tmp_path))
    assert caught.value.reason == "cannot be said" and "no such word" in caught.value.detail
    with pytest.raises(SpeechToolError, match="onnxruntime is not installed"):
        source.perform(DIALOGUE, studio(Tools(missing=True), tmp_path))


def test_spoken_lines_are_cached(tmp_path):
    first = Tools()
    spoken = studio(first, tmp_path).say("What is it?", "en", "a", 1.0)
    second = Tools()
    again = studio(second, tmp_path)
    assert again.say("What is it?", "en", "a", 1.0) == spoken
    assert second.spoken == []
    again.say("What is it?", "en", "a", 1.1)
    again.say("What is it?", "en", "b", 1.0)
    assert len(second.spoken) == 2
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text()[:100])
    with pytest.raises(SpeechToolError, match="expected a cached line; delete it"):
        again.say("What is it?", "en", "a", 1.0)


# --- the source -----------------------------------------------------------------------------------


DIGITS = "一二三四五六七八九十"


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """The source with a few texts in place of the packages'."""
    rows = [
        {
            "id": f"hsk1-{i:04d}",
            "hsk_level": 1,
            "topic": "t",
            "chinese": f"我有{DIGITS[i // 10]}{DIGITS[i % 10]}本书。",
            "translation": {"en": f"I have {'abcdefghij'[i // 10]} {'abcdefghij'[i % 10]}."},
        }
        for i in range(60)
    ]
    rows[7]["chinese"] = "我有7本书。"
    (tmp_path / "sentences.json").write_text(json.dumps(rows))
    for language, text in (("english", "Hello {}."), ("chinese", "你好{}。")):
        (tmp_path / language).mkdir()
        for topic in ("conversations", "greetings", "health", "trivia"):
            names = [topic[0] * (i + 1) if language == "english" else "好" * i for i in range(9)]
            turns = [[text.format(name), text.format(name)] for name in names]
            path = tmp_path / language / f"{topic}.yml"
            path.write_text(json.dumps({"conversations": turns}), encoding="utf-8")
    monkeypatch.setattr(source, "ensure", lambda name: tmp_path)
    return EmbeddedCorpus()


def test_items(corpus):
    listed = list(corpus.items())
    assert listed == list(corpus.items()) == list(pickle.loads(pickle.dumps(corpus)).items())
    items = [item for item in listed if isinstance(item, Item)]
    rejected = [item for item in listed if isinstance(item, Rejection)]
    assert "sentences.json:hsk1-0007" in {entry.where for entry in rejected}
    assert len({item.id for item in items}) == len(items)
    assert {item.split for item in items} == {"train", "validation", "test"}
    assert all(item.id == item.payload.id for item in items)
    assert all((item.seconds > 0) == bool(item.payload.casts) for item in items)
    assert " at 0x" not in repr(items), "a fingerprint of it must be the same in every run"


def test_finish_trains_a_tokenizer_of_mandarin_characters(corpus, tmp_path):
    from ba_jax.data.text_tokenizer import load_text_tokenizer

    corpus.finish(tmp_path)
    first = (tmp_path / "tokenizer.model").read_bytes()
    corpus.finish(tmp_path)
    assert (tmp_path / "tokenizer.model").read_bytes() == first
    tokenizer = load_text_tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.vocab_size <= corpus.vocabulary
    assert len(tokenizer.encode("三加四等于多少？")) == 8
    assert len(tokenizer.encode("What is three plus four?")) == 6
    text = "Ich weiß: 三加四 = 7 \U0001f600"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"size": "huge"}, "size = 'huge'"), ({"coding": "mp3"}, "coding = 'mp3'")],
)
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        EmbeddedCorpus(**fields)


def test_texts_that_cannot_be_fetched(monkeypatch):
    def ensure(name):
        raise SpeechToolError("hsk-sentences-audio could not be fetched")

    monkeypatch.setattr(source, "ensure", ensure)
    with pytest.raises(SourceError, match="could not be fetched"):
        list(EmbeddedCorpus().items())
