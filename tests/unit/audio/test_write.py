"""Audio files are written whole or not at all."""

import io
import os

import numpy as np
import pytest

from ba_jax.audio import AudioError, read_audio, write_audio
from tests.unit.audio.test_read import FORMATS, RATE, encode, refused, speech


def test_out_of_range_is_clipped_not_wrapped():
    wave = np.array([0.0, 2.0, -2.0, 0.5] * 100, np.float32)
    got, _ = read_audio(encode(wave, 16000))
    np.testing.assert_allclose(got, np.clip(wave, -1, 1), atol=1 / 32768)


def test_float64_and_stereo_are_written():
    wave_SC = np.stack([speech(), speech()], axis=1).astype(np.float64)
    got, _ = read_audio(encode(wave_SC, format="flac"), mono=False)
    assert got.shape == wave_SC.shape


def test_long_vorbis_is_written():
    wave = np.zeros(2_000_000, np.float32)
    assert len(read_audio(encode(wave, format="ogg"))[0]) == len(wave)


@pytest.mark.parametrize("format", FORMATS)
def test_format_follows_the_suffix_or_the_argument(format, tmp_path):
    write_audio(tmp_path / f"a.{format}", speech(), RATE)
    write_audio(str(tmp_path / "b.bin"), speech(), RATE, format)
    assert (tmp_path / f"a.{format}").stat().st_size == (tmp_path / "b.bin").stat().st_size
    assert len(list(tmp_path.iterdir())) == 2  # no temporary file is left
    want = 0o666 & ~current_umask()
    assert (tmp_path / "b.bin").stat().st_mode & 0o777 == want


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(AudioError, match="a.wav: cannot be written .disk full"):
        write_audio(path, speech(), RATE)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize(
    ("wave", "rate", "format", "words"),
    [
        (np.zeros(100, np.float32), 16000, "xyz", ("'xyz'", "expected one of wav")),
        (np.zeros(100, np.float32), 16000, None, ("None", "expected one of wav")),
        (np.zeros(0, np.float32), 16000, "wav", ("(0,)", "expected a floating array")),
        (np.zeros(100, np.int16), 16000, "wav", ("int16", "expected a floating array")),
        (np.zeros((100, 3), np.float32), 16000, "wav", ("3 channels", "expected 1 or 2")),
        (np.zeros((2, 2, 2), np.float32), 16000, "wav", ("(2, 2, 2)",)),
        (np.array([0, np.nan], np.float32), 16000, "wav", ("sample 1 is nan",)),
        (np.array([np.inf, 0], np.float32), 16000, "flac", ("sample 0 is inf",)),
        (np.zeros(100, np.float32), 1, "wav", ("1 Hz", "4000 to 192000")),
        (np.zeros(100, np.float32), 22050, "opus", ("22050 Hz", "24000")),
        (np.zeros(100, np.float32), 96000, "mp3", ("96000 Hz", "48000")),
    ],
)
def test_unwritable_waves(wave, rate, format, words):
    with refused(*words):
        write_audio(io.BytesIO(), wave, rate, format)


def test_unsupported_subtype():
    with refused("'FLOAT' in flac", "PCM_16"):
        write_audio(io.BytesIO(), speech(), RATE, "flac", subtype="FLOAT")


def test_missing_folder(tmp_path):
    with refused("cannot be written"):
        write_audio(tmp_path / "no" / "a.wav", speech(), RATE)
