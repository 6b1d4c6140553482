"""Long recordings to interleaved records, with tools that listen to tones."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from ba_jax.audio import AudioError, AudioReader, read_audio, write_audio
from ba_jax.config import ConfigError, from_mapping
from ba_jax.corpora.interleave.text import Lengths
from ba_jax.corpora.sources.base import Item, Rejection
from ba_jax.corpora.sources.crawl import Crawl
from ba_jax.data.record import Record, check_record
from ba_jax.speech import tools
from ba_jax.speech.text_norm import join_words
from tests.unit.corpora import tone_speech
from tests.unit.corpora.tone_speech import RATE, say, silence, tone, with_noise

PARTS = Lengths(target=4.0, low=1.0, high=8.0)
SECOND = {"second_recogniser": {"beam": 1}}


@pytest.fixture
def ears(monkeypatch):
    """Fake tools, by the names that the configs below use."""
    made = {
        "vad": tone_speech.Vad(),
        "speaker_encoder": tone_speech.SpeakerEncoder(),
        "recogniser": tone_speech.Recogniser(),
        "second": tone_speech.Recogniser(),
        "aligner": tone_speech.Aligner(),
    }
    monkeypatch.setattr(
        tools, "make_tool", lambda kind, name, beam=5: made["second" if beam == 1 else kind]
    )
    return made


def make(path, **changes) -> Crawl:
    return Crawl(
        name="tones",
        path=str(path),
        **{"agreement": "halves", "language": "en", "parts": PARTS, "options": SECOND, **changes},
    )


def run(source: Crawl) -> tuple[list[Record], list[Rejection]]:
    made = []
    for item in source.items():
        made += [item] if isinstance(item, Rejection) else source.records(item)
    records = [check_record(results) for results in made if isinstance(results, Record)]
    return records, [results for results in made if isinstance(results, Rejection)]


def write(path, *pieces: np.ndarray, rate: int = RATE) -> float:
    """Writes pieces one after the other; returns the seconds."""
    wave_S = with_noise(np.concatenate(pieces))
    write_audio(path, wave_S, rate)
    return len(wave_S) / rate


def text_of(record: Record) -> str:
    return " ".join(part.text for part in record.parts)


def lost(rejected: list[Rejection]) -> dict[str, float]:
    return {r.reason: r.seconds for r in rejected}


def test_speech_is_cut_in_its_pauses_with_word_times(tmp_path, ears):
    sentences = tone_speech.sentences(8)
    seconds = write(tmp_path / "a.flac", silence(3.0), say(sentences, "ann"), silence(2.0))
    records, rejected = run(make(tmp_path))
    (record,) = records
    assert record.kind == "interleaved" and record.source == "tones" and record.language == "en"
    assert text_of(record) == " ".join(sentences)
    assert {part.speaker for part in record.parts} == {"a.flac-0"}
    for part in record.parts:
        assert part.text.endswith(".") and part.seconds <= PARTS.high
        assert join_words([w.text for w in part.words], "en") == part.text
        wave_S, rate = read_audio(part.audio)
        heard = tone_speech.bursts(wave_S, rate)
        assert [b.word for b in heard] == part.text.lower().replace(".", "").split()
        times = [(w.start, w.end) for w in part.words]
        assert np.allclose(times, [(b.start, b.end) for b in heard], atol=0.03)
        # Some of the pause is left on both sides.
        assert heard[0].start > 0.1 and part.seconds - heard[-1].end > 0.1
    assert set(lost(rejected)) == {"not speech"}
    assert record.seconds + lost(rejected)["not speech"] == pytest.approx(seconds, abs=0.01)


def test_voices_are_separated_and_recognised_again(tmp_path, ears):
    spoken = [tone_speech.sentences(4, seed=seed) for seed in range(3)]
    voices = ("ann", "bob", "ann")
    pieces = [say(s, v) for s, v in zip(spoken, voices, strict=True)]
    write(tmp_path / "a.wav", silence(1.0), *pieces)
    records, _ = run(make(tmp_path))
    assert [text_of(record) for record in records] == [" ".join(s) for s in spoken]
    speakers = [{part.speaker for part in record.parts} for record in records]
    assert speakers == [{"a.wav-0"}, {"a.wav-1"}, {"a.wav-0"}]


def test_a_span_of_two_voices_is_dropped_and_counted(tmp_path, ears):
    first, last = tone_speech.sentences(4, seed=1), tone_speech.sentences(4, seed=2)
    mixed = [say([s], v)[: -round(0.35 * RATE)] for s, v in
             zip(tone_speech.sentences(2, 12), ("ann", "bob"), strict=True)]  # fmt: skip
    seconds = write(
        tmp_path / "a.wav", silence(1.0), say(first, "ann"), *mixed, silence(0.4), say(last, "ann")
    )
    records, rejected = run(make(tmp_path))
    assert [text_of(record) for record in records] == [" ".join(first), " ".join(last)]
    reasons = lost(rejected)
    assert set(reasons) == {"mixed voices", "not speech"}
    assert reasons["mixed voices"] == pytest.approx(24 * 0.31, abs=0.5)
    total = sum(reasons.values()) + sum(record.seconds for record in records)
    assert total == pytest.approx(seconds, abs=0.02)
    (mixed,) = [r for r in rejected if r.reason == "mixed voices"]
    assert mixed.where.startswith(f"{tmp_path}/a.wav (") and mixed.where.endswith(" s)")


def test_an_utterance_of_low_confidence_ends_the_record(tmp_path, ears):
    spoken = [tone_speech.sentences(count, seed=count) for count in (12, 6, 13)]
    levels = (0.3, 0.1, 0.3)
    pieces = [say(s, "ann", level) for s, level in zip(spoken, levels, strict=True)]
    seconds = write(tmp_path / "a.wav", silence(1.0), *pieces)
    records, rejected = run(make(tmp_path))
    texts = [text_of(record) for record in records]
    assert len(texts) == 2
    # An utterance may begin before the quiet speech does and end behind it.
    assert " ".join(spoken[0]).startswith(texts[0]) and " ".join(spoken[2]).endswith(texts[1])
    assert "low confidence" in lost(rejected)
    assert "0.30, expected >= 0.6" in str(rejected)
    total = sum(r.seconds for r in [*records, *rejected])
    assert total == pytest.approx(seconds, abs=0.02)


class Hasty(tone_speech.Recogniser):
    """Misrecognises speech that is shorter than seven seconds, or slow."""

    def recognise(self, wave_S, rate, language):
        heard = super().recognise(wave_S, rate, language)
        if len(wave_S) > 7 * rate and rate == RATE:
            return heard
        return type(heard)(heard.text[::-1], heard.words, heard.confidence, heard.no_speech)


@pytest.mark.parametrize("agreement", ["halves", "speed", "second", ""])
def test_transcripts_that_do_not_agree_are_dropped(tmp_path, ears, agreement):
    write(tmp_path / "a.wav", silence(1.0), say(tone_speech.sentences(6), "ann"))
    if agreement != "speed":  # slower tones are other words
        kept, _ = run(make(tmp_path, agreement=agreement))
        assert len(kept) == 1
    ears["recogniser"] = Hasty()
    ears["second"].misheard = dict(zip(tone_speech.WORDS, reversed(tone_speech.WORDS), strict=True))
    records, rejected = run(make(tmp_path, agreement=agreement))
    if agreement:
        assert records == [] and "no agreement" in lost(rejected)
        assert "between" in rejected[0].detail
    else:
        assert len(records) == 1


def test_words_that_cannot_be_aligned_are_dropped(tmp_path, ears):
    write(tmp_path / "a.wav", silence(1.0), say(tone_speech.sentences(6), "ann"))
    ears["aligner"].align = lambda wave_S, rate, text, language: ()
    records, rejected = run(make(tmp_path))
    assert records == [] and "no alignment" in lost(rejected)


def test_the_language_is_detected(tmp_path, ears):
    write(tmp_path / "a.wav", silence(1.0), say(tone_speech.sentences(6), "ann"))
    records, _ = run(make(tmp_path, language=""))
    assert [record.language for record in records] == ["en"]
    records, rejected = run(make(tmp_path, language="zh"))
    assert records == [] and "low confidence" in lost(rejected)


def test_windows_are_bounded_and_cut_no_speech(tmp_path, ears):
    spoken = [tone_speech.sentences(7, seed=seed) for seed in range(7)]
    pieces = [p for s in spoken for p in (say(s, "ann"), silence(1.6))]
    seconds = write(tmp_path / "a.wav", *pieces)
    assert seconds > 110
    texts = {}
    for window in (60.0, 600.0):
        ears["vad"].longest = 0.0
        records, rejected = run(make(tmp_path, window=window, agreement="", coding="flac"))
        assert ears["vad"].longest <= window + 31
        texts[window] = [text_of(record) for record in records]
        assert set(lost(rejected)) == {"not speech"}
    assert texts[60.0] == texts[600.0] == [" ".join(s) for s in spoken]


def test_records_are_shorter_than_300_seconds(tmp_path, ears):
    sentences = tone_speech.sentences(160)
    write(tmp_path / "a.wav", silence(0.5), say(sentences, "ann"))
    records, _ = run(make(tmp_path, agreement="", coding="flac"))
    assert len(records) == 2 and all(100 < record.seconds < 300 for record in records)
    assert " ".join(text_of(record) for record in records) == " ".join(sentences)


def test_speech_without_a_pause_is_lost(tmp_path, ears):
    word_S = np.concatenate([tone("time", "ann"), silence(0.05), tone("way", "ann"), silence(0.05)])
    write(tmp_path / "a.wav", silence(1.0), np.tile(word_S, 60), silence(1.0))
    records, rejected = run(make(tmp_path))
    # With its margins.
    assert records == [] and lost(rejected)["no pause"] == pytest.approx(36.5, abs=0.2)


def test_silence_has_no_speech(tmp_path, ears):
    seconds = write(tmp_path / "a.wav", silence(5.0))
    assert run(make(tmp_path)) == (
        [],
        [Rejection(str(tmp_path / "a.wav"), "not speech", seconds=seconds)],
    )


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3"])
def test_every_format_in_stereo_at_another_rate(tmp_path, ears, name):
    sentences = tone_speech.sentences(3)
    wave_S = with_noise(np.concatenate([silence(1.0), say(sentences, "ann"), silence(1.0)]))
    wave_S = np.repeat(wave_S, 3)  # 48 kHz; the images lie above the voices
    write_audio(tmp_path / name, np.stack([wave_S, wave_S], axis=1), 48000)
    records, _ = run(make(tmp_path))
    assert [text_of(record) for record in records] == [" ".join(sentences)]
    assert records[0].seconds == pytest.approx(3 * (6 * 0.31 + 0.34), abs=0.5)


def test_an_mp3_without_an_index_keeps_its_end(tmp_path):
    """Its first, silent frames are small: a guess of the length from them would be too short."""
    rng = np.random.default_rng(0)
    wave_S = (rng.standard_normal(20 * RATE) * np.repeat([0.0, 0.3], 10 * RATE)).astype(np.float32)
    write_audio(tmp_path / "a.mp3", wave_S, RATE)
    data = (tmp_path / "a.mp3").read_bytes()
    at = max(data[:400].find(b"Xing"), data[:400].find(b"Info"))
    assert at > 0
    (tmp_path / "b.mp3").write_bytes(data[:at] + bytes(4) + data[at + 4 :])
    with AudioReader(tmp_path / "b.mp3") as audio:
        length = sum(map(len, audio.blocks()))
    assert length / RATE == pytest.approx(20, abs=0.2)


def broken_files(folder) -> dict[str, str]:
    """Broken file -> its error."""
    wave_S = with_noise(np.zeros(RATE), 0.1)
    write_audio(folder / "good.wav", wave_S, RATE)
    write_audio(folder / "good.flac", wave_S, RATE)
    good = (folder / "good.wav").read_bytes()
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_bytes(b"some text that is no audio")
    (folder / "short.wav").write_bytes(good[:-1000])
    (folder / "short.flac").write_bytes((folder / "good.flac").read_bytes()[:-3000])
    (folder / "channels.wav").write_bytes(good[:22] + b"\x08\x00" + good[24:])
    write_audio(folder / "nan.wav", wave_S, RATE, subtype="FLOAT")
    data = bytearray((folder / "nan.wav").read_bytes())
    data[-400:-396] = np.float32(np.nan).tobytes()
    (folder / "nan.wav").write_bytes(data)
    for name in ("good.wav", "good.flac"):
        (folder / name).unlink()
    return {
        "channels.wav": "8 channels",
        "empty.wav": "is empty",
        "nan.wav": "finite number",
        "short.flac": "cut short",
        "short.wav": "cut short",
        "text.wav": "expected a WAV",
    }


def test_broken_files_are_counted_and_the_others_used(tmp_path, ears):
    expected = broken_files(tmp_path)
    for name, message in expected.items():
        with pytest.raises(AudioError, match=message), AudioReader(tmp_path / name) as audio:
            list(audio.blocks())
    write(tmp_path / "whole.wav", silence(1.0), say(tone_speech.sentences(3), "ann"))
    records, rejected = run(make(tmp_path))
    assert len(records) == 1
    results = {r.where.rsplit("/", 1)[1]: r for r in rejected if r.reason != "not speech"}
    assert set(results) == set(expected)
    assert all(message in results[name].detail for name, message in expected.items())
    with pytest.raises(AudioError, match="cannot be opened"):
        AudioReader(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="is a directory"):
        AudioReader(tmp_path)


def test_rows(tmp_path, ears):
    write(tmp_path / "a.wav", silence(1.0), say(tone_speech.sentences(3), "ann"))
    rows = [
        {"audio": "a.wav"},
        {"audio": "a.wav", "id": "x", "split": "test", "language": "zh"},
        {"audio": "a.wav", "id": "y", "split": None, "language": None},
        {"audio": "b.wav"},
        {"audio": "/a.wav"},
        {"audio": "../a.wav"},
        {"audio": "a.wav", "language": "French"},
        {"audio": "a.wav", "text": "known"},
        {"audio": 3},
        ["a.wav"],
        {"id": "y"},
        {"audio": "a.wav", "id": ""},
    ]
    lines = [json.dumps(row).encode() for row in rows] + [b"{", b'{"id": "\xe4"}', b""]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    listed = list(make(path).items())
    audio = str(tmp_path / "a.wav")
    assert listed[:3] == [
        Item("a.wav", "train", f"{path}:1", (audio, "en")),
        Item("x", "test", f"{path}:2", (audio, "zh")),
        Item("y", "train", f"{path}:3", (audio, "en")),
    ]
    assert [(r.where, r.reason) for r in listed[3:]] == [
        (f"{path}:{line}", reason)
        for line, reason in enumerate(
            [
                "missing file", "absolute path", "path leaves the root", "unknown language",
                "unknown key", "bad value", "malformed JSON", "bad value", "bad value",
                "malformed JSON", "not UTF-8",
            ],
            start=4,
        )
    ]  # fmt: skip
    assert all(r.detail for r in listed[3:])


def test_missing_inputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder or JSONL file"):
        list(make(tmp_path / "missing").items())


def test_pickling_leaves_the_tools_behind(tmp_path, ears):
    write(tmp_path / "a.wav", silence(1.0), say(tone_speech.sentences(3), "ann"))
    source = make(tmp_path)
    before = run(source)
    source.tool("vad").lock = lambda: None  # cannot be pickled
    again = pickle.loads(pickle.dumps(source))
    assert again == source and "_vad" not in again.__dict__
    assert run(again) == before


def test_speech_of_a_low_opinion_is_rejected(tmp_path, ears):
    """The predictor likes one of two voices: half of the recording is used."""

    class Opinions:
        def rate(self, wave_S, rate):
            return {
                "dnsmos_overall": 4.0 if tone_speech.bursts(wave_S, rate)[0].voice == "ann" else 2.0
            }

    ears["mos"] = Opinions()
    voices = [say(tone_speech.sentences(8, seed=s), v) for s, v in enumerate(("ann", "bob"))]
    write(tmp_path / "a.wav", voices[0], silence(3.0), voices[1])
    records, rejected = run(make(tmp_path, min_mos=3.0))
    assert " ".join(map(text_of, records)) == " ".join(tone_speech.sentences(8, seed=0))
    assert lost(rejected)["poor sound"] > 10


def test_config():
    values = {"name": "x", "path": "y", "limits": {"confidence": 0.5}, "voices": {"same": 0.8}}
    source = from_mapping(Crawl, values)
    assert (source.limits.confidence, source.voices.same) == (0.5, 0.8)
    with pytest.raises(ConfigError, match="unknown keys"):
        from_mapping(Crawl, {"name": "x", "path": "y", "limits": {"wer": 1.0}})
    for bad in (
        {"language": "French"},
        {"window": 10.0},
        {"agreement": "twice"},
        {"options": {"asr": {}}},
        {"max_seconds": 400.0},
        {"coding": "mp3"},
    ):
        with pytest.raises(ValueError, match="expected"):
            from_mapping(Crawl, {"name": "x", "path": "y", **bad})
