"""Files are read to their end, or refused: whatever stands before, behind or between."""

import io
import struct

import numpy as np
import pytest

from ba_jax.audio import AudioError, AudioReader, read_audio
from ba_jax.audio.complete import ogg_checksum
from tests.unit.audio.test_read import (
    ENCODED,
    RATE,
    encode,
    encode_by_ffmpeg,
    refused,
    speech,
    wav_bytes,
)

SAMPLES = np.arange(1, 5001, dtype="<i2")
WAV = wav_bytes(SAMPLES.tobytes())
ID3 = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
TAGS = {
    "ID3v1": b"TAG" + bytes(125),
    "ID3v2": ID3,
    "APEv2": b"APETAGEX" + struct.pack("<4I8x", 2000, 32 + 20, 1, 0xA0000000) + bytes(52),
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


# --- tags -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("format", [*ENCODED, "m4a", "webm"])
def test_tags_behind_any_file_are_left_out(format, tag):
    other = {"m4a": ("ipod", "aac"), "webm": ("webm", "libopus")}
    data = ENCODED.get(format) or encode_by_ffmpeg(*other[format])
    whole, _ = read_audio(data)
    got, _ = read_audio(data + TAGS[tag])
    np.testing.assert_array_equal(got[: len(whole)], whole)
    assert len(got) - len(whole) < 2 * 1152  # of an MP3: its padding


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_tags_in_front_of_any_file_are_left_out(format):
    np.testing.assert_array_equal(
        read_audio(ID3 + ID3 + ENCODED[format])[0], read_audio(ENCODED[format])[0]
    )
    with refused("cut short"):
        read_audio(ID3 + ENCODED[format][:-100])


# --- WAV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behind",
    [b"", b"\r\n", chunk(b"LIST", b"INFO" + bytes(9)), chunk(b"id3 ", ID3), TAGS["ID3v1"]],
)
def test_wav_with_chunks_or_tags_behind(behind):
    np.testing.assert_array_equal(read_audio(WAV + behind)[0] * 32768, SAMPLES)


@pytest.mark.parametrize("claimed", [1000, 5000, 9956])
def test_wav_that_holds_more_than_it_states(claimed):
    with refused(f"{10_000 - claimed} bytes behind", "wav", reason="truncated audio"):
        read_audio(wav_bytes(SAMPLES.tobytes(), claimed=claimed))


@pytest.mark.parametrize("behind", [WAV, chunk(b"data", bytes(100)), chunk(b"note", b"a") + WAV])
def test_joined_wav(behind):
    with refused("a second wav file begins at byte", reason="joined files"):
        read_audio(WAV + behind)


def test_wav_of_unknown_or_doubtful_length_warns(caplog):
    read_audio(wav_bytes(SAMPLES.tobytes(), claimed=0xFFFFFFFF))
    assert "states no length" in caplog.text
    caplog.clear()
    assert len(read_audio(WAV[:-44])[0]) == 4978  # or its header is counted
    assert "claims 10000 bytes of samples and holds 9956" in caplog.text
    caplog.clear()
    read_audio(WAV)
    assert not caplog.text


def test_rf64_whose_sizes_were_never_written():
    data = bytearray(wav_bytes(SAMPLES.tobytes(), claimed=0xFFFFFFFF, riff=b"RF64"))
    data[12:12] = struct.pack("<4sIQQQI", b"ds64", 28, 0, 0, 0, 0)
    for riff in (b"RF64", b"BW64"):
        got, _ = read_audio(riff + bytes(data[4:]))
        np.testing.assert_array_equal(got * 32768, SAMPLES)


def test_wav_without_samples_is_no_flood():
    data = b"RIFF\0\0\0\0WAVE" + (b"junk" + bytes(4)) * 1_000_000
    with refused("no data chunk", reason="not audio"):
        read_audio(data)
    assert len(read_audio(WAV + bytes(20_000_000))[0]) == 5000


# --- Ogg ------------------------------------------------------------------------------------------


def pages(data: bytes) -> list[bytes]:
    return [b"OggS" + page for page in data.split(b"OggS")[1:]]


def page(body: bytes, serial: int, flags: int, number: int = 0) -> bytes:
    head = struct.pack("<4sxBqIII", b"OggS", flags, 0, serial, number, 0)
    sizes = bytes([len(body)]) if body else b""
    data = head + bytes([len(sizes)]) + sizes + body
    return data[:22] + ogg_checksum(data).to_bytes(4, "little") + data[26:]


@pytest.mark.parametrize("format", ["ogg", "opus"])
def test_ogg_with_a_missing_page(format):
    parts = pages(encode(np.resize(speech(), 8 * RATE), format=format))
    with refused("follows page", reason="truncated audio"):
        read_audio(b"".join(parts[:3] + parts[4:]))


@pytest.mark.parametrize("format", ["ogg", "opus"])
def test_ogg_cut_between_pages_warns(format, caplog):
    parts = pages(encode(np.resize(speech(), 8 * RATE), format=format))
    read_audio(b"".join(parts[:-1]))
    assert "no mark of its end" in caplog.text


@pytest.mark.parametrize("format", ["ogg", "opus"])
def test_ogg_skeleton_that_ends_is_not_the_end_of_the_sound(format, caplog):
    parts = pages(ENCODED[format])
    skeleton = page(b"fishead\0\3" + bytes(55), 7, 2)
    whole, rate = read_audio(skeleton + b"".join(parts) + page(b"", 7, 4, 1))
    assert len(whole) / rate == pytest.approx(len(speech()) / RATE, abs=0.03)
    assert not caplog.text
    (serial,) = struct.unpack("<I", parts[0][14:18])
    open_end = [*parts[:-1], page(b"", serial, 0, len(parts) - 1)]
    read_audio(skeleton + b"".join(open_end) + page(b"", 7, 4, 1))
    assert "no mark of its end" in caplog.text


# --- frames ---------------------------------------------------------------------------------------


def test_joined_flac():
    data = ENCODED["flac"]
    for between in (b"", TAGS["ID3v1"], bytes(50_000)):
        with refused("a second FLAC"):
            read_audio(data + between + data)


def flac_without_length(data: bytes) -> bytes:
    return data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]


def test_damage_inside_a_flac_that_states_no_length(caplog):
    data = flac_without_length(encode(np.resize(speech(), 5 * RATE), format="flac"))
    read_audio(data)
    assert "states no length" in caplog.text
    third = len(data) // 3
    holes = data[:third] + data[2 * third :], data[:third] + bytes(5000) + data[third + 5000 :]
    for damaged in (*holes, data[:third] + b"x" + data[third + 1 :], data + data):
        with refused("follows, expected", reason="truncated audio"):
            read_audio(damaged)


def test_adts_frames_between_tags_and_junk():
    data = encode_by_ffmpeg("adts", "aac")
    whole, _ = read_audio(data)
    for joined in (data + data, ID3 + data + ID3 + data + TAGS["ID3v1"]):
        assert len(read_audio(joined)[0]) == 2 * len(whole)
    for cut in (1, 10, 100):
        with refused("cut short", "incomplete"):
            read_audio(data[:-cut])
    half = len(data) // 2
    for damaged in (data[:half] + b"junk" + data[half:], data[:half] + data[half + 1 :]):
        with refused(reason="truncated audio"):
            read_audio(damaged)


# --- mp4 and Matroska -----------------------------------------------------------------------------


@pytest.mark.parametrize(("format", "codec"), [("ipod", "aac"), ("matroska", "libopus")])
def test_joined_or_cut_files_of_phones(format, codec):
    data = encode_by_ffmpeg(format, codec)
    with refused("a second", "file begins at byte", reason="joined files"):
        read_audio(data + data)
    for cut in (1, 30, 1000):
        with refused("cut short", "claims", reason="truncated audio"):
            read_audio(data[:-cut])


@pytest.mark.parametrize("format", ["webm", "matroska"])
def test_live_recordings_of_browsers_warn(format, caplog):
    data = encode_by_ffmpeg(format, "libopus", options=(("live", "1"),))
    wave, rate = read_audio(data)
    assert len(wave) / rate == pytest.approx(2.0, abs=0.03)
    assert "states no length" in caplog.text
    with AudioReader(data) as reader:
        assert reader.seconds == pytest.approx(2.0, abs=0.03)


def test_mp4_in_fragments_is_known_to_end_by_its_index(caplog):
    options = (("movflags", "frag_keyframe+empty_moov"), ("frag_duration", "200000"))
    data = encode_by_ffmpeg("mp4", "aac", options=options)
    wave, rate = read_audio(data)
    assert len(wave) / rate == pytest.approx(2.0, abs=0.1) and not caplog.text
    cut = data[: data.rindex(b"moof", 0, data.rindex(b"moof")) - 4]
    assert len(read_audio(cut)[0]) < len(wave)
    assert "fragments without an index" in caplog.text


# --- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        ID3[:6] + bytes(4) + ID3[:6] * 100_000,
        b"TAG" + bytes(125) * 10_000,
        page(b"", 1, 0) * 100_000,
        ENCODED["opus"] + page(b"", 9, 2) * 100_000,
        b"\xff\xf1\x60\x40\x00\xff\xfc" * 100_000,
        struct.pack(">I4s", 8, b"free") * 70_000,
        b"\x1aE\xdf\xa3\x80" + b"\xec\x80" * 1_000_000,
        b"\x1aE\xdf\xa3" + bytes(100),
    ],
)
def test_floods_of_small_parts_end_at_once(data):
    with refused():
        read_audio(data)


@pytest.mark.parametrize("format", [*ENCODED, "m4a", "webm", "aac"])
def test_any_byte_may_be_wrong(format):
    other = {"m4a": ("ipod", "aac"), "webm": ("webm", "libopus"), "aac": ("adts", "aac")}
    data = ENCODED.get(format) or encode_by_ffmpeg(*other[format])
    generator = np.random.default_rng(0)
    for _ in range(50):
        damaged = bytearray(data)
        for at in generator.integers(0, min(len(data), 600), 3):
            damaged[at] = generator.integers(256)
        try:
            read_audio(io.BytesIO(damaged))
        except AudioError:
            pass
