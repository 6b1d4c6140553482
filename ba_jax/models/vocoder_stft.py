"""Short-time spectra of the vocoder: tiny windows, ragged batches, reflected at each item's ends.

With windows of 16 samples a matrix product with the DFT's basis costs less than an FFT, and the
result is float32 on every device. Conventions are those of `torch.stft` and `torch.istft`. B batch,
S samples, R spectra (S / hop + 1), C channels (n_fft / 2 + 1 real, then as many imaginary parts).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.stft import hann_window, overlap_add
from ba_jax.models.layers import length_mask, zero_past

_EXACT = jax.lax.Precision.HIGHEST  # float32 products also where the device prefers fewer bits


def _dft_basis(n_fft: int) -> np.ndarray:
    """(n_fft, n_fft + 2): cosines, then minus sines, of the one-sided DFT."""
    angle = 2 * np.pi * np.arange(n_fft)[:, None] * np.arange(n_fft // 2 + 1)[None] / n_fft
    imaginary = -np.sin(angle)
    imaginary[:, [0, -1]] = 0  # not 1e-16: these bins have no imaginary part
    return np.concatenate([np.cos(angle), imaginary], axis=1)


def source_stft(wave_BS: jax.Array, samples_B: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Centred STFT, Hann window, reflected at each item's own ends (n_fft / 2 samples).

    Args:
      wave_BS: zero past `samples_B`.
      samples_B: lengths; they and S are multiples of hop and, where not 0, above n_fft / 2.
      n_fft, hop: samples of a window, and between windows.

    Returns:
      (B, S / hop + 1, n_fft + 2), real parts then imaginary parts, zero past samples / hop + 1.
    """
    batch, samples = wave_BS.shape
    half, step = n_fft // 2, hop
    start = wave_BS[:, half:0:-1]
    padded = jnp.concatenate([start, wave_BS, jnp.zeros((batch, half), wave_BS.dtype)], axis=1)

    def reflect(row: jax.Array, end: jax.Array) -> jax.Array:
        # In `padded`, the item ends at half + end. Reads of items of length 0 are masked below.
        tail = jax.lax.dynamic_slice(row, (end - 1,), (half,))[::-1]
        return jax.lax.dynamic_update_slice(row, tail, (half + end,))

    padded = jax.vmap(reflect)(padded, samples_B)
    blocks = padded.reshape(batch, -1, step)
    count = samples // step + 1
    frames = jnp.concatenate([blocks[:, i : i + count] for i in range(n_fft // step)], axis=2)
    basis = jnp.asarray(hann_window(n_fft)[:, None] * _dft_basis(n_fft), jnp.float32)
    spectrum = jnp.einsum("brn,nc->brc", frames, basis, precision=_EXACT)
    return zero_past(spectrum, jnp.where(samples_B > 0, samples_B // step + 1, 0))


def inverse_stft(spectrum_BRC: jax.Array, samples_B: jax.Array, n_fft: int, hop: int) -> jax.Array:
    """Inverse of `source_stft`, wave_BS: overlap-add over the window's squared envelope.

    The envelope counts only an item's own samples / hop + 1 spectra. Zero past `samples_B`.
    """
    count = spectrum_BRC.shape[1]
    inside = length_mask(jnp.where(samples_B > 0, samples_B // hop + 1, 0), count)
    spectrum = jnp.where(inside[:, :, None], spectrum_BRC, 0)
    # Bins between the first and the last also represent their mirror images.
    weight = np.full(n_fft // 2 + 1, 2.0)
    weight[[0, -1]] = 1.0
    window = hann_window(n_fft)
    basis = np.tile(weight, 2)[:, None] * _dft_basis(n_fft).T / n_fft * window[None]
    basis = jnp.asarray(basis, jnp.float32)
    frames = jnp.einsum("brc,cn->brn", spectrum, basis, precision=_EXACT)
    squares = inside[:, :, None] * jnp.asarray(window**2, jnp.float32)[None, None]

    def join(frames_BRN: jax.Array) -> jax.Array:
        wave_BS = overlap_add(frames_BRN, hop, xp=jnp)
        return wave_BS[:, n_fft // 2 : n_fft // 2 + (count - 1) * hop]

    envelope = join(squares)
    valid = length_mask(samples_B, (count - 1) * hop)
    return jnp.where(valid, join(frames) / jnp.where(valid, envelope, 1), 0)
