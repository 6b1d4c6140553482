"""Pixels of mels: orientation, colours, PNG files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from ba_jax.metrics.pictures import NOT_FINITE, draw_mel, encode_png

DARKEST, BRIGHTEST = (colormaps["inferno"](level, bytes=True)[:3] for level in (0.0, 1.0))


def test_time_runs_right_and_frequency_up():
    mel_TM = np.zeros((30, 80), np.float32)
    mel_TM[29, 0] = 1.0  # the last frame, the lowest bin
    pixels = draw_mel(mel_TM)
    assert pixels.shape == (160, 60, 3) and pixels.dtype == np.uint8
    bright = np.argwhere((pixels == BRIGHTEST).all(axis=-1))
    assert bright.min(axis=0).tolist() == [158, 58] and bright.max(axis=0).tolist() == [159, 59]
    assert (pixels[0, 0] == DARKEST).all()


def test_brighter_is_louder():
    pixels = draw_mel(np.linspace(-11, 2, 100)[:, None]).astype(int)
    grey = pixels[0, ::160] @ (299, 587, 114)
    assert (np.diff(grey) > 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int32"])
def test_any_real_type(dtype):
    import ml_dtypes

    dtype = getattr(ml_dtypes, dtype, dtype)
    mel = np.array([[0, 1], [2, 3]])
    np.testing.assert_array_equal(draw_mel(mel.astype(dtype)), draw_mel(mel))


def test_nan_and_inf_are_visible():
    mel_TM = np.array([[0.0, np.nan], [np.inf, 1.0]])
    pixels = draw_mel(mel_TM)[::80, ::80]
    assert pixels.tolist() == [
        [list(NOT_FINITE), [*BRIGHTEST]],
        [[*DARKEST], list(NOT_FINITE)],
    ]
    assert (draw_mel(np.full((2, 80), np.nan)) == NOT_FINITE).all()
    assert (draw_mel(np.full((2, 80), -4.0)) == DARKEST).all()  # a constant divides by nothing


def test_png_gives_the_pixels_back():
    pixels = draw_mel(np.random.default_rng(0).normal(size=(20, 80)))
    read = np.asarray(Image.open(io.BytesIO(encode_png(pixels))).convert("RGB"))
    np.testing.assert_array_equal(read, pixels)


@pytest.mark.parametrize(
    "mel", [np.zeros(5), np.zeros((0, 80)), np.zeros((2, 3, 4)), np.zeros((2, 2), complex)]
)
def test_other_arrays_are_refused(mel):
    with pytest.raises(ValueError, match="expected real numbers"):
        draw_mel(mel)
