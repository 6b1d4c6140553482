"""WenetSpeech, on a small folder with its names of files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ba_jax.audio import read_audio, write_audio
from ba_jax.corpora.sources.base import SourceError
from tests.unit.corpora.corpora import config, listed, made, put, put_text, tone


def wenetspeech(root):
    aid = "Y0000000000_--5llN02F84"
    # Each second sounds at its own pitch, so that a cut shows where it was made.
    wave_S = np.concatenate([tone(1.0, 200 + 100 * n) for n in range(10)])
    path = root / "audio" / "train" / "youtube" / "B00000" / f"{aid}.opus"
    path.parent.mkdir(parents=True)
    write_audio(path, wave_S, 16000)

    def segment(n, begin, end, subsets, text="怎么样这些日子"):
        times = {"begin_time": begin, "end_time": end}
        sid = f"{aid}_S{n:05d}"
        return {"sid": sid, "confidence": 1.0, "subsets": subsets, "text": text, **times}

    segments = [
        segment(0, 1.0, 2.0, ["L"]),
        segment(1, 7.0, 9.0, ["L", "M", "S"]),
        segment(2, 2.0, 3.0, ["W"]),
        segment(3, 3.0, 4.0, ["L"], text=" "),
        segment(4, 9.5, 12.0, ["L"]),
        segment(5, 5.0, 5.0, ["L"]),
    ]
    dev = "Y0000000001_dev"
    put(root / "audio" / "dev" / "Y0000000001_dev.opus", seconds=3.0)
    audios = [
        {
            "aid": aid,
            "duration": 10.0,
            "md5": "0",
            "path": str(path.relative_to(root)),
            "segments": segments,
        },
        {
            "aid": dev,
            "duration": 3.0,
            "path": "audio/dev/Y0000000001_dev.opus",
            "segments": [segment(0, 0.0, 1.5, ["DEV"]) | {"sid": f"{dev}_S00000"}],
        },
        {
            "aid": "Y2",
            "duration": 3.0,
            "path": "audio/none.opus",
            "segments": [segment(0, 0.0, 1.5, ["L"]) | {"sid": "Y2_S0"}],
        },
        {"aid": "Y3", "duration": 3.0, "path": "audio/none.opus", "segments": []},
        {"aid": "Y4", "duration": "3", "path": "audio/none.opus", "segments": []},
    ]
    put_text(root / "WenetSpeech.json", json.dumps({"audios": audios}, ensure_ascii=False))
    return root


def test_wenetspeech(tmp_path):
    folder = wenetspeech(tmp_path / "wenetspeech")
    records, rejections = made(config("wenetspeech", folder=folder), tmp_path / "out")
    aid = "Y0000000000_--5llN02F84"
    assert sorted(records) == [f"{aid}_S00000", f"{aid}_S00001", "Y0000000001_dev_S00000"]
    part = records[f"{aid}_S00001"].parts[0]
    assert (part.text, part.seconds) == ("怎么样这些日子", 2.0)
    wave_S, rate = read_audio(part.audio)
    for second in (0, 1):
        middle = wave_S[int((second + 0.25) * rate) : int((second + 0.75) * rate)]
        peak = np.argmax(np.abs(np.fft.rfft(middle))) * rate / len(middle)
        assert peak == 200 + 100 * (7 + second)
    results = sorted((r["where"].split(": ", 1)[1].split(" ")[-1], r["reason"]) for r in rejections)
    assert results == [
        (f"{aid}_S00004", "bad times"),
        (f"{aid}_S00005", "bad times"),
        ("audios[0].segments[3]", "empty transcript"),
        ("audios[2]", "missing file"),
        ("audios[4]", "bad value"),
    ]


def test_wenetspeech_subsets(tmp_path):
    folder = wenetspeech(tmp_path / "wenetspeech")
    # The recordings may lie on another disk.
    (folder / "audio").rename(tmp_path / "disk")
    (folder / "audio").symlink_to(tmp_path / "disk")
    items, _ = listed(config("wenetspeech", folder=folder, subset="S"))
    recipes = items["Y0000000000_--5llN02F84"].payload
    assert [recipe.id[-6:] for recipe in recipes] == ["S00001"]
    assert items["Y0000000001_dev"].split == "dev"
    with pytest.raises(SourceError, match="no JSON"):
        put_text(folder / "WenetSpeech.json", "[")
        listed(config("wenetspeech", folder=folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    (
        *((f'"begin_time": {value}', "bad times") for value in ("NaN", "1e999", "-1", "9" * 400)),
        *((f'"end_time": {value}', "bad times") for value in ("NaN", "-Infinity", "9" * 400)),
        *((f'"end_time": {value}', "bad value") for value in ("null", "true", '"2"', "[2]")),
        ('"text": null', "bad value"),
        ('"text": "\\u200b"', "empty transcript"),
        ('"text": "a", "text": "b"', "bad value"),
        ('"sid": "Y\\ud800"', "lone surrogate"),
        ('"sid": "Y0"', "duplicate id"),
    ),
)
def test_a_bad_segment_is_rejected_alone(tmp_path, change, reason):
    put_text(tmp_path / "audio" / "y.opus", b"")
    good = '"subsets": ["L"], "sid": "Y0", "text": "好", "begin_time": 0, "end_time": 1'
    key = change.partition(":")[0]
    rest = ", ".join(pair for pair in good.split(", ") if not pair.startswith(key))
    segments = f"{{{good}}}, {{{rest}, {change}}}, {{{good.replace('Y0', 'Y2')}}}"
    recording = f'{{"aid": "Y", "duration": 3, "path": "audio/y.opus", "segments": [{segments}]}}'
    put_text(tmp_path / "WenetSpeech.json", f'{{"audios": [{recording}]}}')
    items, (rejection,) = listed(config("wenetspeech", folder=tmp_path))
    assert [recipe.id for recipe in items["Y"].payload] == ["Y0", "Y2"]
    assert rejection.where.endswith("audios[0].segments[1]") and rejection.reason == reason
