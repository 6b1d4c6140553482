"""JSONL manifests: their contents, and errors in them and in the files that they name."""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import tempfile
import zipfile

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.audio import read_audio
from ba_jax.corpora import runner
from ba_jax.corpora.shards import find_special_tokens
from ba_jax.corpora.sources.base import Item, Rejection, SourceError
from ba_jax.data.text_tokenizer import AUDIO_TOKEN_NAMES, ROLE_NAMES
from tests.unit.corpora.corpora import (
    RATE,
    config,
    listed,
    made,
    manifest,
    put,
    put_text,
    tone,
    wav_bytes,
)

GOOD = {"id": "good", "audio": "good.wav", "text": "Good morning."}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    root = tmp_path / "data"
    put(root / "good.wav")
    return root


def run(folder: pathlib.Path, *lines, **options):
    """Make a dataset of the lines and a good line: the other records, and the rejections."""
    path = manifest(folder, *lines, GOOD)
    out = folder.parent / "out"
    records, rejections = made(config("manifest", path=path, **options), out)
    assert "good" in records, "a bad line took a good one with it"
    del records["good"]
    return records, rejections


def rejects(folder: pathlib.Path, line, reason: str, *words: str, number: int = 1, **options):
    """Expect that a line makes no record, and is counted with its place, reason and detail."""
    records, rejections = run(folder, line, **options)
    assert records == {}
    (results,) = rejections
    assert results["reason"] == reason
    assert results["where"] == f"{folder / 'm.jsonl'}:{number}"
    for word in words:
        assert word in results["detail"]
    return results


# --- contents ---------------------------------------------------------------------------------


def test_all_keys_of_an_utterance(folder):
    put(folder / "long.flac", np.concatenate([tone(2.0, 200), tone(1.0, 500), tone(2.0, 200)]))
    line = {
        "id": "u1",
        "audio": "long.flac",
        "offset": 2.0,
        "duration": 1.0,
        "sample_rate": 16000,
        "text": " 你好,世界。 ",
        "language": "zh",
        "speaker": "ann",
        "translation": "Hello, world.",
        "split": "dev",
        "words": [["你", 0.1, 0.4], ["好", 0.4, 0.9]],
        "loss": False,
    }
    records, rejections = run(folder, line)
    assert rejections == []
    record = records["u1"]
    (part,) = record.parts
    assert (record.kind, record.language, record.source) == ("speech", "zh", "manifest")
    assert (part.text, part.translation) == ("你好,世界。", "Hello, world.")
    assert (part.speaker, part.seconds, part.loss) == ("ann", 1.0, False)
    words = [(word.text, round(word.start, 3), round(word.end, 3)) for word in part.words]
    assert words == [("你", 0.1, 0.4), ("好", 0.4, 0.9)]
    wave_S, rate = read_audio(part.audio)
    middle = wave_S[rate // 4 : rate * 3 // 4]
    assert np.argmax(np.abs(np.fft.rfft(middle))) * rate / len(middle) == 500
    items, _ = listed(config("manifest", path=folder / "m.jsonl"))
    assert (items["u1"].split, items["u1"].seconds) == ("dev", 1.0)
    assert items["good"].split == "train"


def test_interleaved_dialogue_text_and_codes(folder):
    put(folder / "sub" / "two.wav", seconds=0.75)
    np.save(folder / "codes.npy", np.arange(40).reshape(5, 8))
    lines = [
        {
            "id": "i",
            "segments": [
                {"text": "One.", "audio": "good.wav"},
                {"text": "Two.", "audio": "sub/two.wav"},
            ],
        },
        {
            "id": "d",
            "segments": [
                {"role": "system", "text": "Be brief."},
                {"role": "user", "text": "Hm?", "audio": "good.wav", "speaker": "bob"},
                {"role": "assistant", "text": "Yes."},
            ],
        },
        {"id": "t", "text": "Only text."},
        {"id": "c", "text": "Codes.", "codes": "codes.npy", "duration": 0.4},
    ]
    records, rejections = run(folder, *lines)
    assert rejections == []
    kinds = {id: record.kind for id, record in records.items()}
    assert kinds == {"i": "interleaved", "d": "dialogue", "t": "text", "c": "speech"}
    assert [part.seconds for part in records["i"].parts] == [0.5, 0.75]
    assert [part.role for part in records["d"].parts] == ["system", "user", "assistant"]
    assert records["c"].parts[0].codes_NQ.tolist() == np.arange(40).reshape(5, 8).tolist()
    assert records["c"].parts[0].seconds == pytest.approx(0.4)


def test_defaults_come_from_the_config(folder):
    line = {"audio": "good.wav", "text": "早"}
    records, _ = run(folder, line, language="zh", split="dev", name="mine")
    record = records["m-1"]
    assert (record.language, record.source) == ("zh", "mine")
    assert (folder.parent / "out" / "mine-dev.array_record-00000-of-00001").is_file()


def test_paths_are_relative_to_the_root_that_is_named(folder, tmp_path):
    path = manifest(tmp_path / "lists", GOOD)
    items, rejections = listed(config("manifest", path=path, folder=folder))
    assert list(items) == ["good"] and rejections == []
    with pytest.raises(SourceError, match="no such folder"):
        listed(config("manifest", path=path, folder=tmp_path / "none"))
    with pytest.raises(SourceError, match="expected a manifest"):
        listed(config("manifest", path=tmp_path / "none.jsonl"))


def test_speech_without_a_transcript_can_be_accepted(folder):
    records, _ = run(folder, {"id": "a", "audio": "good.wav"}, needs_text=False)
    assert records["a"].parts[0].text == ""


def test_a_byte_order_mark_and_windows_lines_are_fine(folder):
    path = folder / "m.jsonl"
    lines = [json.dumps(GOOD | {"id": id}).encode() for id in ("good", "joined")]
    put_text(path, b"".join(b"\xef\xbb\xbf" + line + b"\r\n\r\n" for line in lines))
    records, rejections = made(config("manifest", path=path), folder.parent / "out")
    assert list(records) == ["good", "joined"] and rejections == []


# --- bad audio ----------------------------------------------------------------------------------


def bad(folder: pathlib.Path, data: bytes, name: str = "bad.wav") -> dict:
    """A line that names a file of these bytes."""
    put_text(folder / name, data)
    return {"id": "bad", "audio": name, "text": "bad"}


def with_nan(seconds: float) -> bytes:
    wave_S = tone(seconds)
    wave_S[100] = np.nan
    return wav_bytes(wave_S, RATE)


@pytest.mark.parametrize(
    ("data", "reason", "word"),
    (
        (b"", "empty file", "0 bytes"),
        (wav_bytes(np.zeros(0, "i2"), RATE), "empty file", "0 samples"),
        (with_nan(0.5), "NaN or infinite samples", "sample 100 is nan"),
        (wav_bytes(np.zeros(8000, "i2"), 1), "bad sample rate", "1 Hz"),
        (wav_bytes(np.zeros(8000, "i2"), 2_000_000), "bad sample rate", "2000000 Hz"),
    ),
    ids=("zero length", "no samples", "NaN", "rate too low", "rate too high"),
)
def test_unusable_files(folder, data, reason, word):
    rejects(folder, bad(folder, data), reason, word)


@pytest.mark.parametrize("format", ("wav", "flac", "opus", "mp3"))
def test_truncated(folder, format):
    whole = put(folder / f"whole.{format}", seconds=3.0).read_bytes()
    line = bad(folder, whole[: len(whole) * 2 // 3], f"bad.{format}")
    rejects(folder, line, "truncated audio", "cut short")


def test_nan_in_a_stretch(folder):
    line = bad(folder, with_nan(2.0)) | {"offset": 0.0, "duration": 0.5}
    rejects(folder, line, "NaN or infinite samples")


def test_stereo_is_averaged(folder):
    left, right = tone(0.5, 300), tone(0.5, 700)
    put(folder / "stereo.flac", np.stack([left, right], axis=1))
    audio = {"coding": "flac"}
    line = {"id": "s", "audio": "stereo.flac", "text": "both"}
    cut = line | {"id": "c", "offset": 0.0, "duration": 0.5}
    records, _ = run(folder, line, cut, audio=audio)
    for record in records.values():
        wave_S, rate = read_audio(record.parts[0].audio)
        assert rate == RATE
        np.testing.assert_allclose(wave_S, (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize("cut", ({}, {"offset": 0.0, "duration": 0.25}))
def test_eight_channels(folder, cut):
    data = wav_bytes(np.zeros((4000, 8), "i2"), RATE, channels=8)
    rejects(folder, bad(folder, data) | cut, "too many channels", "8 channels")


def test_wrong_but_possible_rate_in_the_header(folder):
    """Only the corpus can tell: by the length or the rate that it states."""
    samples = (tone(2.0) * 32767).astype("i2")
    line = bad(folder, wav_bytes(samples, 48000))
    reason = "header disagrees with the corpus"
    rejects(folder, line | {"duration": 2.0}, reason, "0.67 s at 48000 Hz, expected 2.00 s")
    os.rename(folder.parent / "out", folder.parent / "first")
    rejects(folder, line | {"sample_rate": 16000}, reason, "48000 Hz, expected 16000 Hz")


def test_ten_minutes_are_fine_and_more_are_not(folder):
    put(folder / "ten.flac", np.zeros(600 * 4000, "f4"), rate=4000)
    put(folder / "more.flac", np.zeros(600 * 4000 + 1, "f4"), rate=4000)
    lines = [{"id": name, "audio": f"{name}.flac", "text": "long"} for name in ("ten", "more")]
    records, rejections = run(folder, *lines, audio={"coding": "flac"})
    assert [record.parts[0].seconds for record in records.values()] == [600.0]
    assert [r["reason"] for r in rejections] == ["too long"]
    assert rejections[0]["where"].endswith("m.jsonl:2")


def test_a_hundredth_of_a_second(folder):
    put(folder / "short.wav", seconds=0.01)
    line = {"id": "bad", "audio": "short.wav", "text": "short"}
    results = rejects(folder, line, "too short", "0.010 s, expected at least 0.1 s")
    assert results["seconds"] == pytest.approx(0.01)


def test_the_config_sets_the_bounds(folder):
    audio = {"min_seconds": 0.5, "max_seconds": 0.6}
    put(folder / "a.wav", seconds=0.49)
    put(folder / "b.wav", seconds=0.61)
    put(folder / "c.wav", seconds=0.6)
    lines = [{"id": name, "audio": f"{name}.wav", "text": "x"} for name in "abc"]
    records, rejections = run(folder, *lines, audio=audio)
    assert list(records) == ["c"]
    assert [r["reason"] for r in rejections] == ["too short", "too long"]


def test_a_file_that_plays_long_is_not_decoded_to_its_end(folder):
    """A decompression bomb: silence packs a thousand times smaller than it plays."""
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        for _ in range(20):
            file.write(np.zeros(8000 * 60, "i2"))
    assert len(stream.getvalue()) < 60_000
    rejects(folder, bad(folder, stream.getvalue(), "bomb.flac"), "too long", "expected at most")


def test_more_bytes_of_samples_than_allowed(folder):
    put(folder / "bad.wav", seconds=3.0)
    line = {"id": "bad", "audio": "bad.wav", "text": "x"}
    rejects(folder, line, "too large", "bytes", audio={"max_bytes": 100_000})


@pytest.mark.parametrize("name", ("bad.wav", "bad.zip", "bad.gz"))
def test_archives_are_not_opened(folder, name):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "good.wav", "good.wav")
    data = stream.getvalue() if name != "bad.gz" else b"\x1f\x8b\x08\x00" + bytes(100)
    rejects(folder, bad(folder, data, name), "not audio", "expected a WAV")


def test_stretches_outside_of_the_file(folder):
    for number, (offset, duration) in enumerate(((0.4, 0.5), (3.0, 0.1), (0.2, None))):
        line = GOOD | {"id": "bad", "offset": offset}
        if duration is not None:
            line["duration"] = duration
            rejects(folder, line, "bad times", "0.50 s")
        else:
            records, _ = run(folder, line)
            assert records["bad"].parts[0].seconds == pytest.approx(0.3)
        os.rename(folder.parent / "out", folder.parent / f"out{number}")


# --- bad paths ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason", "word"),
    (
        ("none.wav", "missing file", "none.wav"),
        ("sub", "missing file", "not a regular file"),
        ("", "bad path", "name"),
        ("a\0b", "bad path", "name"),
    ),
)
def test_names_of_no_file(folder, name, reason, word):
    (folder / "sub").mkdir()
    rejects(folder, GOOD | {"id": "bad", "audio": name}, reason, word)


def test_absolute_path(folder):
    line = GOOD | {"id": "bad", "audio": str(folder / "good.wav")}
    rejects(folder, line, "absolute path", "expected one relative to")
    os.rename(folder.parent / "out", folder.parent / "first")
    records, _ = run(folder, line, allow_absolute=True)
    assert list(records) == ["bad"]


def test_home_folders_and_variables_where_absolute_paths_are_allowed(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("CLIPS", str(folder))
    put(folder / "Ke$ha.wav")
    names = {"a": "~/good.wav", "b": "${CLIPS}/good.wav", "c": "Ke$ha.wav", "d": "s3://b/good.wav"}
    lines = [GOOD | {"id": id, "audio": name} for id, name in names.items()]
    records, rejections = run(folder, *lines, allow_absolute=True)
    assert list(records) == ["a", "b", "c"]
    assert [r["reason"] for r in rejections] == ["bad path"]


@pytest.mark.parametrize("name", ("../secret.wav", "sub/../../secret.wav", "link.wav", "out/s.wav"))
def test_paths_that_leave_the_root(folder, name):
    put(folder.parent / "secret.wav")
    put(folder.parent / "elsewhere" / "s.wav")
    (folder / "sub").mkdir()
    (folder / "link.wav").symlink_to(folder.parent / "secret.wav")
    (folder / "out").symlink_to(folder.parent / "elsewhere")
    line = GOOD | {"id": "bad", "audio": name}
    rejects(folder, line, "path leaves the root", "leads to")
    os.rename(folder.parent / "out", folder.parent / "first")
    # Absolute paths may be allowed; climbing out is not.
    rejects(folder, line, "path leaves the root", allow_absolute=True)


def test_links_inside_the_root_are_fine(folder):
    (folder / "link.wav").symlink_to("good.wav")
    records, _ = run(folder, GOOD | {"id": "link", "audio": "link.wav"})
    assert list(records) == ["link"]


# --- bad lines ----------------------------------------------------------------------------------


def test_latin_1(folder):
    line = json.dumps(GOOD | {"id": "bad", "text": "café"}, ensure_ascii=False).encode("latin-1")
    rejects(folder, line, "not UTF-8", "byte 0xe9", "expected UTF-8")


def test_utf_16_is_rejected_line_by_line(folder):
    path = put_text(folder / "m.jsonl", json.dumps(GOOD).encode("utf-16"))
    out = folder.parent / "out"
    with pytest.raises(runner.PrepareError, match="no record was written: 1 rejected"):
        runner.prepare(config("manifest", path=path), out, workers=0)


@pytest.mark.parametrize("key", ("text", "id", "speaker", "translation", "audio", "split"))
def test_lone_surrogate(folder, key):
    line = json.dumps(GOOD | {"id": "bad"} | {key: "half \ud800 a pair"})
    assert "\\ud800" in line
    rejects(folder, line, "lone surrogate", key, "\\ud800")


def test_lone_surrogate_in_words_and_keys(folder):
    line = json.dumps(GOOD | {"id": "bad", "words": [["\ud800", 0, 0.1]]})
    rejects(folder, line, "lone surrogate", "words")
    os.rename(folder.parent / "out", folder.parent / "first")
    line = json.dumps(GOOD | {"id": "bad", "\ud800": 1})
    rejects(folder, line, "unknown key", "\\ud800")


@pytest.mark.parametrize(
    "line", ("{bad", "[1]", "null", '{"id": "a",}', '{"offset": NaN}', "[" * 100_000)
)
def test_malformed_json(folder, line):
    rejects(folder, line, "malformed JSON")


def test_a_line_without_end(folder, monkeypatch):
    monkeypatch.setattr("ba_jax.corpora.sources.listing.MAX_LINE", 1000)
    rejects(folder, json.dumps(GOOD | {"text": "x" * 5000}), "line too long", "1000 bytes")


@pytest.mark.parametrize(
    ("change", "reason", "word"),
    (
        ({"text": "  "}, "empty transcript", "expected some"),
        ({"text": 3}, "bad value", "text 3, expected str"),
        ({"offset": True}, "bad value", "offset True"),
        ({"offset": -1}, "bad times", "offset -1"),
        ({"duration": 0}, "bad times", "duration 0"),
        ({"duration": 1e999}, "bad times", "duration inf"),
        ({"language": "French"}, "unknown language", "'French'"),
        ({"split": "../x"}, "bad value", "split"),
        ({"id": ""}, "bad value", "id"),
        ({"txet": "typo"}, "unknown key", "txet"),
        ({"role": "user"}, "unknown key", "role"),
        ({"words": [["a", 0]]}, "bad word timings", "[word, start, end]"),
        ({"words": [["a", 0.2, 0.1]]}, "bad word timings", "within 0.50 s"),
        ({"words": [["a", 0.2, 9]]}, "bad word timings", "within 0.50 s"),
        ({"words": [["a", 0.2, 0.3], ["b", 0.1, 0.2]]}, "bad word timings", "from 0.2 s on"),
        ({"words": [["a", -0.1, 0.1]]}, "bad word timings", "from 0 s on"),
        ({"words": [["a", 0, 10**400]]}, "bad word timings", "from 0 s on"),
        ({"words": [[" ", 0, 1e999]]}, "bad word timings", "from 0 s on"),
        ({"words": [["a", None, 0.1]]}, "bad word timings", "[word, start, end]"),
        ({"words": [["a", True, 0.1]]}, "bad word timings", "[word, start, end]"),
        ({"text": None}, "empty transcript", "None"),
        ({"text": "\u200b\ufeff \u001a"}, "empty transcript", "u200b"),
        ({"audio": None}, "bad value", "audio null, expected a path"),
        ({"offset": 10**400}, "bad times", "offset 1000"),
        ({"sample_rate": 0}, "bad value", "sample_rate 0"),
        ({"sample_rate": 16000.5}, "bad value", "sample_rate 16000.5, expected int"),
        ({"id": "\u2060"}, "bad value", "id"),
        ({"segments": [{"text": "x"}]}, "unknown key", "audio"),
    ),
)
def test_bad_values(folder, change, reason, word):
    line = GOOD | {"id": "bad"} | change
    rejects(folder, json.dumps(line).replace("Infinity", "1e999"), reason, word)


@pytest.mark.parametrize(
    ("segments", "reason", "word"),
    (
        ([], "bad value", "0 segments"),
        ([{"text": "x", "audio": "good.wav"}], "bad value", "1 segments"),
        (["x", "y"], "bad value", "expected an object"),
        ([{"text": "x"}, {"text": "y"}], "bad value", "without audio"),
        ([{"text": "x", "role": "user"}, {"text": "y", "audio": "good.wav"}], "bad value", "role"),
        ([{"text": "x", "role": "boss"}, {"text": "y", "role": "user"}], "bad value", "'boss'"),
        ([{"text": "x", "role": "user"}, {"text": "", "role": "user"}], "empty transcript", ""),
        (
            [{"text": "x", "audio": "good.wav"}] * 2 + [{"text": "z", "id": "q"}],
            "unknown key",
            "id",
        ),
    ),
)
def test_bad_segments(folder, segments, reason, word):
    rejects(folder, {"id": "bad", "segments": segments}, reason, word)


def test_null_is_as_if_a_key_were_absent(folder):
    keys = ("split", "language", "segments", "codes", "speaker", "translation", "offset")
    keys += ("duration", "sample_rate", "words", "loss", "role", "other")
    lines = [dict.fromkeys(keys) | GOOD | {"id": None}]
    part = dict.fromkeys(keys[3:]) | {"text": "t", "audio": "good.wav"}
    lines.append({"id": "i", "audio": None, "segments": [part, part]})
    turns = [{"role": role, "text": role, "audio": None} for role in ("user", "assistant")]
    lines.append({"id": "d", "segments": turns})
    records, rejections = run(folder, *lines)
    assert rejections == []
    kinds = {id: record.kind for id, record in records.items()}
    assert kinds == {"m-1": "speech", "i": "interleaved", "d": "dialogue"}


def test_invisible_characters_and_blank_words_are_left_out(folder):
    words = [["", 0.0, 0.1], ["Go\u00adod", 0.1, 0.2], [" ", 0.2, 0.3], ["\u200b", 0.3, 0.4]]
    line = GOOD | {"id": "a", "text": "\ufeffGo\u00adod.\u200b", "words": words}
    records, rejections = run(folder, line | {"translation": "\u200b好"})
    (part,) = records["a"].parts
    assert rejections == []
    assert (part.text, part.translation) == ("Good.", "好")
    assert [word.text for word in part.words] == ["Good"]


def test_extra_keys_may_be_ignored(folder):
    records, _ = run(folder, GOOD | {"id": "x", "snr": 20}, extra_keys=True)
    assert list(records) == ["x"]


def test_missing_transcript(folder):
    rejects(folder, {"id": "bad", "audio": "good.wav"}, "empty transcript")


def test_duplicate_ids_name_both_places(folder):
    path = folder / "m.jsonl"
    manifest(folder, GOOD, GOOD | {"text": "again"}, GOOD | {"text": "and again"})
    records, rejections = made(config("manifest", path=path), folder.parent / "out")
    assert records["good"].parts[0].text == "Good morning."
    assert [(r["where"], r["reason"]) for r in rejections] == [
        (f"{path}:2", "duplicate id"),
        (f"{path}:3", "duplicate id"),
    ]
    assert all(f"{path}:1" in r["detail"] for r in rejections)


@pytest.mark.parametrize(
    ("value", "words"),
    (
        (np.zeros((3, 8)), "float64(3, 8)"),
        (np.zeros(3, int), "int64(3,)"),
        (np.zeros((0, 8), int), "(0, 8)"),
        (np.full((3, 8), 70000), "70000"),
        (np.full((3, 8), -1), "-1"),
        (np.array([[{}]], object), "no NumPy array"),
    ),
)
def test_bad_codes(folder, value, words):
    np.save(folder / "codes.npy", value, allow_pickle=True)
    line = {"id": "bad", "text": "x", "codes": "codes.npy"}
    rejects(folder, line, "bad codes", words)


def test_codes_that_are_no_array(folder):
    put_text(folder / "codes.npy", b"\x93NUMPY\x01\x00")
    rejects(folder, {"id": "bad", "text": "x", "codes": "codes.npy"}, "bad codes")


# --- anything at all ---------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("audio", "text", "role", "words")), inner, max_size=3)
    ),
    max_leaves=8,
)
keys = ("id", "split", "language", "segments", "audio", "text", "codes", "speaker", "translation")
keys += ("offset", "duration", "sample_rate", "words", "loss", "role", "other")


@given(st.dictionaries(st.sampled_from(keys), values))
def test_any_object_is_an_item_or_a_rejection(fields):
    check_any(json.dumps({"text": "t"} | fields).encode())


@given(st.binary(max_size=40))
def test_any_bytes_are_an_item_or_a_rejection(data):
    check_any(data)


def check_any(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = put_text(pathlib.Path(name) / "m.jsonl", data)
        for results in config("manifest", path=path).make_source().items():
            assert isinstance(results, Item | Rejection)
            assert results.where.startswith(f"{path}:")
            # Listed items can be written and read again.
            pickle.dumps(results)
            json.dumps(results.where + getattr(results, "detail", "")).encode()


# --- special tokens -----------------------------------------------------------------------------

SPECIAL = ("<audio_start_baichuan>", "<|endoftext|>", "<C_Q>", "</s>", "<reserved_113>")


def test_special_tokens_in_text_are_kept_with_a_warning(folder):
    text = "Say " + " ".join(SPECIAL)
    records, rejections = run(folder, GOOD | {"id": "s", "text": text, "translation": "<C_A>"})
    assert records["s"].parts[0].text == text
    assert rejections == []
    out = folder.parent / "out"
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert report["warnings"] == {"special-token text": len(SPECIAL) + 1}
    warnings = [json.loads(line) for line in (out / "warnings.jsonl").read_text().splitlines()]
    assert {w["where"] for w in warnings} == {f"{folder / 'm.jsonl'}:1"}
    assert [w["detail"] for w in warnings][:2] == [
        f"s: {token}, kept as plain text" for token in SPECIAL[:2]
    ]
    assert "6 warnings" in (out / "report.md").read_text("utf-8")


def test_every_special_token_of_the_tokenizers_is_known():
    for name in (*AUDIO_TOKEN_NAMES.values(), *ROLE_NAMES.values(), *SPECIAL):
        assert find_special_tokens(f"a {name} b {name}") == [name]
    for text in ("a < b > c", "<b>bold</b>", "x<y", "<|>", "I <3 you"):
        assert find_special_tokens(text) == []
