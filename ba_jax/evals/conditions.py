"""Conditions that recordings are heard in: clean, in noise, fast, from afar (Table 6).

They stand in for the paper's dialects. A condition is a pure function of the recording and the
record's id.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np

from ba_jax.audio import read_audio, write_audio
from ba_jax.audio.resample import resample
from ba_jax.data.augment import Augmentation
from ba_jax.data.examples import stable_hash
from ba_jax.data.record import Part, Record

CONDITIONS = {
    "clean": "as recorded",
    "noise": "white noise, 10 dB below the speech",
    "fast": "played 1.2 times as fast, its pitch higher by as much",
    "far": "reverberation of 0.5 s, 5 dB above the direct sound, and 20 dB lower",
}
"""Condition -> description."""
_NOISE, _SPEED = Augmentation(noise_probability=1.0, noise_snr_db=(10.0, 10.0)), 1.2
_REVERBERATION, _REVERBERANT_DB, _LOWER_DB = 0.5, 5.0, -20.0  # seconds to -60 dB


def change_wave(wave_S: np.ndarray, rate: int, condition: str, seed: int) -> np.ndarray:
    """The wave as it sounds in a condition, float32, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    if condition == "noise":
        wave_S = _NOISE.wave(wave_S, rng)
    elif condition == "fast":
        wave_S = resample(wave_S, round(rate * _SPEED), rate)
    elif condition == "far":
        time_S = np.arange(round(_REVERBERATION * rate)) / rate
        tail_S = rng.standard_normal(len(time_S)) * 10 ** (-3 * time_S / _REVERBERATION)
        size = len(wave_S) + len(tail_S) - 1
        spectrum = np.fft.rfft(wave_S, size) * np.fft.rfft(tail_S, size)
        reverberant_S = np.fft.irfft(spectrum, size)[: len(wave_S)]
        level = _root_mean_square(reverberant_S) or 1.0
        gain = _root_mean_square(wave_S) / level * 10 ** (_REVERBERANT_DB / 20)
        wave_S = (wave_S + gain * reverberant_S) * 10 ** (_LOWER_DB / 20)
    return np.clip(wave_S, -1.0, 1.0).astype(np.float32)


def change_record(record: Record, condition: str) -> Record:
    """The record whose recordings, but the assistant's, sound as in a condition."""
    if condition == "clean":
        return record
    parts = tuple(
        part if part.role == "assistant" or not part.audio else _change(part, condition, record.id)
        for part in record.parts
    )
    return dataclasses.replace(record, parts=parts)


def _change(part: Part, condition: str, id: str) -> Part:
    wave_S, rate = read_audio(part.audio)
    wave_S = change_wave(wave_S, rate, condition, stable_hash(id))
    file = io.BytesIO()
    write_audio(file, wave_S, rate, "flac")
    # Codes and times are those of the recording as it was.
    changes = {"audio": file.getvalue(), "seconds": len(wave_S) / rate}
    return dataclasses.replace(part, codes_NQ=None, words=(), **changes)


def _root_mean_square(wave_S: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wave_S, dtype=np.float64))))
