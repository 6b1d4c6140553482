"""The model's kinds of mel spectrogram, for NumPy and JAX arrays.

- `whisper_log_mel`: input of the audio encoder (128 bins; 80 for Whisper-base), 16 kHz, 100 Hz.
- `log_mel(..., COARSE_MEL)`, `log_mel(..., HIFIGAN_MEL)`: the two targets of the audio decoder, of
  its coarse mel and of its refined one: 80 bins, 16 kHz, 100 and 62.5 Hz.
- `log_mel(..., FLOW_MEL)`: target of the flow-matching decoder, 80 bins, 24 kHz, 50 Hz.

The `_batch` versions take padded waveforms and their lengths inside a jitted step. All results are
time-major: (T, M) or (B, T, M). B batch, S samples, T mel frames, M mel bins, F frequencies.

The filterbank is our own: importing librosa's takes 1 s of CPU time in every worker. The tests
compare the two.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from ba_jax.audio import lengths
from ba_jax.audio.checks import AudioError, check_wave
from ba_jax.audio.stft import hann_window, stft


@dataclasses.dataclass(frozen=True)
class MelGeometry:
    """Sizes of a mel spectrogram; the window is a periodic Hann window of n_fft samples.

    Attributes:
      sample_rate: Hz.
      n_fft: samples a frame.
      hop: samples between frames.
      n_mels: mel bins (slaney scale and area normalisation).
      f_min, f_max: edges of the first and the last filter, Hz.
    """

    sample_rate: int
    n_fft: int
    hop: int
    n_mels: int
    f_min: float = 0.0
    f_max: float = 8000.0

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop


_CACHED_SAMPLES = 1 << 17  # in the frames that the NumPy path transforms at a time (512 KiB)

WHISPER_MEL = MelGeometry(lengths.SAMPLE_RATE, lengths.N_FFT, lengths.HOP, n_mels=128)
WHISPER_MEL_80 = MelGeometry(lengths.SAMPLE_RATE, lengths.N_FFT, lengths.HOP, n_mels=80)
COARSE_MEL = MelGeometry(16000, n_fft=640, hop=160, n_mels=80)
HIFIGAN_MEL = MelGeometry(16000, n_fft=1024, hop=256, n_mels=80)
FLOW_MEL = MelGeometry(24000, n_fft=1920, hop=480, n_mels=80)


def _mel_from_hz(hz):
    """Slaney's mel scale: linear to 1 kHz (3 mel per 200 Hz), then 27 mel per factor of 6.4."""
    hz = np.asarray(hz, np.float64)
    log = 15.0 + np.log(np.maximum(hz, 1000.0) / 1000.0) * 27.0 / math.log(6.4)
    return np.where(hz < 1000.0, hz * 3.0 / 200.0, log)


def _hz_from_mel(mel):
    mel = np.asarray(mel, np.float64)
    log = 1000.0 * np.exp((mel - 15.0) * math.log(6.4) / 27.0)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, log)


@functools.lru_cache(maxsize=16)
def mel_filterbank(geometry: MelGeometry) -> np.ndarray:
    """Triangular filters (F, M) float32, each of unit area over Hz (slaney); read-only.

    Raises:
      ValueError: edges outside 0 <= f_min < f_max <= sample_rate / 2.
    """
    g = geometry
    if not 0 <= g.f_min < g.f_max <= g.sample_rate / 2:
        raise ValueError(
            f"f_min = {g.f_min}, f_max = {g.f_max}: expected 0 <= f_min < f_max <= "
            f"{g.sample_rate / 2} (half the sample rate)"
        )
    bins = np.arange(g.n_fft // 2 + 1)[:, None] * (g.sample_rate / g.n_fft)
    edges = _hz_from_mel(np.linspace(_mel_from_hz(g.f_min), _mel_from_hz(g.f_max), g.n_mels + 2))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins - lower) / (centre - lower)
    falling = (upper - bins) / (upper - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (upper - lower)
    filters = filters.astype(np.float32)
    filters.flags.writeable = False
    return filters


def _mel_spectrum(x, geometry: MelGeometry, xp, *, magnitude: bool):
    """(..., S) -> (..., T, M): filtered |STFT|^2, or sqrt(|STFT|^2 + 1e-9), without centring."""
    if xp is np:
        return _mel_spectrum_on_host(x, geometry, magnitude)
    window = hann_window(geometry.n_fft)
    spectrum = stft(x, geometry.n_fft, geometry.hop, window, center=False, xp=xp)
    power = spectrum.real**2 + spectrum.imag**2
    # Accelerators would multiply in bfloat16 or TF32, too coarse under a logarithm.
    return xp.matmul(
        xp.sqrt(power + 1e-9) if magnitude else power,
        mel_filterbank(geometry),
        precision="highest",
    )


def _mel_spectrum_on_host(x_S: np.ndarray, geometry: MelGeometry, magnitude: bool) -> np.ndarray:
    """The NumPy path of `_mel_spectrum`, (S,) -> (T, M).

    It processes runs of frames that fit the CPU cache, which halves the time of a 30 s clip. The
    product is sparse, because a frequency is in two filters at most: a third of the dense product's
    time, and no BLAS threads (on busy cores, waiting for them would dominate).
    """
    g = geometry
    count = 1 + (len(x_S) - g.n_fft) // g.hop
    filters_MF = _sparse_filterbank(g)
    mel_TM = np.empty((count, g.n_mels), np.float32)
    step = max(1, _CACHED_SAMPLES // g.n_fft)
    for first in range(0, count, step):
        last = min(first + step, count) - 1
        x = x_S[first * g.hop : last * g.hop + g.n_fft]
        spectrum = stft(x, g.n_fft, g.hop, hann_window(g.n_fft), center=False)
        power = np.square(spectrum.real)
        power += np.square(spectrum.imag)
        if magnitude:
            power += np.float32(1e-9)
            np.sqrt(power, out=power)
        mel_TM[first : last + 1] = (filters_MF @ power.T).T
    return mel_TM


@functools.lru_cache(maxsize=16)
def _sparse_filterbank(geometry: MelGeometry):
    import scipy.sparse  # its import takes as long as many clips

    return scipy.sparse.csr_array(mel_filterbank(geometry).T)


# --- Whisper log-mel ------------------------------------------------------------------------------


def whisper_log_mel(wave_S, geometry: MelGeometry = WHISPER_MEL, *, xp=np):
    """Whisper's log-mel features of one clip, its valid frames only.

    Equal to the definition, which zero-pads the clip to 30 s, takes a centred reflect-padded STFT,
    drops the last frame, and computes log10(max(power @ filters, 1e-10)), floored at 8 below its
    maximum over the 30 s, then (x + 4) / 4. Here only frames that overlap the clip are computed.
    Samples past 30 s are ignored.

    Args:
      wave_S: mono waveform at 16 kHz, in [-1, 1], S >= 400.
      geometry: WHISPER_MEL or WHISPER_MEL_80.
      xp: numpy or jax.numpy.

    Returns:
      float32 (T, M) with T = mel_length(S) = min(3000, S // 160 + 1).

    Raises:
      AudioError: fewer than 400 samples, NaN or Inf (NumPy path), or not a floating (S,) array.

    Source: arXiv 2502.17239, "Audio Tokenizer" (it takes Whisper's features).
    """
    wave_S = _check_mono(wave_S, geometry.n_fft, xp)
    mel_TM = _whisper_frames(wave_S[: _window_samples(geometry)], geometry, xp)
    return mel_TM[: lengths.mel_length(wave_S.shape[0])]


def whisper_log_mel_batch(wave_BS, lengths_B, geometry: MelGeometry = WHISPER_MEL):
    """`whisper_log_mel` of padded clips in JAX, jit-able.

    Args:
      wave_BS: float waveforms at 16 kHz; samples past an item's length are ignored.
      lengths_B: int32 samples of each; an item below 400 gets no frames.
      geometry: WHISPER_MEL or WHISPER_MEL_80.

    Returns:
      (mel_BTM float32 with T = mel_length(S), 0 past an item's frames; mel_lengths_B).

    Raises:
      AudioError: not a floating array (B, S) with S >= 400.
    """
    import jax.numpy as jnp

    wave_BS, lengths_B = _mask_samples(wave_BS, lengths_B, geometry.n_fft)
    mel_BTM = _whisper_frames(wave_BS[:, : _window_samples(geometry)], geometry, jnp)
    mel_BTM = mel_BTM[:, : lengths.mel_length(wave_BS.shape[1])]
    frames_B = jnp.where(lengths_B >= geometry.n_fft, lengths.mel_length(lengths_B), 0)
    return _mask_frames(mel_BTM, frames_B), frames_B


def _window_samples(geometry: MelGeometry) -> int:
    """Samples of Whisper's 30 s window."""
    return lengths.MAX_SECONDS * geometry.sample_rate


def _whisper_frames(x, geometry: MelGeometry, xp):
    """(..., S) with 400 <= S <= 480000 -> (..., T', M): every frame that overlaps the clip.

    The other frames of the 30 s window are log10(1e-10), the lowest possible value, and cannot
    raise the maximum. Frames past mel_length(S) that still overlap the clip can.
    """
    n_fft, hop, half = geometry.n_fft, geometry.hop, geometry.n_fft // 2
    samples, window = x.shape[-1], _window_samples(geometry)
    count = min(window // hop, (samples + half - 1) // hop + 1)
    # Zeros up to the window's end; past it the window is reflected, as it is before sample 0.
    needed = (count - 1) * hop + n_fft - half
    silence = xp.zeros((*x.shape[:-1], max(0, min(needed, window) - samples)), x.dtype)
    body = xp.concatenate([x[..., half:0:-1], x, silence], axis=-1)
    if needed > window:
        body = xp.concatenate([body, body[..., -2 : -2 - (needed - window) : -1]], axis=-1)
    mel = _mel_spectrum(body, geometry, xp, magnitude=False)
    log = xp.log(xp.maximum(mel, 1e-10)) * np.float32(1 / math.log(10))
    log = xp.maximum(log, log.max(axis=(-2, -1), keepdims=True) - 8.0)
    return (log + 4.0) / 4.0


# --- HiFi-GAN log-mel: decoder and flow targets ---------------------------------------------------


def log_mel(wave_S, geometry: MelGeometry = FLOW_MEL, *, xp=np):
    """HiFi-GAN style log-mel of one clip: ln(max(filters . sqrt(|STFT|^2 + 1e-9), 1e-5)).

    The STFT is not centred; the clip is reflected by (n_fft - hop) / 2 samples at both ends.

    Args:
      wave_S: mono waveform at geometry.sample_rate, in [-1, 1], longer than that reflection.
      geometry: HIFIGAN_MEL, FLOW_MEL, or another.
      xp: numpy or jax.numpy.

    Returns:
      float32 (T, M) with T = S // hop.

    Raises:
      AudioError: a clip too short to reflect or to fill a hop, NaN or Inf (NumPy path), or not a
        floating (S,) array.

    Source: arXiv 2502.17239, "Audio Tokenizer" and "Flow-matching" (mel targets).
    """
    reflected = (geometry.n_fft - geometry.hop) // 2
    x = _check_mono(wave_S, max(reflected + 1, geometry.hop), xp)
    # (not x[-2 : -2 - reflected : -1]: that is empty when the slice reaches the first sample)
    x = xp.concatenate([x[reflected:0:-1], x, x[::-1][1 : 1 + reflected]])
    return _log_mel_frames(x, geometry, xp)


def log_mel_batch(wave_BS, lengths_B, geometry: MelGeometry = FLOW_MEL):
    """`log_mel` of padded clips in JAX, jit-able and differentiable.

    Args:
      wave_BS: float waveforms at geometry.sample_rate; samples past an item's length are ignored:
        each item is reflected at its end.
      lengths_B: int32 samples of each; an item too short for `log_mel` gets no frames.
      geometry: HIFIGAN_MEL, FLOW_MEL, or another.

    Returns:
      (mel_BTM float32 with T = S // hop, 0 past an item's frames; mel_lengths_B).

    Raises:
      AudioError: not a floating array (B, S), or S too short for any frame.
    """
    import jax
    import jax.numpy as jnp

    reflected = (geometry.n_fft - geometry.hop) // 2
    shortest = max(reflected + 1, geometry.hop)
    wave_BS, lengths_B = _mask_samples(wave_BS, lengths_B, shortest)

    def reflect_ends(x_S, length):
        # One slice in, one slice out: no element-wise gather, which accelerators dislike.
        tail = jax.lax.dynamic_slice(x_S, (length - 1 - reflected,), (reflected,))[::-1]
        padded = jnp.concatenate([x_S[reflected:0:-1], x_S, jnp.zeros(reflected, x_S.dtype)])
        return jax.lax.dynamic_update_slice(padded, tail, (reflected + length,))

    is_long_B = lengths_B >= shortest
    padded = jax.vmap(reflect_ends)(wave_BS, jnp.where(is_long_B, lengths_B, shortest))
    frames_B = jnp.where(is_long_B, lengths_B // geometry.hop, 0)
    return _mask_frames(_log_mel_frames(padded, geometry, jnp), frames_B), frames_B


def _log_mel_frames(padded, geometry: MelGeometry, xp):
    mel = _mel_spectrum(padded, geometry, xp, magnitude=True)
    return xp.log(xp.maximum(mel, 1e-5))


# --- shared ---------------------------------------------------------------------------------------


def _check_mono(wave_S, min_samples: int, xp):
    """The waveform as float32 (S,); values are checked on the host only.

    Raises:
      AudioError: see `log_mel`.
    """
    if xp is np:
        return check_wave(wave_S, min_samples=min_samples).astype(np.float32, copy=False)
    wave_S = xp.asarray(wave_S)
    if wave_S.ndim != 1 or not xp.issubdtype(wave_S.dtype, xp.floating):
        raise AudioError(f"wave is {wave_S.dtype}{wave_S.shape}: expected a floating array (S,)")
    if wave_S.shape[0] < min_samples:
        raise AudioError(f"wave has {wave_S.shape[0]} samples: expected at least {min_samples}")
    return wave_S.astype(np.float32)


def _mask_samples(wave_BS, lengths_B, min_samples: int):
    """float32 waveforms with zeros past each length, and the lengths, at most S.

    Raises:
      AudioError: see `log_mel_batch`.
    """
    import jax.numpy as jnp

    wave_BS = jnp.asarray(wave_BS)
    is_float = jnp.issubdtype(wave_BS.dtype, jnp.floating)
    if wave_BS.ndim != 2 or not is_float or wave_BS.shape[1] < min_samples:
        raise AudioError(
            f"waveforms are {wave_BS.dtype}{wave_BS.shape}: expected a floating array (B, S) "
            f"with S >= {min_samples}"
        )
    wave_BS = wave_BS.astype(jnp.float32)
    lengths_B = jnp.clip(jnp.asarray(lengths_B), 0, wave_BS.shape[1])
    is_valid = jnp.arange(wave_BS.shape[1])[None, :] < lengths_B[:, None]
    return jnp.where(is_valid, wave_BS, 0.0), lengths_B


def _mask_frames(mel_BTM, frames_B):
    """Mel frames with zeros past each item's number."""
    import jax.numpy as jnp

    is_valid = jnp.arange(mel_BTM.shape[1])[None, :] < frames_B[:, None]
    return jnp.where(is_valid[:, :, None], mel_BTM, 0.0)
