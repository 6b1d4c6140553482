"""LibriSpeech and LibriTTS, on small folders with their names of files."""

from __future__ import annotations

import pytest

from ba_jax.audio import read_audio
from ba_jax.config import ConfigError
from ba_jax.corpora.sources.base import SourceError
from tests.unit.corpora.corpora import config, listed, made, put, put_text


def librispeech(root):
    for part, speaker in (("train-clean-100", 103), ("train-other-500", 20), ("dev-clean", 84)):
        folder = root / "LibriSpeech" / part / str(speaker) / "1240"
        ids = [f"{speaker}-1240-{n:04d}" for n in range(2)]
        for id in ids:
            put(folder / f"{id}.flac")
        put_text(folder / f"{speaker}-1240.trans.txt", f"{ids[0]} HELLO THERE\n{ids[1]} GOOD BYE\n")
    put_text(root / "LibriSpeech" / "SPEAKERS.TXT", ";ID |SEX|\n")
    return root / "LibriSpeech"


def test_librispeech(tmp_path):
    folder = librispeech(tmp_path)
    records, rejections = made(config("librispeech", folder=folder), tmp_path / "out")
    assert rejections == []
    assert len(records) == 6
    record = records["103-1240-0001"]
    (part,) = record.parts
    assert (record.kind, record.language, record.source) == ("speech", "en", "librispeech")
    assert (part.text, part.speaker) == ("good bye", "103")
    wave_S, rate = read_audio(part.audio)
    assert (rate, len(wave_S), part.seconds) == (16000, 8000, 0.5)
    items, _ = listed(config("librispeech", folder=folder))
    splits = {id: item.split for id, item in items.items()}
    assert splits["20-1240-0000"] == splits["103-1240-0000"] == "train"
    assert splits["84-1240-0000"] == "dev_clean"


def test_librispeech_parts_and_case(tmp_path):
    folder = librispeech(tmp_path)
    run = config("librispeech", folder=folder, parts=("dev-clean",), case="as_is")
    items, _ = listed(run)
    assert sorted(items) == ["84-1240-0000", "84-1240-0001"]
    assert items["84-1240-0000"].payload[0].clips[0].text == "HELLO THERE"


def test_librispeech_counts_mismatched_files_and_lines(tmp_path):
    folder = librispeech(tmp_path)
    chapter = folder / "dev-clean" / "84" / "1240"
    (chapter / "84-1240-0000.flac").unlink()
    put(chapter / "84-1240-0009.flac")
    with open(chapter / "84-1240.trans.txt", "ab") as file:
        file.write(b"84-1240-0001 AGAIN\n84-1240-0002\n84-1240-0003 CAF\xc9\n")
    put(chapter / "84-1240-0002.flac")
    items, rejections = listed(config("librispeech", folder=folder, parts=("dev-clean",)))
    assert list(items) == ["84-1240-0001"]
    results = {(r.where.rsplit("/", 1)[1], r.reason) for r in rejections}
    assert results == {
        ("84-1240.trans.txt:1", "missing file"),
        ("84-1240.trans.txt:3", "duplicate id"),
        ("84-1240.trans.txt:4", "empty transcript"),
        ("84-1240.trans.txt:5", "not UTF-8"),
        ("84-1240-0009.flac", "no transcript"),
    }


def test_librispeech_errors_name_the_expected_layout(tmp_path):
    with pytest.raises(SourceError, match="train-clean-100"):
        listed(config("librispeech", folder=tmp_path))
    with pytest.raises(SourceError, match="no such folder"):
        listed(config("librispeech", folder=tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="case = 'upper'"):
        listed(config("librispeech", folder=tmp_path, case="upper"))


def libritts(root, with_tables=True):
    folder = root / "LibriTTS" / "train-clean-100" / "103" / "1241"
    for n, (original, normalized) in enumerate(
        (("He paid $5.", "He paid five dollars."), ("Mr. Hyde?", "Mister Hyde?"))
    ):
        id = f"103_1241_00000{n}_000000"
        put(folder / f"{id}.wav", rate=24000)
        put_text(folder / f"{id}.original.txt", original)
        put_text(folder / f"{id}.normalized.txt", normalized)
        if with_tables:
            with open(folder / "103_1241.trans.tsv", "a", encoding="utf-8") as file:
                file.write(f"{id}\t{original}\t{normalized}\n")
    put_text(folder / "103_1241.book.tsv", "103_1241_000000_000000\tHe paid $5.\t0\t20.5\n")
    put_text(folder / "._103_1241_000000_000000.wav", "of macOS")
    return root / "LibriTTS"


@pytest.mark.parametrize("with_tables", (True, False))
def test_libritts(tmp_path, with_tables):
    folder = libritts(tmp_path, with_tables)
    records, rejections = made(config("libritts", folder=folder), tmp_path / "out")
    assert rejections == []
    texts = {id: record.parts[0].text for id, record in records.items()}
    assert texts == {
        "103_1241_000000_000000": "He paid five dollars.",
        "103_1241_000001_000000": "Mister Hyde?",
    }
    assert records["103_1241_000000_000000"].parts[0].speaker == "103"
    items, _ = listed(config("libritts", folder=folder, text="original"))
    assert items["103_1241_000001_000000"].payload[0].clips[0].text == "Mr. Hyde?"


def test_suffixes_in_any_case_and_files_of_macos(tmp_path):
    speech, texts = librispeech(tmp_path / "a"), libritts(tmp_path / "b", with_tables=False)
    for path in [path for path in tmp_path.rglob("*.*") if path.is_file()]:
        path.rename(path.with_suffix(path.suffix.upper()))
        put_text(path.with_name(f"._{path.name}"), b"\x00\x05\x16\x07")
    items, rejections = listed(config("librispeech", folder=speech))
    assert len(items) == 6 and rejections == []
    items, rejections = listed(config("libritts", folder=texts))
    assert len(items) == 2 and rejections == []


def test_librispeech_a_part_that_is_no_split(tmp_path):
    folder = librispeech(tmp_path)
    (folder / "dev-clean").rename(folder / "dev-clean (copy)")
    with pytest.raises(SourceError, match=r"dev-clean \(copy\): split"):
        listed(config("librispeech", folder=folder))
