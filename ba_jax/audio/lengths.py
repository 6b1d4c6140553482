"""Length arithmetic from samples to codes; each function takes ints or integer arrays.

A second of audio is 16000 samples, 100 mel frames, 50 encoder frames, 12.5 code frames.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SAMPLE_RATE = 16000
N_FFT = 400
HOP = 160
MAX_SECONDS = 30


def mel_length(samples):
    """Valid log-mel frames of a 16 kHz clip of at most 30 s: min(3000, samples // 160 + 1)."""
    frames = samples // HOP + 1
    limit = MAX_SECONDS * SAMPLE_RATE // HOP
    return frames - (frames > limit) * (frames - limit)


def encoder_length(mel_frames):
    """Frames after the encoder's two convolutions (k 3, pad 1; the second with stride 2)."""
    return (mel_frames + 2 - 3) // 2 + 1


def bridge_length(encoder_frames, pooling: int = 4):
    """Code frames (12.5 Hz): complete groups of `pooling` encoder frames."""
    return encoder_frames // pooling


class Split(NamedTuple):
    """Chunks of a long clip, and what was too short to keep.

    Attributes:
      chunks: waveforms (S,) of at most `max_seconds`, in order.
      dropped_chunks, dropped_samples: how many were left out, and their samples.
    """

    chunks: list[np.ndarray]
    dropped_chunks: int
    dropped_samples: int


def split_waveform(
    wave_S: np.ndarray, sample_rate: int = SAMPLE_RATE, max_seconds: float = MAX_SECONDS
) -> Split:
    """Cuts a clip into chunks of `max_seconds` without overlap.

    A chunk under 400 samples (one STFT window), or too short for a single code frame, is dropped
    as the reference drops it, and counted.
    """
    step = int(max_seconds * sample_rate)
    chunks, dropped_chunks, dropped_samples = [], 0, 0
    for start in range(0, wave_S.shape[-1], step):
        chunk = wave_S[..., start : start + step]
        samples = chunk.shape[-1]
        if samples < N_FFT or bridge_length(encoder_length(mel_length(samples))) < 1:
            dropped_chunks += 1
            dropped_samples += samples
        else:
            chunks.append(chunk)
    return Split(chunks, dropped_chunks, dropped_samples)
