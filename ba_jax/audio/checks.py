"""Checks of waveforms, and the error that unusable audio raises."""

from __future__ import annotations

import numpy as np

MIN_SAMPLE_RATE = 4000  # Hz; no intelligible speech below
MAX_SAMPLE_RATE = 192_000  # Hz; no converter above: a broken header
MAX_CHANNELS = 2  # the reference takes mono and stereo only
MAX_AMPLITUDE = 2.0**31  # no integer format is louder; its square still has finite features


class AudioError(ValueError):
    """Audio that cannot be used: names the source, the value and what was expected.

    Attributes:
      reason: a few words, the same for all errors of a kind, to count them by.
    """

    def __init__(self, message: str, reason: str = "unusable audio"):
        super().__init__(message)
        self.reason = reason


def check_wave(wave, *, min_samples: int = 1, name: str = "wave") -> np.ndarray:
    """Return a mono waveform that features can be computed from, as a NumPy array (S,).

    Args:
      wave: floating array (S,).
      min_samples: fewest samples accepted.
      name: used in errors.

    Raises:
      AudioError: another shape, not floating point, too short, or a sample that is NaN, infinite
        or beyond +-2**31.
    """
    wave = np.asarray(wave)
    if wave.ndim != 1 or wave.dtype.kind != "f":
        raise AudioError(f"{name} is {wave.dtype}{wave.shape}: expected a floating mono array (S,)")
    if len(wave) < min_samples:
        raise AudioError(f"{name} has {len(wave)} samples: expected at least {min_samples}")
    check_samples(wave[:, None], name)
    return wave


def check_samples(
    frames_SC: np.ndarray, name: str, offset: int = 0, limit: float = MAX_AMPLITUDE
) -> None:
    """Raise AudioError on the first sample that is NaN, infinite or beyond +-limit.

    `offset` is the number of samples before these, for the message.
    """
    # One pass: NaN fails the comparison too.
    is_sane = np.abs(frames_SC) <= limit
    if is_sane.all():
        return
    sample, channel = np.argwhere(~is_sane)[0]
    value = frames_SC[sample, channel]
    message = (
        f"{name}: sample {offset + sample} is {value}, expected a finite number, about -1 to 1"
    )
    if not np.isfinite(frames_SC).all() or limit == MAX_AMPLITUDE:
        raise AudioError(message, "NaN or infinite samples")
    raise AudioError(
        f"{message}: float samples at integer scale, peak {np.abs(frames_SC).max()}",
        "samples at integer scale",
    )


def check_rate(what: str, rate: int) -> None:
    """Raise AudioError for a sample rate outside 4 to 192 kHz."""
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"{what} is {rate} Hz, expected {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz",
            "bad sample rate",
        )


def check_channels(name: str, channels: int) -> None:
    """Raise AudioError for other than mono and stereo."""
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{name}: has {channels} channels, expected 1 or 2", "too many channels")
