"""Short-time Fourier transform and overlap-add for NumPy and JAX arrays, with torch's conventions.

`xp` is the array library: `numpy` (the default) or `jax.numpy`. This module imports only NumPy and
SciPy; callers pass JAX. Spectra are (..., T, F): frames before frequency.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.fft


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
      pad_mode: mode of `numpy.pad` ("reflect", "constant", ...).
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
