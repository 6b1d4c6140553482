"""Audio files are read whole, or refused at once and cheaply, with the reason."""

import contextlib
import functools
import io
import os
import pathlib
import struct
import time
import tracemalloc

import av
import numpy as np
import pytest
import scipy.signal
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from ba_jax.audio import AudioError, AudioReader, read_audio, resample, write_audio
from ba_jax.audio.complete import ogg_checksum

FRONTEND = pathlib.Path(__file__).parents[2] / "data" / "frontend.npz"
FORMATS = ("wav", "flac", "ogg", "opus", "mp3")
RATE = 24000


@contextlib.contextmanager
def refused(*words, reason=None, seconds=1.0, megabytes=4.0):
    """Expect an AudioError that says `words`, within a second and without a large allocation."""
    tracemalloc.start()
    start = time.process_time()  # CPU time: other tests may run
    try:
        with pytest.raises(AudioError) as caught:
            yield
        elapsed = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert reason in (None, caught.value.reason)
    assert elapsed < seconds
    assert peak < megabytes * 1e6


def speech() -> np.ndarray:
    """2.1 s of real speech at 24 kHz, float32."""
    with np.load(FRONTEND) as arrays:
        return arrays["wave24"]


def encode(wave, rate=RATE, format="wav", **kwargs) -> bytes:
    stream = io.BytesIO()
    write_audio(stream, wave, rate, format, **kwargs)
    return stream.getvalue()


def wav_bytes(
    samples: bytes, *, channels=1, rate=16000, bits=16, coding=1, claimed=None, riff=b"RIFF"
) -> bytes:
    """A WAV file with any header."""
    frame = channels * bits // 8
    fields = (coding, channels, rate, rate * frame & 0xFFFFFFFF, frame, bits)
    size = len(samples) if claimed is None else claimed
    return b"".join(
        [
            struct.pack("<4sI4s", riff, min(size + 36, 0xFFFFFFFF), b"WAVE"),
            struct.pack("<4sIHHIIHH", b"fmt ", 16, *fields),
            struct.pack("<4sI", b"data", size),
            samples,
        ]
    )


# --- valid files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_round_trip_of_each_format(format):
    wave = speech()
    got, rate = read_audio(encode(wave, format=format))
    assert rate == RATE and got.dtype == np.float32 and got.ndim == 1
    if format in ("wav", "flac"):
        assert got.shape == wave.shape
        assert np.abs(got - wave).max() <= 1.5 / 32768  # 16 bits, rounded and rescaled
    else:
        # Lossy: the length may differ by an encoder frame, and the signal must correlate.
        assert abs(len(got) - len(wave)) <= 2 * 1152
        size = min(len(got), len(wave))
        assert np.corrcoef(got[:size], wave[:size])[0, 1] > 0.95


def test_float_wav_is_exact_and_not_clipped():
    wave = 3 * speech()
    got, _ = read_audio(encode(wave, subtype="FLOAT"))
    np.testing.assert_array_equal(got, wave)


def test_path_bytes_and_file_objects_are_read_alike(tmp_path):
    data = encode(speech(), format="flac")
    path = tmp_path / "a.flac"
    path.write_bytes(data)

    class Pipe(io.RawIOBase):  # neither seekable nor named
        def __init__(self):
            self.inner = io.BytesIO(data)

        def read(self, size=-1):  # returns a part at a time, as sockets do
            return self.inner.read(min(size, 1000) if size >= 0 else 1000)

    want, _ = read_audio(path)
    for source in (str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), Pipe()):
        np.testing.assert_array_equal(read_audio(source)[0], want)
    with open(path, "rb") as stream:
        np.testing.assert_array_equal(read_audio(stream)[0], want)
        assert not stream.closed


def test_file_object_is_read_from_its_position():
    stream = io.BytesIO(b"junk" + encode(speech()))
    stream.seek(4)
    assert len(read_audio(stream)[0]) == len(speech())


def test_stereo_is_averaged_or_kept():
    wave_SC = np.stack([speech(), -0.5 * speech()[::-1]], axis=1)
    data = encode(wave_SC, subtype="FLOAT")
    kept, _ = read_audio(data, mono=False)
    np.testing.assert_array_equal(kept, wave_SC)
    mono, _ = read_audio(data)
    np.testing.assert_allclose(mono, wave_SC.mean(axis=1), atol=1e-7)


def test_mean_before_resampling_equals_the_reference_order():
    wave_SC = np.stack([speech(), speech()[::-1]], axis=1)
    data = encode(wave_SC, subtype="FLOAT")
    got, rate = read_audio(data, sample_rate=16000)
    want = resample(wave_SC, RATE, 16000, axis=0).mean(axis=1)
    assert rate == 16000
    np.testing.assert_allclose(got, want, atol=1e-6 * np.abs(want).max())
    both, _ = read_audio(data, sample_rate=16000, mono=False)
    np.testing.assert_allclose(both.mean(axis=1), want, atol=1e-6 * np.abs(want).max())


def test_resampled_read_matches_the_golden():
    with np.load(FRONTEND) as arrays:
        data = encode(arrays["wave"], int(arrays["sample_rate"]), subtype="FLOAT")
        for rate, key in ((16000, "wave16"), (24000, "wave24")):
            got, _ = read_audio(data, sample_rate=rate)
            want = arrays[key]
            assert got.shape == want.shape
            assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("rate", [4000, 192000])
def test_rates_at_the_edges_are_read(rate):
    wave, got = read_audio(wav_bytes(bytes(2000), rate=rate))
    assert got == rate and len(wave) == 1000


def test_long_files_are_read_in_blocks():
    wave = np.random.default_rng(0).uniform(-1, 1, 3 * 65536 + 17).astype(np.float32)
    np.testing.assert_array_equal(read_audio(encode(wave, subtype="FLOAT"))[0], wave)


@pytest.mark.parametrize("size", [5, 300_001])
def test_wav_with_chunks_before_and_after_the_samples(size):
    data = bytearray(encode(speech()))
    at = data.index(b"data")
    data[at:at] = b"LIST" + struct.pack("<I", size) + b"INFO".ljust(size + 1, b"x")  # odd: padded
    data += b"note" + struct.pack("<I", 4) + b"tail"
    assert len(read_audio(bytes(data))[0]) == len(speech())


def test_rf64_sizes_are_read_and_checked():
    stream = io.BytesIO()
    soundfile.write(stream, speech(), RATE, format="RF64", subtype="PCM_16")
    data = stream.getvalue()
    assert data[:4] == b"RF64"
    assert len(read_audio(data)[0]) == len(speech())
    with refused("cut short", "claims"):
        read_audio(data[:-100])


def test_flac_that_states_no_length():
    data = bytearray(encode(speech(), format="flac"))
    whole, _ = read_audio(bytes(data))
    data[21] &= 0xF0  # total samples, 36 bits: 0 is "unknown", as encoders write into a pipe
    data[22:26] = bytes(4)
    np.testing.assert_array_equal(read_audio(bytes(data))[0], whole)
    with refused("s long", "expected at most 1.0 s"):
        read_audio(bytes(data), max_seconds=1)
    with refused("cut short"):
        read_audio(bytes(data[:-1000]))


def test_tags_around_an_mp3_are_accepted():
    data = encode(speech(), format="mp3")
    tag = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
    wave, _ = read_audio(data)
    tagged, _ = read_audio(tag + data + b"TAG" + bytes(125))
    np.testing.assert_array_equal(tagged, wave)


# --- odd files that are whole ---------------------------------------------------------------------


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_of_libsndfile(subtype, channels):
    wave_SC = np.stack([speech(), speech()[::-1]], axis=1)[:, :channels]
    data = encode(wave_SC, subtype=subtype)
    want, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(read_audio(data, mono=False)[0], want)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_big_endian_wav(subtype):
    stream = io.BytesIO()
    soundfile.write(stream, speech(), RATE, format="WAV", subtype=subtype, endian="BIG")
    data = stream.getvalue()
    assert data[:4] == b"RIFX"
    np.testing.assert_allclose(read_audio(data)[0], speech(), atol=2**-15)
    with AudioReader(data) as reader:
        np.testing.assert_allclose(reader.stretch(999, 50), speech()[999:1049], atol=2**-15)
    at = data.index(b"data") + 4
    open_size = data[:at] + b"\xff" * 4 + data[at + 4 :]
    np.testing.assert_allclose(read_audio(open_size)[0], speech(), atol=2**-15)
    with refused(reason="truncated audio"):
        read_audio(data[:-1000])


@pytest.mark.parametrize("format", ["flac", "ogg", "opus", "mp3"])
def test_decoders_agree_with_libsndfile(format):
    want, _ = soundfile.read(io.BytesIO(ENCODED[format]), dtype="float32")
    wave, _ = read_audio(ENCODED[format])
    np.testing.assert_allclose(wave, want, atol={"ogg": 1e-6, "mp3": 1e-5}.get(format, 0))


@pytest.mark.parametrize(
    "claimed", [0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0x7FFFFFDB, 0xFFFFFFDB, 0xFFFFFFFF]
)
@pytest.mark.parametrize("riff", [0, 0xFFFFFFFF])
def test_wav_of_unknown_length_is_read_to_its_end(claimed, riff):
    samples = np.arange(1, 5001, dtype="<i2")
    data = bytearray(wav_bytes(samples.tobytes(), claimed=claimed))
    data[4:8] = struct.pack("<I", riff)
    np.testing.assert_array_equal(read_audio(bytes(data))[0] * 32768, samples)


@pytest.mark.parametrize("header", [8, 36, 44])
def test_wav_whose_data_size_counts_the_header(header):
    samples = np.arange(1, 5001, dtype="<i2")
    data = wav_bytes(samples.tobytes(), claimed=10_000 + header)
    np.testing.assert_array_equal(read_audio(data)[0] * 32768, samples)


@pytest.mark.parametrize("subtype", ["GSM610", "IMA_ADPCM", "MS_ADPCM", "ULAW", "ALAW"])
def test_other_codings_of_wav(subtype):
    stream = io.BytesIO()
    soundfile.write(stream, speech(), RATE, format="WAV", subtype=subtype)
    wave, _ = read_audio(stream.getvalue())
    assert abs(len(wave) - len(speech())) < 2048
    assert np.corrcoef(wave[: len(speech())], speech()[: len(wave)])[0, 1] > 0.95


@pytest.mark.parametrize("seconds", [0.5, 2.1, 20.0])
@pytest.mark.parametrize(
    "tail", [b"TAG" + bytes(125), bytes(4096), b"\xff" * 5000, b"APETAGEX" + bytes(200)]
)
def test_flac_with_other_bytes_behind_it(tail, seconds):
    wave = np.resize(speech(), int(seconds * RATE))
    data = encode(wave, format="flac")
    np.testing.assert_array_equal(read_audio(data + tail)[0], read_audio(data)[0])


@pytest.mark.parametrize("format", ["ogg", "opus"])
def test_chained_ogg_is_read_whole(format):
    wave = speech()
    data = encode(wave, format=format) + encode(np.tile(wave, 2), format=format)
    got, rate = read_audio(data)
    assert len(got) / rate == pytest.approx(3 * len(wave) / RATE, abs=0.1)
    assert np.sqrt(np.mean(got[-rate:] ** 2)) > 0.3 * np.sqrt(np.mean(wave[-RATE:] ** 2))


@pytest.mark.parametrize("rate", [16000, 24000, 44100])
@pytest.mark.parametrize("seconds", [0.5, 1.5, 3.3])
def test_short_vorbis_has_the_samples_that_were_written(rate, seconds):
    wave = np.resize(speech(), round(seconds * rate))
    data = encode(wave, rate, format="ogg")
    got, _ = read_audio(data)
    assert len(got) == len(wave)
    with AudioReader(data) as reader:
        np.testing.assert_array_equal(reader.stretch(len(wave) - 1000), got[-1000:])
    assert 0 <= len(read_audio(2 * data)[0]) - 2 * len(wave) <= 2 * 1024


def ogg_without_end(data: bytes) -> bytes:
    last = data.rfind(b"OggS")
    page = bytearray(data[last:])
    page[5] &= ~4
    page[22:26] = bytes(4)
    page[22:26] = ogg_checksum(page).to_bytes(4, "little")
    return data[:last] + page


def test_ogg_without_an_end_is_read_with_a_warning(caplog):
    got, rate = read_audio(ogg_without_end(ENCODED["opus"]))
    assert len(got) / rate == pytest.approx(len(speech()) / RATE, abs=0.1)
    assert "no mark of its end" in caplog.text


@pytest.mark.parametrize("format", ["ogg", "opus"])
@pytest.mark.parametrize("offset", [0, 100])
def test_ogg_with_a_damaged_page(format, offset):
    data = bytearray(encode(np.resize(speech(), 20 * RATE), format=format))
    at = data.index(b"OggS", len(data) // 2) + offset
    data[at] ^= 1
    with refused("damaged at byte", "expected", reason="truncated audio"):
        read_audio(bytes(data))


def with_xing(data: bytes, frames: int) -> bytes:
    at = max(data.find(b"Xing"), data.find(b"Info"))
    return data[: at + 8] + struct.pack(">I", frames) + data[at + 12 :]


@pytest.mark.parametrize("frames", [0, 10, 100_000])
def test_mp3_with_a_wrong_frame_count_is_read_whole(frames):
    wave, _ = read_audio(with_xing(ENCODED["mp3"], frames))
    assert 0 <= len(wave) - len(speech()) <= 4 * 1152


def test_joined_mp3_is_read_whole():
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)
    for between in (b"", b"TAG" + bytes(125)):
        wave, _ = read_audio(tag + tag + ENCODED["mp3"] + between + ENCODED["mp3"])
        assert 0 <= len(wave) - 2 * len(speech()) <= 8 * 1152


def test_mp3_with_padding_in_the_place_of_frames():
    data = bytearray(encode(np.resize(speech(), 10 * RATE), format="mp3"))
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    with refused("damaged", reason="truncated audio"):
        read_audio(bytes(data))


@functools.cache
def encode_by_ffmpeg(
    format: str, codec: str, rate: int = 48000, options: tuple = (), start: int = 0
) -> bytes:
    wave = np.resize(speech(), 2 * rate)
    stream = io.BytesIO()
    with av.open(stream, "w", format=format, options=dict(options)) as container:
        audio = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, start
        resampler = av.AudioResampler(audio.format, "mono", rate, audio.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(audio.encode(part))
        container.mux(audio.encode(None))
    return stream.getvalue()


@pytest.mark.parametrize("codec", ["pcm_s16le", "libopus"])
def test_matroska_that_starts_late(codec):
    data = encode_by_ffmpeg("matroska", codec, start=5 * 48000)
    assert len(read_audio(data)[0]) == 2 * 48000
    with AudioReader(data) as reader:
        assert reader.seconds == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("format", "codec"),
    [
        ("ipod", "aac"),
        ("ipod", "alac"),
        ("mp4", "aac"),
        ("adts", "aac"),
        ("webm", "libopus"),
        ("matroska", "libopus"),
        ("matroska", "flac"),
    ],
)
def test_files_of_phones_and_browsers(format, codec):
    data = encode_by_ffmpeg(format, codec)
    wave, rate = read_audio(data)
    assert rate == 48000 and len(wave) / rate == pytest.approx(2.0, abs=0.1)
    with AudioReader(data) as reader:
        assert reader.seconds == pytest.approx(2.0, abs=0.1)
    for share in (0.3, 0.7):
        if format != "adts":  # states no length
            with refused(reason=None):
                read_audio(data[: int(share * len(data))])


def test_float_wav_at_integer_scale_is_refused_with_its_peak():
    wave = np.float32(20_000) * speech() / np.abs(speech()).max()
    with refused("integer scale", "peak 20000.0", reason="samples at integer scale"):
        read_audio(encode(wave, subtype="FLOAT"))


def test_playlists_and_pictures_are_not_followed(tmp_path):
    (tmp_path / "a.wav").write_bytes(ENCODED["wav"])
    path = tmp_path / "list.wav"
    for text in (f"ffconcat version 1.0\nfile {tmp_path}/a.wav\n", f"#EXTM3U\n{tmp_path}/a.wav\n"):
        path.write_text(text)
        with refused(reason="not audio"):
            read_audio(path)


# --- blocks and stretches -------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_blocks_are_the_file(format):
    data = encode(np.resize(speech(), 7 * RATE), format=format)
    whole, _ = read_audio(data)
    with AudioReader(data) as reader:
        blocks = list(reader.blocks())
        assert reader.rate == RATE
    assert len(blocks) > 1 and all(len(block) >= 1 << 16 for block in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize(
    ("format", "tolerance"), [("wav", 0), ("flac", 0), ("ogg", 1e-6), ("opus", 0.01), ("mp3", 1e-5)]
)
def test_a_stretch_is_the_same_part_of_the_whole(format, tolerance):
    data = encode(np.resize(speech(), 30 * RATE), format=format)
    whole, _ = read_audio(data)
    for first, count in ((0, 100), (RATE // 2, RATE), (20 * RATE + 7, 5 * RATE), (29 * RATE, None)):
        with AudioReader(data) as reader:
            assert reader.seconds == pytest.approx(len(whole) / RATE, abs=0.15)
            wave = reader.stretch(first, count)
        want = whole[first : None if count is None else first + count]
        np.testing.assert_allclose(wave, want, atol=tolerance)
    with refused("cut short", "expected 24000"), AudioReader(data) as reader:
        reader.stretch(29 * RATE + RATE // 2, RATE)


# --- refused files --------------------------------------------------------------------------------


def test_missing_directory_empty_and_pipe(tmp_path):
    with refused("nothing.wav", "cannot be opened", reason="missing file"):
        read_audio(tmp_path / "nothing.wav")
    with refused(str(tmp_path), "is a directory"):
        read_audio(tmp_path)
    (tmp_path / "empty.wav").write_bytes(b"")
    with refused("empty.wav", "0 bytes"):
        read_audio(tmp_path / "empty.wav")
    with refused("0 bytes"):
        read_audio(b"")
    os.mkfifo(tmp_path / "pipe.wav")
    with refused("pipe.wav", "not a regular file"):
        read_audio(tmp_path / "pipe.wav")
    with refused("cannot be opened"):
        read_audio("nul\0byte.wav")


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is text\n" * 50,
        bytes(5000),
        np.random.default_rng(0).bytes(5000),
        b"RIFF",
        b"RIFF\x00\x00\x00\x00AVI " + bytes(100),
        b"FORM\x00\x00\x10\x00AIFF" + bytes(100),
        b"\xff\xfb\x94\xc4" + b"no second frame" * 100,
        b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
    ],
)
def test_other_files_are_not_audio(data, tmp_path):
    path = tmp_path / "song.wav"
    path.write_bytes(data)
    with refused("song.wav", "expected a WAV, FLAC, Ogg, MP3", reason="not audio"):
        read_audio(path)


@pytest.mark.parametrize("head", [b"fLaC", b"OggS\0\x06", b"RIFF\0\0\0\0WAVE"])
def test_valid_magic_with_an_invalid_rest(head):
    with refused("expected"):
        read_audio(head + bytes(200))


def test_wav_of_an_unknown_coding():
    with refused("a coding without a decoder", reason="not audio"):
        read_audio(wav_bytes(bytes(2000), coding=0x1234))


def test_wrong_kinds_of_source():
    with refused("int", "expected a path"):
        read_audio(3)
    with refused("expected bytes"):
        read_audio(io.StringIO("text"))


def test_no_samples():
    with refused("0 samples", "expected at least 1", reason="empty file"):
        read_audio(wav_bytes(b""))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 70000])
def test_samples_that_are_not_finite(value, at, tmp_path):
    samples = np.zeros(80000, "<f4")
    samples[at] = value
    path = tmp_path / "bad.wav"
    path.write_bytes(wav_bytes(samples.tobytes(), bits=32, coding=3))
    with refused("bad.wav", f"sample {at} is", "finite", reason="NaN or infinite samples"):
        read_audio(path)


@pytest.mark.parametrize("channels", [3, 8])
@pytest.mark.parametrize("mono", [True, False])
def test_more_than_two_channels(channels, mono):
    with refused(f"{channels} channels", "expected 1 or 2", reason="too many channels"):
        read_audio(wav_bytes(bytes(4800), channels=channels), mono=mono)


@pytest.mark.parametrize("rate", [1, 3999, 192001, 655350, 0x7FFFFFFF])
def test_invalid_rates(rate, tmp_path):
    path = tmp_path / "rate.wav"
    path.write_bytes(wav_bytes(bytes(4000), rate=rate))
    with refused("rate.wav", f"{rate} Hz", "4000 to 192000"):
        read_audio(path, sample_rate=16000)


@pytest.mark.parametrize("rate", [1, 655350])
def test_invalid_rates_of_flac(rate):
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(5000), rate, format="FLAC")
    with refused(f"{rate} Hz"):
        read_audio(stream.getvalue())
    with refused("wanted", f"{rate} Hz"):
        read_audio(encode(speech()), sample_rate=rate)


@pytest.mark.parametrize("claimed", [2002, 4000, 0x10000000, 0x90000000])
def test_wav_header_that_exceeds_the_file(claimed):
    with refused(
        "cut short", f"claims {claimed} bytes", "2000 are there", reason="truncated audio"
    ):
        read_audio(wav_bytes(bytes(2000), claimed=claimed))


def test_rf64_header_of_terabytes():
    data = bytearray(wav_bytes(bytes(2000), claimed=0xFFFFFFFF, riff=b"RF64"))
    data[12:12] = struct.pack("<4sIQQQI", b"ds64", 28, 1 << 45, 1 << 44, 1 << 43, 0)
    with refused("cut short", f"claims {1 << 44} bytes"):
        read_audio(bytes(data))


def test_riff_of_countless_chunks():
    data = b"RIFF\0\0\0\0WAVE" + (b"junk" + bytes(4)) * 200_000
    with refused("expected a WAV"):
        read_audio(data)


def test_flac_header_of_years():
    data = bytearray(encode(np.zeros(5000, np.float32), 16000, "flac"))
    data[21] |= 0x0F  # total samples: 36 bits
    data[22:26] = b"\xff\xff\xff\xff"
    with refused("s long", "expected at most 600.0 s"):
        read_audio(bytes(data))
    with refused("expected"):
        read_audio(bytes(data), max_seconds=1e7, max_bytes=1 << 40)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=25)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_at_any_place_is_detected(format, share):
    data = ENCODED[format]
    with pytest.raises(AudioError):
        read_audio(data[: int(share * len(data))])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("missing", [1, 3, 100, 1500])
def test_a_missing_end_is_detected(format, missing):
    with refused("cut short"):
        read_audio(ENCODED[format][:-missing])


def mp3_without_index(wave, rate) -> bytes:
    data = encode(wave, rate, "mp3")
    # The first frame is the index; the second begins with the same 11 bits and version.
    first = data.index(data[:2], 4)
    assert b"Info" in data[:first] or b"Xing" in data[:first]
    return data[first:]


@pytest.mark.parametrize("rate", [48000, 24000, 8000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_of_variable_bit_rate_without_an_index_is_read_whole(rate, channels):
    # Silence, then speech: a length guessed from the first, small frames would be too short.
    wave = np.concatenate([np.zeros(rate, np.float32), speech()])
    bare = mp3_without_index(np.stack([wave] * channels, axis=1), rate)
    tail = b"TAG" + bytes(125)
    for data in (bare, bare + tail, bare + bytes(500), b"ID3\x03\0\0\0\0\0\x0a" + bytes(10) + bare):
        got, _ = read_audio(data)
        assert 0 <= len(got) - len(wave) <= 4 * 1152  # what encoders add at both ends
        lag = scipy.signal.fftconvolve(got, wave[::-1], mode="valid").argmax()
        assert np.corrcoef(got[lag : lag + len(wave)], wave)[0, 1] > 0.9


def test_mp3_without_an_index_cut_inside_a_frame():
    bare = mp3_without_index(speech(), RATE)
    with refused("cut short", "lacks 10 bytes"):
        read_audio(bare[:-10])


@pytest.mark.parametrize("format", FORMATS)
def test_too_long_or_too_large(format, tmp_path):
    path = tmp_path / f"long.{format}"
    path.write_bytes(ENCODED[format])
    with refused("long", "2.1 s long", "expected at most 1.0 s"):
        read_audio(path, max_seconds=1)
    size = len(ENCODED[format])
    with refused("long", f"{size - 1} bytes"):
        read_audio(path, max_bytes=size - 1)
    with refused(f"{size - 1} bytes"):
        read_audio(io.BytesIO(ENCODED[format]), max_bytes=size - 1)


def test_decoded_size_is_bounded():
    data = encode(np.zeros(100_000, np.float32), format="flac")
    assert len(data) < 20_000
    with refused("400000 bytes of samples", "expected at most 20000"):
        read_audio(data, max_bytes=20_000)


def test_mp3_of_millions_of_frames_is_refused_in_time():
    frame = b"\xff\xe3\x18\xc4" + bytes(68)  # MPEG-2.5, 8 kbit/s, 8 kHz: 72 bytes, 72 ms
    data = frame * 1_000_000
    with refused("s long", "expected at most 600.0 s", megabytes=40):  # 600 s of samples: 20
        read_audio(data)


def test_closed_file_object():
    stream = io.BytesIO(encode(speech()))
    stream.close()
    with refused("cannot be read"):
        read_audio(stream)


def test_endless_stream_is_read_no_further_than_the_bound():
    class Endless(io.RawIOBase):
        def read(self, size=-1):
            return bytes(size)

    with refused("over 100000 bytes"):
        read_audio(Endless(), max_bytes=100_000)


ENCODED = {format: encode(speech(), format=format) for format in FORMATS}
