"""Both interleaving pipelines with the real tools, from a recording and from texts to tokens.

The recording is made here, so that words, times and speakers are known: two voices of Kokoro's and
a person, with pauses, jingles, silence, and noise over all of it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re

import numpy as np
import pytest

from ba_jax.audio import read_audio, write_audio
from ba_jax.audio.lengths import code_length
from ba_jax.corpora.interleave.voices import HELD_OUT
from ba_jax.corpora.make_tokenizer import train_sentencepiece
from ba_jax.corpora.runner import config_from, prepare
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.features import total_samples
from ba_jax.data.record import Record, RecordSource
from ba_jax.data.sequence import to_sequence
from ba_jax.data.text_tokenizer import load_text_tokenizer
from ba_jax.speech.text_norm import error_rate, join_words
from ba_jax.speech.tools import make_tool

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
RATE = 24000
SIZES = (512, 256, 128, 64)
PARTS = {"target": 4.0, "low": 1.0, "high": 15.0}
SENTENCES = {
    "af_heart": (
        "The old lighthouse stood at the end of the harbor.",
        "Nobody in the village could remember when it had been built.",
        "Every evening, a keeper climbed the stairs and lit the lamp.",
    ),
    "am_michael": (
        "My brother bought a small boat last summer.",
        "He painted it blue, and we took it out on the lake.",
        "When the wind came up, we had to row back home.",
    ),
}
PERSON = "我的鼻子只是隔几天就出一次血，单孔。"
TEXTS = {
    "en": "One winter, a storm came from the north and broke the windows. The keeper did not "
    "leave; he covered the lamp with his coat and waited. When the morning came, three boats had "
    "reached the shore.",
    "zh": "今天早上天气很好，我和朋友一起去公园散步。公园里有很多老人，有的在唱歌，有的在跳舞。"
    "下午下起了大雨，我们只好坐公共汽车回家。",
}


@dataclasses.dataclass(frozen=True)
class Said:
    """Speech of the recording with its times."""

    voice: str
    text: str
    start: float
    end: float
    words: tuple[tuple[float, float], ...] = ()


def jingle(seconds: float) -> np.ndarray:
    time_S = np.arange(int(seconds * RATE)) / RATE
    pitch_S = np.array([262, 330, 392, 523])[(4 * time_S).astype(int) % 4]
    return 0.1 * np.sin(2 * np.pi * pitch_S * time_S) + 0.05 * np.sin(4 * np.pi * pitch_S * time_S)


class Tape:
    """Concatenates sounds."""

    def __init__(self):
        self.pieces, self.said, self.seconds = [], [], 0.0

    def add(self, wave_S) -> None:
        self.pieces.append(np.asarray(wave_S, np.float32))
        self.seconds += len(wave_S) / RATE

    def pause(self, seconds: float) -> None:
        self.add(np.zeros(int(seconds * RATE)))


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    """(folder with the recording, its seconds, the spoken text)."""
    recording, kokoro = Tape(), make_tool("synthesiser", "kokoro")
    recording.pause(2.0)
    recording.add(jingle(3.0))
    recording.pause(1.0)
    for voice, sentences in SENTENCES.items():
        for sentence in sentences:
            spoken = kokoro.speak(sentence, voice)
            at = recording.seconds
            words = tuple((at + word.start, at + word.end) for word in spoken.words)
            end = at + len(spoken.wave_S) / RATE
            recording.said.append(Said(voice, sentence, words[0][0], words[-1][1], words))
            recording.add(spoken.wave_S)
            assert recording.seconds == pytest.approx(end)
            recording.pause(0.35)
        recording.pause(0.3)
    recording.add(jingle(3.0))
    recording.pause(1.0)
    wave_S, _ = read_audio(ROOT / "tests" / "data" / "speech" / "1889.flac", sample_rate=RATE)
    loudness = np.sqrt(np.mean(np.square(np.concatenate(recording.pieces))))
    wave_S *= loudness / np.sqrt(np.mean(np.square(wave_S)))
    recording.said.append(
        Said("person", PERSON, recording.seconds, recording.seconds + len(wave_S) / RATE)
    )
    recording.add(wave_S)
    recording.pause(1.5)
    clean_S = np.concatenate(recording.pieces)
    rng = np.random.default_rng(0)
    noise_S = 10 ** (-25 / 20) * loudness * rng.standard_normal(len(clean_S))
    folder = tmp_path_factory.mktemp("tape")
    write_audio(folder / "tape.flac", (clean_S + noise_S).astype(np.float32), RATE)
    return folder, recording.seconds, recording.said


@pytest.fixture(scope="module")
def crawled(tape, tmp_path_factory):
    """(records, report, rejections) of the recording."""
    folder, _, _ = tape
    source = {"path": str(folder), "parts": PARTS}
    config = config_from({"kind": "crawl", "source": source, "max_rejected": 1.0})
    directory = tmp_path_factory.mktemp("crawled") / "set"
    report = prepare(config, directory, workers=0)
    lines = (directory / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return list(RecordSource(directory, "train")), report, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory):
    """(records, report) of each language's text, one made in another process, one here."""
    result = {}
    for workers, (language, text) in enumerate(TEXTS.items()):
        folder = tmp_path_factory.mktemp("synthetic")
        (folder / "text.txt").write_text(text, encoding="utf-8")
        source = {"path": str(folder / "text.txt"), "language": language, "parts": PARTS}
        config = config_from({"kind": "synthetic", "source": source, "max_rejected": 1.0})
        report = prepare(config, folder / "set", workers=workers)
        result[language] = list(RecordSource(folder / "set", "train")), report
    return result


def times(record: Record) -> list[float]:
    """Starts of its parts in the recording, and the end of the last."""
    start = int(record.id.rsplit("-", 1)[1]) / 100
    return [start, *itertools.accumulate((p.seconds for p in record.parts), initial=start)][1:]


def voice_of(record: Record, spoken: list[Said]) -> str:
    """The only speaker of a record."""
    start, *_, end = times(record)
    voices = {s.voice for s in spoken if min(end, s.end) - max(start, s.start) > 0.1}
    assert len(voices) == 1, (record.id, voices)
    return voices.pop()


def test_the_crawl_finds_speech_and_separates_voices(tape, crawled):
    _, seconds, spoken = tape
    records, report, _ = crawled
    speakers = {}
    for record in records:
        assert record.language == "en"
        assert len({part.speaker for part in record.parts}) == 1
        speakers.setdefault(voice_of(record, spoken), set()).add(record.parts[0].speaker)
    assert set(speakers) == set(SENTENCES)
    assert all(len(voices) == 1 for voices in speakers.values())
    assert len(set.union(*speakers.values())) == 2
    speech = sum(s.end - s.start for s in spoken if s.voice in SENTENCES)
    assert report["seconds"] > 0.9 * speech
    # Every loss is reported.
    assert report["seconds"] + report["rejected"]["seconds"] == pytest.approx(seconds, abs=0.05)
    silence = seconds - sum(s.end - s.start for s in spoken)
    assert 0.4 * silence < report["reasons"]["not speech"]["seconds"] < silence


def test_the_crawl_transcribes_correctly(tape, crawled):
    _, _, spoken = tape
    for voice, sentences in SENTENCES.items():
        records = [record for record in crawled[0] if voice_of(record, spoken) == voice]
        heard = join_words((p.text for r in records for p in r.parts), "en")
        assert error_rate(join_words(sentences, "en"), heard, "en") <= 0.15, heard


def test_the_crawl_counts_speech_in_another_language(tape, crawled):
    """The person's one sentence is heard, but is one part only."""
    (person,) = [s for s in tape[2] if s.voice == "person"]
    (lost,) = [row for row in crawled[2] if row["reason"] != "not speech"]
    assert lost["reason"] == "a lone part"
    assert error_rate(person.text, lost["detail"], "zh") <= 0.15, lost["detail"]
    start, end = (float(x) for x in re.search(r"\((.*) to (.*) s\)$", lost["where"]).groups())
    assert person.start <= start < start + 3 < end <= person.end + 0.5


def test_the_crawl_cuts_in_pauses(tape, crawled):
    _, _, spoken = tape
    words = [word for s in spoken for word in s.words]
    cuts = [cut for record in crawled[0] for cut in times(record)]
    assert len(cuts) >= 8
    for cut in cuts:
        inside = [(a, b) for a, b in words if a + 0.04 < cut < b - 0.04]
        assert inside == [], cut
    for record in crawled[0]:
        starts = times(record)
        for part, start in zip(record.parts, starts, strict=False):
            assert join_words([w.text for w in part.words], record.language) == part.text
            wave_S, rate = read_audio(part.audio)
            assert len(wave_S) / rate == pytest.approx(part.seconds, abs=1e-3)
            assert all(0 <= w.start <= w.end <= part.seconds for w in part.words)
            if record.language == "en":
                # The nearest true word begins within a tenth of a second.
                first = start + part.words[0].start
                assert min(abs(first - a) for a, _ in words) < 0.1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_is_spoken_and_heard(synthesised, language):
    records, report = synthesised[language]
    assert report["seconds"] > 8 and report["rejected"]["records"] == 0
    heard = join_words((p.text for r in records for p in r.parts), language)
    assert heard == TEXTS[language]
    for record in records:
        assert record.kind == "interleaved" and len(record.parts) >= 2 and record.seconds < 300
        assert len({part.speaker for part in record.parts}) == 1
        assert not any(name in record.parts[0].speaker for name in HELD_OUT)
        for part in record.parts:
            assert join_words([w.text for w in part.words], language) == part.text
            gaps = zip(part.words, part.words[1:], strict=False)
            assert all(a.end <= b.start + 1e-6 for a, b in gaps)
            assert part.words[-1].end <= part.seconds


@pytest.mark.deep
def test_instructions_are_spoken_and_heard(tmp_path):
    rows = [
        {
            "question": "What is the capital of France?",
            "answer": "It is Paris. The city lies on a river, and millions of people live there.",
        },
        {"question": "What is the capital of France, please?", "answer": "It is Paris."},
        {"question": "今天天气怎么样？", "answer": "今天天气很好。", "language": "zh"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    source = {"path": str(path), "parts": PARTS, "min_mos": 2.5}
    config = config_from({"kind": "instructions", "max_rejected": 1.0, "source": source})
    report = prepare(config, tmp_path / "out", workers=0)
    assert {name: row["records"] for name, row in report["reasons"].items()} == {
        "near duplicate": 1
    }
    english, mandarin = RecordSource(tmp_path / "out", "train")
    question, *pieces = english.parts
    assert question.text == rows[0]["question"] and len(pieces) >= 2
    assert " ".join(piece.text for piece in pieces) == rows[0]["answer"]
    assert {piece.speaker for piece in pieces} == {"af_heart"}
    assert not any(name in question.speaker for name in HELD_OUT)
    assert mandarin.parts[1].speaker == "zf_xiaoxiao"
    example = ExampleMaker("sft", frames, questions="spoken", answers="spoken")(english)
    assert [s.is_audio for s in example.segments] == [True, *([False, True] * len(pieces))]


def frames(part, record) -> int:
    return code_length(total_samples(part.seconds))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "small.model"
    lines = [*TEXTS.values(), PERSON, *itertools.chain(*SENTENCES.values())]
    train_sentencepiece([line for line in lines for _ in range(3)], path, 500)
    return load_text_tokenizer(path)


@pytest.mark.parametrize("origin", ["crawled", "en", "zh"])
def test_interleaved_records_serve_the_tasks(crawled, synthesised, tokenizer, origin):
    records, *_ = crawled if origin == "crawled" else synthesised[origin]
    assert records
    for record in records:
        heard = ExampleMaker("intlv", frames)(record)
        kinds = [segment.is_audio for segment in heard.segments]
        assert len(kinds) == len(record.parts) and kinds[0] != kinds[1]
        sequence = to_sequence(heard, tokenizer, SIZES)
        assert sequence.text_target_L.any() and not sequence.audio_target_L.any()

        spoken = ExampleMaker("itts", frames)(record)
        assert [segment.is_audio for segment in spoken.segments] == [False, True] * len(
            record.parts
        )
        sequence = to_sequence(spoken, tokenizer, SIZES)
        assert [span.frames for span in sequence.spans] == [frames(p, record) for p in record.parts]
        # All frames and one end of each audio.
        expected = sum(frames(part, record) + 1 for part in record.parts)
        assert sequence.audio_target_L.sum() == expected
        first = len(tokenizer.encode(record.parts[0].text))
        assert not sequence.text_target_L[:first].any() and sequence.text_target_L.any()
        text = tokenizer.decode(sequence.ids_L)
        assert text == "".join(part.text for part in record.parts)
