"""Resampling: the reference's filter, for any pair of rates, in bounded memory."""

import math
import pathlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ba_jax.audio import resample, resampled_length

FRONTEND = pathlib.Path(__file__).parents[2] / "data" / "frontend.npz"


def noise(samples, seed=0, lead=()) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*lead, samples)).astype(np.float32)


def direct(x_S: np.ndarray, orig: int, new: int) -> np.ndarray:
    """Resample by the definition, in float64."""
    common = math.gcd(orig, new)
    orig, new = orig // common, new // common
    cutoff = 0.99 * min(orig, new)
    n = np.arange(len(x_S))
    m = np.arange(math.ceil(new * len(x_S) / orig))
    t = cutoff * (n[None] / orig - m[:, None] / new)
    window = np.where(np.abs(t) < 128, np.cos(np.pi * t / 256) ** 2, 0.0)
    return (np.sinc(t) * window * (cutoff / orig)) @ x_S.astype(np.float64)


@pytest.mark.parametrize(("rate", "key"), [(16000, "wave16"), (24000, "wave24")])
def test_golden(rate, key):
    with np.load(FRONTEND) as arrays:
        got = resample(arrays["wave"], int(arrays["sample_rate"]), rate)
        want = arrays[key]
    assert got.shape == want.shape and got.dtype == np.float32
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    ("orig", "new", "samples"),
    [
        (48000, 16000, 3000),
        (44100, 16000, 3000),
        (22050, 24000, 2000),
        (24000, 16000, 2000),
        (16001, 16000, 2500),
        (8000, 48000, 700),
        (4000, 191999, 60),
        (191999, 4000, 9000),
        (655350, 16000, 9000),
    ],
)
def test_equals_the_definition(orig, new, samples):
    x_S = noise(samples)
    want = direct(x_S, orig, new)
    got = resample(x_S, orig, new)
    assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


@settings(max_examples=40)
@given(orig=st.integers(1, 700), new=st.integers(1, 700), samples=st.integers(0, 400))
def test_any_rates_equal_the_definition(orig, new, samples):
    x_S = noise(samples, seed=orig)
    if samples * new > 40_000 * orig:
        return
    got, want = resample(x_S, orig, new), direct(x_S, orig, new)
    if orig == new:
        want = x_S  # the filter is skipped where nothing changes
    assert got.shape == want.shape
    assert len(got) == resampled_length(samples, orig, new) == math.ceil(samples * new / orig)
    assert np.abs(got - want).max(initial=0) <= 3e-6 * np.abs(want).max(initial=0)


def test_more_than_a_period_and_a_block():
    # Several periods of a filter that takes several blocks, too large to be cached.
    x_S = noise(3000)
    want = direct(x_S, 1301, 1300)
    got = resample(x_S, 1301, 1300)
    assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


@settings(max_examples=15)
@given(a=st.floats(-2, 2), b=st.floats(-2, 2), new=st.sampled_from([8000, 16000, 24000, 44100]))
def test_linear(a, b, new):
    x, y = noise(3000, 1), noise(3000, 2)
    got = resample(np.float32(a) * x + np.float32(b) * y, 22050, new)
    want = a * resample(x, 22050, new) + b * resample(y, 22050, new)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_passes_speech_band_and_stops_aliases():
    t = np.arange(48000) / 48000
    low, high = np.sin(2 * np.pi * 3000 * t), np.sin(2 * np.pi * 9000 * t)
    got = resample((low + high).astype(np.float32), 48000, 16000)
    want = np.sin(2 * np.pi * 3000 * np.arange(16000) / 16000)
    middle = slice(1000, -1000)
    np.testing.assert_allclose(got[middle], want[middle], atol=2e-4)


def test_axes():
    x = noise(700, lead=(2, 3))
    rows = np.stack([[resample(row, 24000, 16000) for row in rows] for rows in x])
    np.testing.assert_allclose(resample(x, 24000, 16000), rows, atol=1e-6)
    moved = resample(np.moveaxis(x, -1, 0), 24000, 16000, axis=0)
    np.testing.assert_allclose(np.moveaxis(moved, 0, -1), rows, atol=1e-6)


def test_same_rate_is_a_copy():
    x_S = noise(100)
    got = resample(x_S, 16000, 16000)
    np.testing.assert_array_equal(got, x_S)
    assert not np.shares_memory(got, x_S)


@pytest.mark.parametrize(
    ("orig", "new", "seconds"),
    [(16001, 16000, 30), (44101, 16000, 4), (191999, 4000, 1), (4000, 191999, 2)],
)
def test_memory_is_bounded_for_coprime_rates(orig, new, seconds):
    x_S = np.zeros(orig * seconds, np.float32)
    tracemalloc.start()
    y_S = resample(x_S, orig, new)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One padded copy of the input, the output, and 20 MB; the reference needs 8.6 GB at 16001 Hz.
    assert peak <= 1.1 * (x_S.nbytes + y_S.nbytes) + 20e6


@pytest.mark.parametrize(("orig", "new"), [(0, 16000), (16000, -1), (16000.5, 16000)])
def test_bad_rates(orig, new):
    with pytest.raises(ValueError, match="expected a positive integer"):
        resample(noise(100), orig, new)


def test_integer_samples_are_refused():
    with pytest.raises(ValueError, match="int16.*expected floating"):
        resample(np.zeros(100, np.int16), 8000, 16000)
