"""Mel spectrogram to waveform without a vocoder: fast Griffin-Lim (Perraudin et al. 2013).

`griffin_lim` inverts a whole mel, `GriffinLimStream` one that arrives in pieces. Mels are those of
`ba_jax.audio.mel.log_mel`: frames not centred, over a wave reflected by (n_fft - hop) / 2 samples
at both ends; natural logarithm.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft

from ba_jax.audio.crossfade import fade_samples
from ba_jax.audio.mel import FLOW_MEL, MelGeometry, mel_filterbank
from ba_jax.audio.stft import hann_window, overlap_add, stft

_UPDATES = 24  # of the multiplicative inversion; the filters are narrow, so it settles quickly


def magnitudes(mel_TM: np.ndarray, geometry: MelGeometry = FLOW_MEL) -> np.ndarray:
    """Magnitudes (T, F) >= 0 whose mel is near exp(mel_TM), by multiplicative updates.

    Starts from the clipped pseudo-inverse; frequencies that no filter covers are 0.
    """
    filters_FM = mel_filterbank(geometry).astype(np.float64)
    target_TM = np.exp(np.asarray(mel_TM, np.float64))
    covered_F = filters_FM.sum(axis=1) > 0
    x_TF = np.maximum(target_TM @ _pseudo_inverse(geometry), 1e-6) * covered_F[None]
    # min |x A - m|^2 over x >= 0: x *= (m A') / (x A A') keeps the sign and never overshoots.
    numerator_TF = target_TM @ filters_FM.T
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
    """A wave whose `log_mel` is near `mel_TM`.

    Args:
      mel_TM: natural-log mel, T >= 1 frames.
      geometry: geometry of the mel.
      iterations: phase updates; 0 leaves the phase random.
      momentum: momentum of fast Griffin-Lim; 0 is the plain algorithm.
      seed: seed of the initial phase; the same seed gives the same wave.
      known_S: first samples of the wave, if they were played already: the rest continues them.

    Returns:
      float32 (S,) with S = T * hop, in [-1, 1].

    Raises:
      ValueError: not a mel of this geometry, NaN or Inf in it, or invalid settings.
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
    magnitude_TF = magnitudes(mel_TM, geometry)
    cycles_TF = np.random.default_rng(seed).random(magnitude_TF.shape, np.float32)
    phase_TF = np.exp(2j * np.pi * cycles_TF).astype(np.complex64)
    ahead = np.float32(momentum / (1 + momentum))
    previous_TF = np.zeros_like(phase_TF)
    for _ in range(iterations):
        wave_S = _synthesise(magnitude_TF * phase_TF, geometry)
        if known_S is not None:
            wave_S[: len(known_S)] = known_S
        spectrum_TF = _analyse(wave_S, geometry)
        extrapolated_TF = spectrum_TF - ahead * previous_TF
        phase_TF = extrapolated_TF / np.maximum(np.abs(extrapolated_TF), np.float32(1e-12))
        previous_TF = spectrum_TF
    wave_S = _synthesise(magnitude_TF * phase_TF, geometry)
    return np.clip(wave_S, -1.0, 1.0).astype(np.float32)


class GriffinLimStream:
    """Inverts a mel that arrives in pieces.

    Each window starts with frames that were played already: their samples are kept while the phase
    of the following ones is estimated, so that the wave continues. A wave's phase is not unique:
    the result has the requested mel, like `griffin_lim`'s, but is another wave. A single `push` of
    the whole mel gives exactly `griffin_lim`'s wave.

    Args:
      geometry: geometry of the mel.
      iterations: phase updates of each window.
      context: played frames that a window starts with.
      hold: last frames that wait for more input; a frame's spectrum reaches over `n_fft / hop`
        frames.
    """

    def __init__(
        self,
        geometry: MelGeometry = FLOW_MEL,
        *,
        iterations: int = 32,
        context: int = 12,
        hold: int = 4,
    ):
        self.geometry, self.iterations = geometry, iterations
        self._context, self._hold = context, hold
        self._fade = fade_samples(geometry.sample_rate)
        self._mel_TM = np.zeros((0, geometry.n_mels), np.float32)
        self._first = 0  # frame that `_mel_TM` starts with
        self._played = 0  # frames returned so far
        self._known_S = np.zeros(0, np.float32)  # samples of frames _first to _played
        self._tail_S = np.zeros(0, np.float32)  # the previous window's continuation of them

    def push(self, mel_TM: np.ndarray, ends: bool = False) -> np.ndarray:
        """Add frames; return the samples (hop a frame) that are now final.

        Args:
          mel_TM: natural-log mel of any number of frames, 0 included.
          ends: these are the last frames: all samples are returned.

        Raises:
          ValueError: as `griffin_lim`.
        """
        hop = self.geometry.hop
        self._mel_TM = np.concatenate([self._mel_TM, mel_TM])
        available = self._first + len(self._mel_TM)
        end = available if ends else available - self._hold
        if end <= self._played:
            return np.zeros(0, np.float32)
        wave_S = griffin_lim(
            self._mel_TM,
            self.geometry,
            iterations=self.iterations,
            seed=self._first,
            known_S=self._known_S,
        )
        start, stop = ((frame - self._first) * hop for frame in (self._played, end))
        fade = min(self._fade, len(self._tail_S), stop - start)
        rise_S = np.linspace(0, 1, fade, dtype=np.float32)
        head_S = wave_S[start : start + fade]
        head_S[:] = self._tail_S[:fade] * (1 - rise_S) + head_S * rise_S
        final_S = wave_S[start:stop].copy()
        self._tail_S = wave_S[stop : stop + self._fade].copy()
        self._played = end
        first = max(self._first, end - self._context)
        known_S = np.concatenate([self._known_S, final_S])
        self._known_S = known_S[(first - self._first) * hop :]
        self._mel_TM = self._mel_TM[first - self._first :]
        self._first = first
        return final_S


def _analyse(wave_S: np.ndarray, geometry: MelGeometry) -> np.ndarray:
    """The spectrum (T, F) that `log_mel` takes the magnitudes of."""
    reflected = (geometry.n_fft - geometry.hop) // 2
    # np.pad also reflects waves shorter than the reflection, repeatedly.
    x = np.pad(wave_S, reflected, mode="reflect")
    return stft(x, geometry.n_fft, geometry.hop, hann_window(geometry.n_fft), center=False)


def _synthesise(spectrum_TF: np.ndarray, geometry: MelGeometry) -> np.ndarray:
    """The wave (T * hop,) nearest to a spectrum, without the reflected samples."""
    n_fft, hop, count = geometry.n_fft, geometry.hop, len(spectrum_TF)
    frames = scipy.fft.irfft(spectrum_TF, n=n_fft, axis=-1)
    frames *= hann_window(n_fft).astype(np.float32)[None]
    first = (n_fft - hop) // 2
    inside = slice(first, first + count * hop)
    wave_S = overlap_add(frames, hop)[inside] / _envelope(geometry, count)[inside]
    return wave_S.astype(np.float32)


@functools.lru_cache(maxsize=8)
def _envelope(geometry: MelGeometry, count: int) -> np.ndarray:
    """Sum of the squared windows of `count` frames, float32."""
    squares = hann_window(geometry.n_fft).astype(np.float32) ** 2
    return overlap_add(np.broadcast_to(squares, (count, geometry.n_fft)), geometry.hop)
