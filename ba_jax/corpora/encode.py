"""Encode speech for records: mono, 24 kHz at most, Ogg Opus or FLAC."""

from __future__ import annotations

import io

import numpy as np

from ba_jax.audio import check_wave, write_audio
from ba_jax.audio.complete import ogg_checksum
from ba_jax.audio.resample import resample

CODINGS = ("opus", "flac")
STORED_RATE = 24000
"""Hz, the vocoder's; recordings of higher rates are resampled to it, lower rates are kept."""
_OPUS_RATES = (8000, 12000, 16000, 24000)


def encode_speech(wave_S: np.ndarray, rate: int, coding: str = "opus") -> tuple[bytes, float]:
    """Encode a mono wave (floating, full scale +-1) at `rate` Hz.

    `coding` is "opus" (some 35 kbit/s; 40 seconds of speech take a CPU-second) or "flac" (16 bits,
    lossless, 6 times the size; 1,000 to 4,000 seconds, by how much resampling they need).

    Returns:
      (the bytes of an audio file, the same in every run; its length in seconds).
    """
    if coding not in CODINGS:
        raise ValueError(f"coding {coding!r}, expected one of {CODINGS}")
    wave_S = check_wave(wave_S)
    stored = min(rate, STORED_RATE)
    if coding == "opus" and stored not in _OPUS_RATES:
        stored = next(r for r in _OPUS_RATES if r > stored)
    if stored != rate:
        wave_S = resample(wave_S, rate, stored)
    file = io.BytesIO()
    write_audio(file, wave_S, stored, coding)
    data = file.getvalue()
    return _with_fixed_serial(data) if coding == "opus" else data, len(wave_S) / stored


def _with_fixed_serial(ogg: bytes) -> bytes:
    """Set an Ogg stream's serial number to 1; libsndfile draws it from the clock."""
    data = bytearray(ogg)
    start = 0
    while start < len(data):
        segments = data[start + 26]
        table = start + 27
        end = table + segments + sum(data[table : table + segments])
        data[start + 14 : start + 18] = (1).to_bytes(4, "little")
        data[start + 22 : start + 26] = bytes(4)
        data[start + 22 : start + 26] = ogg_checksum(data[start:end]).to_bytes(4, "little")
        start = end
    return bytes(data)
