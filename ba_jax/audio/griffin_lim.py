"""Mel spectrogram to waveform without a vocoder: fast Griffin-Lim (Perraudin et al. 2013).

The frames are those of `ba_jax.audio.mel.log_mel`: not centred, over a wave that was reflected by
(n_fft - hop) / 2 samples at both ends, natural logarithm.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft

from ba_jax.audio.mel import FLOW_MEL, MelGeometry, mel_filterbank
from ba_jax.audio.stft import hann_window, stft

_UPDATES = 24  # of the multiplicative inversion; the filters are narrow, so it settles quickly


def magnitudes(mel_TM: np.ndarray, geometry: MelGeometry = FLOW_MEL) -> np.ndarray:
    """Magnitudes (T, F) >= 0 whose mel is near exp(mel_TM), by multiplicative updates.

    Starts from the clipped pseudo-inverse; frequencies that no filter covers are 0.
    """
    filters_FM = mel_filterbank(geometry).astype(np.float64)
    wanted_TM = np.exp(np.asarray(mel_TM, np.float64))
    covered_F = filters_FM.sum(axis=1) > 0
    x_TF = np.maximum(wanted_TM @ _pseudo_inverse(geometry), 1e-6) * covered_F[None]
    # min |x A - m|^2 over x >= 0: x *= (m A') / (x A A') keeps the sign and never overshoots.
    numerator_TF = wanted_TM @ filters_FM.T
    for _ in range(_UPDATES):
        denominator_TF = (x_TF @ filters_FM) @ filters_FM.T
        x_TF *= numerator_TF / np.maximum(denominator_TF, 1e-12)
    return x_TF.astype(np.float32)


@functools.lru_cache(maxsize=4)
def _pseudo_inverse(geometry: MelGeometry) -> np.ndarray:
    return np.linalg.pinv(mel_filterbank(geometry).astype(np.float64))


def griffin_lim(
    mel_TM: np.ndarray,
    geometry: MelGeometry = FLOW_MEL,
    *,
    iterations: int = 32,
    momentum: float = 0.99,
    seed: int = 0,
    known_S: np.ndarray | None = None,
) -> np.ndarray:
    """A wave whose `log_mel` is near the given one.

    Args:
      mel_TM: natural-log mel, T >= 1 frames.
      geometry: of the mel.
      iterations: of the phase; 0 leaves it random.
      momentum: of fast Griffin-Lim; 0 is the plain algorithm.
      seed: of the first phase; the same seed gives the same wave.
      known_S: the wave's first samples, if they were heard already: what follows fits on to them.

    Returns:
      float32 (S,) with S = T * hop, in [-1, 1].

    Raises:
      ValueError: not a mel of this geometry, NaN or Inf in it, or settings that make no sense.
    """
    mel_TM = np.asarray(mel_TM)
    if mel_TM.ndim != 2 or len(mel_TM) < 1 or mel_TM.shape[1] != geometry.n_mels:
        raise ValueError(f"mel of shape {mel_TM.shape}: expected (T >= 1, {geometry.n_mels})")
    if not np.isfinite(mel_TM).all():
        raise ValueError("mel with NaN or Inf: expected finite values")
    if iterations < 0 or not 0 <= momentum < 1:
        raise ValueError(
            f"iterations = {iterations}, momentum = {momentum}: expected >= 0, and 0 to below 1"
        )
    size_TF = magnitudes(mel_TM, geometry)
    turns_TF = np.random.default_rng(seed).random(size_TF.shape, np.float32)
    phase_TF = np.exp(2j * np.pi * turns_TF).astype(np.complex64)
    ahead = np.float32(momentum / (1 + momentum))
    before_TF = np.zeros_like(phase_TF)
    for _ in range(iterations):
        wave_S = _synthesise(size_TF * phase_TF, geometry)
        if known_S is not None:
            wave_S[: len(known_S)] = known_S
        now_TF = _analyse(wave_S, geometry)
        turned_TF = now_TF - ahead * before_TF
        phase_TF = turned_TF / np.maximum(np.abs(turned_TF), np.float32(1e-12))
        before_TF = now_TF
    wave_S = _synthesise(size_TF * phase_TF, geometry)
    return np.clip(wave_S, -1.0, 1.0).astype(np.float32)


def _analyse(wave_S: np.ndarray, geometry: MelGeometry) -> np.ndarray:
    """The spectrum (T, F) that `log_mel` takes the magnitudes of."""
    reflected = (geometry.n_fft - geometry.hop) // 2
    # (np.pad also reflects waves shorter than the reflection, again and again)
    x = np.pad(wave_S, reflected, mode="reflect")
    return stft(x, geometry.n_fft, geometry.hop, hann_window(geometry.n_fft), center=False)


def _synthesise(spectrum_TF: np.ndarray, geometry: MelGeometry) -> np.ndarray:
    """The wave (T * hop,) nearest to a spectrum; what was reflected is left out.

    `istft` without centring refuses: the first of the reflected samples lies under no window.
    """
    n_fft, hop, count = geometry.n_fft, geometry.hop, len(spectrum_TF)
    frames = scipy.fft.irfft(spectrum_TF, n=n_fft, axis=-1)
    frames *= hann_window(n_fft).astype(np.float32)[None]
    first = (n_fft - hop) // 2
    inside = slice(first, first + count * hop)
    wave_S = _overlap_add(frames, hop)[inside] / _envelope(geometry, count)[inside]
    return wave_S.astype(np.float32)


def _overlap_add(frames_TW: np.ndarray, hop: int) -> np.ndarray:
    """Frames (T, n_fft) laid `hop` samples apart and added, (n_fft + (T - 1) * hop,)."""
    count, n_fft = frames_TW.shape
    parts = -(-n_fft // hop)
    pieces = np.pad(frames_TW, ((0, 0), (0, parts * hop - n_fft))).reshape(count, parts, hop)
    rows = np.zeros((count + parts - 1, hop), frames_TW.dtype)
    for k in range(parts):
        rows[k : k + count] += pieces[:, k]
    return rows.reshape(-1)[: n_fft + (count - 1) * hop]


@functools.lru_cache(maxsize=8)
def _envelope(geometry: MelGeometry, count: int) -> np.ndarray:
    squares = hann_window(geometry.n_fft).astype(np.float32) ** 2
    return _overlap_add(np.broadcast_to(squares, (count, geometry.n_fft)), geometry.hop)
