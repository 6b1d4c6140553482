"""FLEURS, on a small folder with its names of files."""

from __future__ import annotations

import pytest

from tests.unit.corpora.corpora import config, listed, made, put, put_text, tone


def fleurs(root, audio="audio", tables=""):
    rows = {
        "en_us": [
            ("1", "101.wav", 'He said: "Come in."', "he said come in", "MALE"),
            ("1", "102.wav", 'He said: "Come in."', "he said come in", "FEMALE"),
            ("2", "103.wav", "Alone.", "alone", "MALE"),
        ],
        "cmn_hans_cn": [("1", "201.wav", "他说:“进来。”", "他 说 进 来", "FEMALE")],
    }
    for language, lines in rows.items():
        for split in ("train", "dev", "test"):
            text = ""
            for id, file, raw, normalized, gender in lines if split == "train" else lines[:1]:
                file = file if split == "train" else f"{split}{file}"
                put(root / language / audio / split / file)
                spaced = " | ".join(normalized)
                text += f"{id}\t{file}\t{raw}\t{normalized}\t{spaced}\t8000\t{gender}\n"
            table = root / tables / language if tables else root / language
            put_text(table / f"{split}.tsv", text)
    return root


@pytest.mark.parametrize(("audio", "tables"), (("audio", ""), ("", "metadata")))
def test_fleurs(tmp_path, audio, tables):
    folder = fleurs(tmp_path / "fleurs", audio, tables)
    records, rejections = made(config("fleurs", folder=folder), tmp_path / "out")
    assert rejections == []
    assert len(records) == 8
    english, mandarin = records["en_us-102"], records["cmn_hans_cn-201"]
    assert english.parts[0].text == 'He said: "Come in."'
    assert english.parts[0].translation == mandarin.parts[0].text == "他说:“进来。”"
    assert mandarin.parts[0].translation == english.parts[0].text
    assert (english.language, mandarin.language) == ("en", "zh")
    assert records["en_us-103"].parts[0].translation == ""
    items, _ = listed(config("fleurs", folder=folder))
    assert items["en_us-dev101"].split == "dev" and items["en_us-101"].seconds == 0.5


def test_fleurs_checks_the_stated_length(tmp_path):
    folder = fleurs(tmp_path / "fleurs")
    # The header says 48 kHz of what was recorded at 16.
    put(folder / "en_us" / "audio" / "train" / "103.wav", tone(0.5), rate=48000)
    put(folder / "en_us" / "audio" / "train" / "101.wav", tone(2.0))
    run = config("fleurs", folder=folder, languages=("en_us",), splits=("train",))
    records, rejections = made(run, tmp_path / "out")
    assert list(records) == ["en_us-102"]
    assert [r["reason"] for r in rejections] == ["header disagrees with the corpus"] * 2
    assert "0.17 s at 48000 Hz, expected 0.50 s" in rejections[1]["detail"]


def test_fleurs_tables_with_a_header_and_bad_lengths(tmp_path):
    folder = fleurs(tmp_path / "fleurs")
    rows = "".join(
        f"MALE\t{samples}\t{text}\t10{n}.wav\t{n}\n"
        for n, samples, text in ((1, 8000, "Hi."), (2, "NaN", "Hi."), (3, 8000, "\u200b"))
    )
    header = "gender\tnum_samples\traw_transcription\tfile_name\tid\n"
    put_text(folder / "en_us" / "train.tsv", header + rows)
    run = config("fleurs", folder=folder, languages=("en_us",), splits=("train",))
    items, rejections = listed(run)
    assert list(items) == ["en_us-101"]
    assert [(r.where[-2:], r.reason) for r in rejections] == [
        (":3", "bad times"),
        (":4", "empty transcript"),
    ]
