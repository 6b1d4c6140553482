"""Speech as bytes: the same in every run, readable by others, at the rates that are stored."""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from ba_jax.audio import AudioError, read_audio, write_audio
from ba_jax.corpora.encode import encode_speech
from tests.unit.corpora.corpora import tone

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("coding", ("opus", "flac"))
@pytest.mark.parametrize(
    ("rate", "stored"), ((8000, None), (16000, None), (22050, None), (24000, None), (48000, 24000))
)
def test_rates(coding, rate, stored):
    if stored is None:
        # Opus has no 22.05 kHz; FLAC keeps what is below the vocoder's rate.
        stored = 24000 if coding == "opus" and rate == 22050 else rate
    data, seconds = encode_speech(tone(1.0, 440, rate), rate, coding)
    wave_S, results = read_audio(data)
    assert (results, seconds, len(wave_S)) == (stored, 1.0, stored)
    assert soundfile.info(io.BytesIO(data)).subtype == {"opus": "OPUS", "flac": "PCM_16"}[coding]
    middle = wave_S[stored // 4 : stored * 3 // 4]
    assert np.argmax(np.abs(np.fft.rfft(middle))) * 2 == 440


def test_flac_is_lossless_to_16_bits():
    wave_S = tone()
    got_S, _ = read_audio(encode_speech(wave_S, 16000, "flac")[0])
    np.testing.assert_allclose(got_S, wave_S, atol=1 / 32767)


def test_bytes_do_not_depend_on_the_process():
    code = (
        "import hashlib; from ba_jax.corpora.encode import encode_speech\n"
        "from tests.unit.corpora.corpora import tone\n"
        "print(hashlib.sha256(encode_speech(tone(2.0), 16000)[0]).hexdigest())"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = hashlib.sha256(encode_speech(tone(2.0), 16000)[0]).hexdigest()
    assert there.stdout.strip() == here


def test_only_the_serial_number_and_checksums_change():
    plain = io.BytesIO()
    write_audio(plain, tone(2.0), 16000, "opus")
    fixed, _ = encode_speech(tone(2.0), 16000)
    ours, theirs = pages(fixed), pages(plain.getvalue())
    assert len(ours) == len(theirs) > 2
    for (serial, checksum, rest), (_, _, their_rest) in zip(ours, theirs, strict=True):
        assert serial == 1 and rest == their_rest and checksum == slow_checksum(rest)


def pages(data: bytes) -> list[tuple[int, int, bytes]]:
    """(serial number, checksum, all other bytes) of each page."""
    results, start = [], 0
    while start < len(data):
        assert data[start : start + 4] == b"OggS"
        table = data[start + 27 : start + 27 + data[start + 26]]
        end = start + 27 + len(table) + sum(table)
        serial, _, checksum = struct.unpack("<III", data[start + 14 : start + 26])
        rest = data[start : start + 14] + data[start + 18 : start + 22] + data[start + 26 : end]
        results.append((serial, checksum, rest))
        start = end
    return results


def slow_checksum(rest: bytes) -> int:
    """Ogg's CRC by its definition, of the page with these other bytes."""
    page = rest[:14] + struct.pack("<I", 1) + rest[14:18] + bytes(4) + rest[18:]
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return crc


def test_refusals():
    with pytest.raises(ValueError, match="coding 'mp3'"):
        encode_speech(tone(), 16000, "mp3")
    with pytest.raises(AudioError, match="sample 1 is nan"):
        encode_speech(np.array([0.0, np.nan], "f4"), 16000)
    with pytest.raises(AudioError, match="0 samples"):
        encode_speech(np.zeros(0, "f4"), 16000)
