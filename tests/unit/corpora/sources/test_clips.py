"""Stretches of long recordings, and the reasons that unusable audio is counted under."""

from __future__ import annotations

import numpy as np
import pytest

from ba_jax.audio import read_audio, write_audio
from ba_jax.corpora.sources.base import Rejected
from ba_jax.corpora.sources.clips import AudioConfig, Clip, read_clip
from tests.unit.corpora.corpora import put

RATE = 16000


def noise(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    steps = np.repeat(rng.uniform(0.01, 0.2, int(seconds * 10) + 1), RATE // 10)
    return (steps * rng.standard_normal(len(steps)))[: round(seconds * RATE)].astype("f4")


@pytest.mark.parametrize(
    ("format", "tolerance"), (("wav", 0), ("flac", 0), ("ogg", 1e-6), ("opus", 0.01), ("mp3", 1e-5))
)
def test_a_stretch_equals_that_part_of_the_file(tmp_path, format, tolerance):
    path = tmp_path / f"long.{format}"
    write_audio(path, noise(40.0), RATE)
    whole_S, rate = read_audio(path)
    for start, end in ((0.0, 1.0), (12.345, 14.0), (38.5, 40.0), (39.0, 40.2), (39.5, None)):
        wave_S, results = read_clip(Clip(path=str(path), start=start, end=end), AudioConfig())
        first = round(start * rate)
        last = len(whole_S) if end is None else min(round(end * rate), len(whole_S))
        assert results == rate and len(wave_S) == last - first
        np.testing.assert_allclose(wave_S, whole_S[first:last], atol=tolerance)


def test_a_stretch_is_bounded_and_the_file_is_not(tmp_path):
    path = put(tmp_path / "hours.flac", np.zeros(4000 * 3600 * 2, "f4"), rate=4000)
    config = AudioConfig(max_seconds=30.0)
    with pytest.raises(Rejected, match="too long"):
        read_clip(Clip(path=str(path)), config)
    with pytest.raises(Rejected, match="too long"):
        read_clip(Clip(path=str(path), start=7000.0, end=7031.0), config)
    wave_S, rate = read_clip(Clip(path=str(path), start=7100.0, end=7130.0), config)
    assert (len(wave_S), rate) == (30 * 4000, 4000)


def test_a_stretch_of_a_file_that_is_cut_short(tmp_path):
    # The missing end of a FLAC does not affect the audio before it.
    for format, start in (("wav", 0.0), ("flac", 4.0), ("opus", 0.0), ("mp3", 0.0)):
        path = tmp_path / f"cut.{format}"
        write_audio(path, noise(5.0), RATE)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(Rejected) as caught:
            read_clip(Clip(path=str(path), start=start, end=start + 1), AudioConfig())
        assert caught.value.reason == "truncated audio"


def test_lengths_near_the_stated_one_are_fine(tmp_path):
    path = str(put(tmp_path / "a.wav", seconds=10.0))
    for stated in (9.4, 10.0, 10.7):
        read_clip(Clip(path=path, stated_seconds=stated, stated_rate=RATE), AudioConfig())
    for stated in (9.0, 11.0):
        with pytest.raises(Rejected, match="header disagrees"):
            read_clip(Clip(path=path, stated_seconds=stated), AudioConfig())


def test_whole_files_and_stretches_fail_for_the_same_reasons(tmp_path):
    bad = {
        "empty file": b"",
        "not audio": b"PK\x03\x04 and so on",
        "truncated audio": put(tmp_path / "t.wav", seconds=3.0).read_bytes()[:5000],
    }
    for reason, data in bad.items():
        (tmp_path / "bad").write_bytes(data)
        path = str(tmp_path / "bad")
        for clip in (Clip(path=path), Clip(path=path, start=0.0, end=0.2)):
            with pytest.raises(Rejected) as caught:
                read_clip(clip, AudioConfig())
            assert caught.value.reason == reason
            assert path in caught.value.detail
    with pytest.raises(Rejected) as caught:
        read_clip(Clip(path=str(tmp_path / "gone.wav")), AudioConfig())
    assert caught.value.reason == "missing file"


def test_reasons_are_values_and_not_words_of_the_message(tmp_path):
    folder = tmp_path / "5 channels, 0 samples, not audio"
    folder.mkdir()
    path = put(folder / "a.wav", seconds=3.0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Rejected) as caught:
        read_clip(Clip(path=str(path)), AudioConfig())
    assert caught.value.reason == "truncated audio"
