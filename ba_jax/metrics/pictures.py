"""Mels as PNG files."""

from __future__ import annotations

import io

import numpy as np

COLOURS = "inferno"  # dark to light with even steps of brightness, so readable in grey too
NOT_FINITE = (0, 90, 255)
MIN_HEIGHT = 160  # pixels; each bin is repeated until the picture is at least as high


def draw_mel(mel_TM: np.ndarray) -> np.ndarray:
    """Pixels (height, width, 3), uint8, of a mel: time to the right, low frequencies at the bottom.

    Colours run from the mel's minimum to its maximum; NaN and Inf are blue. A frame and a bin are
    both ceil(160 / M) pixels wide.

    Raises:
      ValueError: an array that is not real numbers (T, M) with T, M >= 1.
    """
    from matplotlib import colormaps  # takes a third of a second: loaded for the first picture

    mel = np.asarray(mel_TM)
    if mel.ndim != 2 or not mel.size or mel.dtype.kind in "cOSU":
        raise ValueError(f"mel is {mel.dtype}{mel.shape}: expected real numbers (frames, bins)")
    mel = np.ma.masked_invalid(mel.astype(np.float64))  # bfloat16 too
    low, high = (mel.min(), mel.max()) if mel.count() else (0.0, 0.0)
    colours = colormaps[COLOURS].with_extremes(bad=np.array(NOT_FINITE) / 255)
    pixels = colours((mel - low) / (high - low or 1.0), bytes=True)[..., :3]
    zoom = -(-MIN_HEIGHT // mel.shape[1])
    return pixels.transpose(1, 0, 2)[::-1].repeat(zoom, axis=0).repeat(zoom, axis=1)


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels (height, width, 3), uint8, as a PNG file."""
    from matplotlib import image

    stream = io.BytesIO()
    image.imsave(stream, pixels, format="png")
    return stream.getvalue()
