"""Short-time Fourier transform and its inverse, for NumPy and JAX arrays, with torch's conventions.

`xp` is the array library: `numpy` (the default) or `jax.numpy`. This module imports only NumPy and
SciPy; callers pass JAX. Spectra are (..., T, F): frames before frequency.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft

_MIN_ENVELOPE = 1e-11  # torch.istft refuses to divide by less


@functools.lru_cache(maxsize=32)
def hann_window(length: int) -> np.ndarray:
    """Periodic Hann window, float64 (length,), read-only."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    if length == 1:
        window[:] = 1.0  # torch's convention: not an all-zero window
    window.flags.writeable = False
    return window


def stft(x, n_fft: int, hop: int, window, *, center=True, pad_mode="reflect", xp=np):
    """Short-time Fourier transform of real signals.

    Args:
      x: real array (..., S), float32 or float64.
      n_fft: samples a frame.
      hop: samples between frames.
      window: (W,) with W <= n_fft, a concrete array; a shorter one is centred in the frame.
      center: pad n_fft // 2 on both sides, so that frame t is centred on sample t * hop.
      pad_mode: of `numpy.pad` ("reflect", "constant", ...).
      xp: numpy or jax.numpy.

    Returns:
      Complex array (..., T, n_fft // 2 + 1) of the precision of `x`; T is 1 + S // hop if centred,
      else 1 + (S - n_fft) // hop.

    Raises:
      ValueError: a signal shorter than a frame (or than the reflection), a window longer than
        one, or a size that is not positive.
    """
    window = _frame_window(window, n_fft, hop)
    x = xp.asarray(x)
    samples = x.shape[-1]
    if center:
        half = n_fft // 2
        if pad_mode == "reflect" and samples <= half:
            raise ValueError(f"{samples} samples: reflecting {half} takes at least {half + 1}")
        x = xp.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode=pad_mode)
    if x.shape[-1] < n_fft:
        raise ValueError(f"{samples} samples: expected at least one frame, n_fft = {n_fft}")
    # Explicit leading axes: no implicit rank promotion in JAX.
    window = window.reshape((1,) * x.ndim + (n_fft,)).astype(x.dtype)
    frames = _frame(x, n_fft, hop, xp) * window
    if xp is np:
        # SciPy's FFT keeps float32 in every NumPy version, and may reuse the frames' memory.
        return scipy.fft.rfft(frames, axis=-1, overwrite_x=True)
    return xp.fft.rfft(frames, axis=-1)


def istft(spectrum, n_fft: int, hop: int, window, *, center=True, length=None, xp=np):
    """Inverse STFT: windowed overlap-add, divided by the sum of the squared windows.

    The imaginary parts at frequency 0 and n_fft / 2 are ignored, as a real signal has none.

    Args:
      spectrum: complex array (..., T, n_fft // 2 + 1).
      n_fft, hop, window: as given to `stft`.
      center: whether `stft` padded; the padding is removed again.
      length: samples of the result; None: all that the frames cover. Samples past these are 0.
      xp: numpy or jax.numpy.

    Returns:
      Real array (..., S).

    Raises:
      ValueError: wrong number of frequencies, no frame, or a sample that no window covers (squared
        windows sum to less than 1e-11), where the inverse does not exist.
    """
    window = _frame_window(window, n_fft, hop)
    spectrum = xp.asarray(spectrum)
    frames_T, bins = spectrum.shape[-2:]
    if bins != n_fft // 2 + 1 or frames_T < 1:
        raise ValueError(
            f"spectrum of {frames_T} frames, {bins} bins: expected at least 1 frame and "
            f"n_fft // 2 + 1 = {n_fft // 2 + 1} bins"
        )
    covered = n_fft + (frames_T - 1) * hop
    start = n_fft // 2 if center else 0
    stop = covered - start if length is None else start + length
    _check_coverage(window, frames_T, hop, start, min(stop, covered))

    if xp is np:
        frames = scipy.fft.irfft(spectrum, n=n_fft, axis=-1)
    else:
        # Libraries treat imaginary parts that should be 0 differently.
        is_real = np.zeros((1,) * (spectrum.ndim - 1) + (bins,), bool)
        is_real[..., 0] = True
        is_real[..., -1] = n_fft % 2 == 0
        frames = xp.fft.irfft(xp.where(is_real, spectrum.real, spectrum), n=n_fft, axis=-1)
    frames = frames * window.reshape((1,) * (frames.ndim - 1) + (n_fft,)).astype(frames.dtype)
    y = overlap_add(frames, hop, xp)[..., start : min(stop, covered)]
    envelope = _envelope(window, frames_T, hop, xp)[start : min(stop, covered)]
    y = y / envelope.reshape((1,) * (y.ndim - 1) + envelope.shape).astype(y.dtype)
    if stop > covered:
        y = xp.pad(y, [(0, 0)] * (y.ndim - 1) + [(0, stop - covered)])
    return y


def _frame_window(window, n_fft: int, hop: int) -> np.ndarray:
    """The window as float64 (n_fft,), zero-padded on both sides if it is shorter."""
    window = np.asarray(window, np.float64)
    if n_fft < 1 or hop < 1 or window.ndim != 1 or not 1 <= len(window) <= n_fft:
        raise ValueError(
            f"n_fft = {n_fft}, hop = {hop}, window of shape {window.shape}: expected positive "
            "sizes and a window (W,) with 1 <= W <= n_fft"
        )
    left = (n_fft - len(window)) // 2
    return np.pad(window, (left, n_fft - len(window) - left))


def _frame(x, n_fft: int, hop: int, xp):
    """(..., S) -> (..., T, n_fft) overlapping frames."""
    count = 1 + (x.shape[-1] - n_fft) // hop
    if xp is np:
        windows = np.lib.stride_tricks.sliding_window_view(x, n_fft, axis=-1)
        return windows[..., ::hop, :]
    # Shifted rows of `hop` samples side by side: slices, where indexing would be a gather.
    overlap = -(-n_fft // hop)
    needed = (count + overlap - 1) * hop
    lead = [(0, 0)] * (x.ndim - 1)
    x = xp.pad(x, lead + [(0, max(0, needed - x.shape[-1]))])[..., :needed]
    rows = x.reshape(*x.shape[:-1], count + overlap - 1, hop)
    frames = xp.concatenate([rows[..., k : k + count, :] for k in range(overlap)], axis=-1)
    return frames[..., :n_fft]


def overlap_add(frames, hop: int, xp=np):
    """(..., T, n_fft) -> (..., n_fft + (T - 1) * hop): the adjoint of `_frame`."""
    *lead, count, n_fft = frames.shape
    overlap = -(-n_fft // hop)
    no_pad = [(0, 0)] * len(lead)
    frames = xp.pad(frames, no_pad + [(0, 0), (0, overlap * hop - n_fft)])
    parts = frames.reshape(*lead, count, overlap, hop)
    if xp is np:
        rows = np.zeros((*lead, count + overlap - 1, hop), frames.dtype)
        for k in range(overlap):
            rows[..., k : k + count, :] += parts[..., k, :]
    else:
        rows = sum(
            xp.pad(parts[..., k, :], no_pad + [(k, overlap - 1 - k), (0, 0)])
            for k in range(overlap)
        )
    return rows.reshape(*lead, -1)[..., : n_fft + (count - 1) * hop]


def _envelope(window: np.ndarray, count: int, hop: int, xp):
    """Sum of the squared windows of `count` frames, (n_fft + (count - 1) * hop,), float32 in JAX.

    Row q of `hop` samples gets part k of frame q - k, if that frame exists.
    """
    overlap = -(-len(window) // hop)
    squares = np.pad(window**2, (0, overlap * hop - len(window))).reshape(overlap, hop)
    frame = xp.arange(count + overlap - 1)[:, None] - xp.arange(overlap)[None, :]
    present = (frame >= 0) & (frame < count)
    rows = sum(
        xp.where(present[:, k : k + 1], squares[k : k + 1].astype(_real(xp)), 0)
        for k in range(overlap)
    )
    return rows.reshape(-1)[: len(window) + (count - 1) * hop]


def _real(xp):
    return np.float64 if xp is np else np.float32


def _check_coverage(window: np.ndarray, count: int, hop: int, start: int, stop: int) -> None:
    """Raise ValueError if no window covers one of the samples start to stop."""
    # All frames in the middle overlap alike: a short run of them has every sum that occurs.
    overlap = -(-len(window) // hop)
    spare = max(0, count - 2 * overlap - 2)
    envelope = _envelope(window, count - spare, hop, np)[start : stop - spare * hop]
    if envelope.size and envelope.min() < _MIN_ENVELOPE:
        sample = int(envelope.argmin())
        raise ValueError(
            f"hop = {hop} with this window: sample {sample} has a window sum of "
            f"{envelope[sample]:.1e}, expected at least {_MIN_ENVELOPE:.0e}"
        )
