"""LJ Speech, on a small folder with its names of files."""

from __future__ import annotations

from ba_jax.audio import read_audio
from tests.unit.corpora.corpora import config, made, put, put_text


def test_ljspeech(tmp_path):
    folder = tmp_path / "LJSpeech-1.1"
    for id in ("LJ001-0001", "LJ001-0002", "LJ001-0004"):
        put(folder / "wavs" / f"{id}.wav", rate=22050)
    put_text(
        folder / "metadata.csv",
        'LJ001-0001|In 1455, "Gutenberg"|In fourteen fifty-five, "Gutenberg"\n'
        "LJ001-0002||\nLJ001-0003|gone|gone\nLJ001-0005|two columns\n",
    )
    records, rejections = made(config("ljspeech", folder=folder), tmp_path / "out")
    (part,) = records["LJ001-0001"].parts
    assert part.text == 'In fourteen fifty-five, "Gutenberg"'
    assert part.speaker == "LJ"
    # 22.05 kHz is none of Opus's rates: 24 kHz is.
    assert read_audio(part.audio)[1] == 24000
    results = [(r["where"].rsplit("/", 1)[1], r["reason"]) for r in rejections]
    assert results == [
        ("metadata.csv:2", "empty transcript"),
        ("metadata.csv:3", "missing file"),
        ("metadata.csv:4", "wrong number of columns"),
        ("LJ001-0004.wav", "no transcript"),
    ]
