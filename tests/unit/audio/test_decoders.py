"""Stretches, blocks and whole files agree, in any coding and however files were joined."""

import io

import numpy as np
import pytest
import soundfile

from ba_jax.audio import AudioReader, read_audio
from tests.unit.audio.test_complete import ID3, TAGS
from tests.unit.audio.test_read import (
    ENCODED,
    RATE,
    encode,
    encode_by_ffmpeg,
    refused,
    speech,
    with_xing,
)


def encode_wav(subtype: str, rate: int = 8000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.resize(speech(), 4 * rate), rate, format="WAV", subtype=subtype)
    return stream.getvalue()


def mp3_in_wav() -> bytes:
    return encode_by_ffmpeg("wav", "libmp3lame", rate=16000)


FILES = {
    "ADPCM": lambda: encode_wav("MS_ADPCM"),
    "G.721": lambda: encode_wav("G721_32"),
    "GSM": lambda: encode_wav("GSM610"),
    "NMS": lambda: encode_wav("NMS_ADPCM_32"),
    "MP3 in WAV": mp3_in_wav,
    "Vorbis, chained": lambda: 3 * ENCODED["ogg"],
    "Opus, chained": lambda: 3 * ENCODED["opus"],
    "FLAC in Ogg, chained": lambda: 3 * encode_by_ffmpeg("ogg", "flac", rate=16000),
    "MP3, joined": lambda: ENCODED["mp3"] + TAGS["ID3v1"] + ID3 + ENCODED["mp3"],
    "MP3, few frames stated": lambda: with_xing(ENCODED["mp3"], 10),
    "ADTS": lambda: 2 * encode_by_ffmpeg("adts", "aac", rate=16000),
    "ALAC": lambda: encode_by_ffmpeg("ipod", "alac"),
    "ALAC, live": lambda: encode_by_ffmpeg("matroska", "alac", options=(("live", "1"),)),
    "WebM, live": lambda: encode_by_ffmpeg("webm", "libopus", options=(("live", "1"),)),
    "Opus, out of a stream": lambda: encode_by_ffmpeg("ogg", "libopus", start=5 * 48000),
    "MP3 in Matroska": lambda: encode_by_ffmpeg("matroska", "libmp3lame", rate=16000),
}


@pytest.mark.parametrize("kind", FILES)
def test_stretches_and_blocks_are_those_of_the_whole(kind):
    data = FILES[kind]()
    whole, rate = read_audio(data)
    with AudioReader(data) as reader:
        assert reader.seconds == pytest.approx(len(whole) / rate, abs=0.1)
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks())), whole)
    for first, count in ((0, 100), (rate // 3 + 7, rate), (len(whole) * 3 // 4, None)):
        with AudioReader(data) as reader:
            got = reader.stretch(first, count)
        want = whole[first : None if count is None else first + count]
        np.testing.assert_allclose(got, want, atol=0.02)


@pytest.mark.parametrize("frames", [0, 5, 20, 100_000])
def test_no_sample_of_an_mp3_is_left_out_for_a_wrong_frame_count(frames):
    whole, _ = read_audio(ENCODED["mp3"])
    got, _ = read_audio(with_xing(ENCODED["mp3"], frames))
    np.testing.assert_array_equal(got[: len(whole) - 1152], whole[:-1152])
    assert len(got) >= len(whole)


def test_joined_mp3_keeps_every_frame():
    whole, _ = read_audio(ENCODED["mp3"])
    for between in (b"", *TAGS.values()):
        if between.strip(b"\0\xff"):
            got, _ = read_audio(ENCODED["mp3"] + between + ENCODED["mp3"])
            np.testing.assert_array_equal(got[: len(whole)], whole)
            assert 0 <= len(got) - 2 * len(whole) <= 4 * 1152
    bare = ENCODED["mp3"][len(ENCODED["mp3"]) // 2 :]
    with refused(reason="truncated audio"):
        read_audio(ENCODED["mp3"] + bytes(1000) + bare)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (RATE, 2)])
def test_chained_ogg_of_another_rate_or_layout_is_refused(rate, channels):
    other = encode(np.stack([speech()] * channels, axis=1), rate, format="ogg")
    data = ENCODED["ogg"] + other
    with refused(reason="truncated audio"):
        read_audio(data)
    with refused(reason="truncated audio"), AudioReader(data) as reader:
        assert reader.seconds
