"""Cutting a long waveform into pieces that the audio encoder can take."""

from __future__ import annotations

import dataclasses

import numpy as np

from ba_jax.audio import lengths
from ba_jax.audio.io import AudioError, check_wave
from ba_jax.audio.resample import resampled_length


@dataclasses.dataclass(frozen=True)
class Split:
    """A waveform cut into chunks.

    Attributes:
      chunks: float arrays (S_i,), views in order, each long enough to give at least one code.
      dropped_chunks: pieces left out because they are too short for that.
      dropped_samples: samples in them, so that
        `sum(len(c) for c in chunks) + dropped_samples == len(wave)`.
    """

    chunks: tuple[np.ndarray, ...]
    dropped_chunks: int
    dropped_samples: int


def split_waveform(
    wave_S: np.ndarray,
    sample_rate: int = lengths.SAMPLE_RATE,
    max_seconds: float = lengths.MAX_SECONDS,
) -> Split:
    """Cuts a waveform into consecutive chunks of at most `max_seconds`, without overlap.

    A piece is dropped, and counted, if at 16 kHz it has fewer than 400 samples or no bridge frame
    (fewer than 960 samples, 60 ms). Only the last piece can be that short, so at most one is.

    Args:
      wave_S: mono waveform (S,).
      sample_rate: its rate, Hz.
      max_seconds: longest chunk, at most the 30 s that the encoder sees.

    Raises:
      AudioError: an empty or non-finite waveform, more than one axis, or `max_seconds` outside
        0.1 to 30.
    """
    wave_S = check_wave(wave_S)
    if not 0.1 <= max_seconds <= lengths.MAX_SECONDS:
        raise AudioError(
            f"max_seconds = {max_seconds}, expected 0.1 to {lengths.MAX_SECONDS} seconds"
        )
    longest = int(max_seconds * sample_rate)
    chunks, dropped = [], []
    for start in range(0, len(wave_S), longest):
        chunk = wave_S[start : start + longest]
        samples = resampled_length(len(chunk), sample_rate, lengths.SAMPLE_RATE)
        codes = lengths.bridge_length(lengths.encoder_length(lengths.mel_length(samples)))
        (chunks if samples >= lengths.N_FFT and codes > 0 else dropped).append(chunk)
    return Split(tuple(chunks), len(dropped), sum(map(len, dropped)))
