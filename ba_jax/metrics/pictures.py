"""Mels as PNG files."""

from __future__ import annotations

import io

import numpy as np

# Dark to light; brightness rises evenly, so that the picture is readable in grey too.
COLOURS = (
    (0, 0, 4),
    (40, 11, 84),
    (101, 21, 110),
    (159, 42, 99),
    (212, 72, 66),
    (245, 125, 21),
    (250, 193, 39),
    (252, 255, 164),
)
NOT_FINITE = (0, 90, 255)
MIN_HEIGHT = 160  # pixels; each bin is repeated until the picture is at least as high


def draw_mel(mel_TM: np.ndarray) -> np.ndarray:
    """Pixels (height, width, 3), uint8, of a mel: time to the right, low frequencies at the bottom.

    Colours run from the mel's minimum to its maximum; NaN and Inf are blue. A frame and a bin are
    both ceil(160 / M) pixels wide.

    Raises:
      ValueError: an array that is not real numbers (T, M) with T, M >= 1.
    """
    mel = np.asarray(mel_TM)
    if mel.ndim != 2 or not mel.size or mel.dtype.kind in "cOSU":
        raise ValueError(f"mel is {mel.dtype}{mel.shape}: expected real numbers (frames, bins)")
    mel = mel.astype(np.float64)  # bfloat16 too
    finite = np.isfinite(mel)
    low, high = (mel[finite].min(), mel[finite].max()) if finite.any() else (0.0, 0.0)
    level = np.where(finite, mel - low, 0) / (high - low or 1.0)
    anchors = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, anchors, [c[i] for c in COLOURS]) for i in range(3)]
    pixels_TM3 = np.where(finite[:, :, None], np.stack(channels, axis=-1), NOT_FINITE)
    pixels = pixels_TM3.transpose(1, 0, 2)[::-1].round().astype(np.uint8)
    zoom = -(-MIN_HEIGHT // mel.shape[1])
    return pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels (height, width, 3), uint8, as a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()
