"""AISHELL-1, on a small folder with its names of files."""

from __future__ import annotations

import pytest

from ba_jax.corpora.sources.base import SourceError
from tests.unit.corpora.corpora import config, listed, made, put, put_text


def test_aishell(tmp_path):
    root = tmp_path / "data_aishell"
    for split, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
        put(root / "wav" / split / speaker / f"BAC009{speaker}W0122.wav")
    put(root / "wav" / "train" / "S0002" / "BAC009S0002W0123.wav")
    put_text(
        root / "transcript" / "aishell_transcript_v0.8.txt",
        "BAC009S0002W0122 而 对 楼市 成交\nBAC009S0724W0122 广州市 房地产\n"
        "BAC009S0764W0122 甚至 出现\nBAC009S0770W0122 没有 文件\n",
    )
    for folder in (root, tmp_path):
        items, rejections = listed(config("aishell", folder=folder))
        assert {id: item.split for id, item in items.items()} == {
            "BAC009S0002W0122": "train",
            "BAC009S0724W0122": "dev",
            "BAC009S0764W0122": "test",
        }
        assert [r.reason for r in rejections] == ["missing file", "no transcript"]
    records, _ = made(config("aishell", folder=root), tmp_path / "out")
    (part,) = records["BAC009S0002W0122"].parts
    assert (part.text, part.speaker) == ("而对楼市成交", "S0002")
    assert records["BAC009S0002W0122"].language == "zh"
    items, rejections = listed(config("aishell", folder=root, splits=("dev",)))
    assert list(items) == ["BAC009S0724W0122"] and rejections == []


def test_aishell_with_packed_archives_is_refused(tmp_path):
    root = tmp_path / "data_aishell"
    for split in ("train", "dev", "test"):
        put_text(root / "wav" / split / "S0002.tar.gz", b"\x1f\x8b")
    put_text(root / "transcript" / "aishell_transcript_v0.8.txt", "BAC009S0002W0122 而 对\n")
    with pytest.raises(SourceError, match="unpack"):
        listed(config("aishell", folder=root))


def test_aishell_rows_and_recordings_of_a_name_again(tmp_path):
    root = tmp_path / "data_aishell"
    for path in ("train/S1/A.WAV", "dev/S2/B.wav", "test/S3/C.wav", "train/S9/A.wav"):
        put_text(root / "wav" / path, b"")
    lines = "\ufeffA 而 对\r\n B\u3000好\r\nC \u200b\r\nB 再\r\n"
    put_text(root / "transcript" / "aishell_transcript_v0.8.txt", lines)
    items, rejections = listed(config("aishell", folder=root))
    texts = {id: item.payload[0].clips[0].text for id, item in items.items()}
    assert texts == {"A": "而对", "B": "好"}
    assert [(r.where.rsplit("/", 1)[1], r.reason) for r in rejections] == [
        ("A.wav", "duplicate id"),
        ("aishell_transcript_v0.8.txt:3", "empty transcript"),
        ("aishell_transcript_v0.8.txt:4", "duplicate id"),
    ]
