"""Length arithmetic of the front end, from samples to codes, for ints and integer arrays.

A second of audio is 16000 samples, 100 mel frames, 50 encoder frames, 12.5 code frames.
"""

from __future__ import annotations

SAMPLE_RATE = 16000  # Hz, of the audio encoder's input
N_FFT = 400  # samples of a mel frame's window; shorter clips have no features
HOP = 160  # samples a mel frame
MAX_SECONDS = 30  # window of the audio encoder
FRAME_SECONDS = 0.08  # of a code frame
FRAME_SAMPLES = 1280  # of a code frame


def mel_length(samples):
    """Valid log-mel frames of a 16 kHz clip of at most 30 s: min(3000, samples // 160 + 1)."""
    frames = samples // HOP + 1
    # A minimum that needs no array library: ints, NumPy and traced JAX arrays alike.
    limit = MAX_SECONDS * SAMPLE_RATE // HOP
    return frames - (frames > limit) * (frames - limit)


def encoder_length(mel_frames):
    """Frames after the encoder's two convolutions (k 3, pad 1; the second with stride 2)."""
    return (mel_frames + 2 - 3) // 2 + 1


def bridge_length(encoder_frames, pooling: int = 4):
    """Code frames (12.5 Hz): complete groups of `pooling` encoder frames."""
    return encoder_frames // pooling


def code_length(samples: int) -> int:
    """Code frames of a 16 kHz clip of at most 30 s; 0 if it is too short."""
    if samples < N_FFT:
        return 0
    return bridge_length(encoder_length(mel_length(samples)))
