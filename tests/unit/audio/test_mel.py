"""The three mel spectrograms: goldens, definitions written out, batches, and bad input."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ba_jax.audio import (
    FLOW_MEL,
    HIFIGAN_MEL,
    WHISPER_MEL,
    WHISPER_MEL_80,
    AudioError,
    MelGeometry,
    log_mel,
    log_mel_batch,
    mel_filterbank,
    mel_length,
    whisper_log_mel,
    whisper_log_mel_batch,
)

FRONTEND = pathlib.Path(__file__).parents[2] / "data" / "frontend.npz"
GEOMETRIES = (WHISPER_MEL, WHISPER_MEL_80, HIFIGAN_MEL, FLOW_MEL)
WINDOW = 480_000  # samples in 30 s


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(FRONTEND) as arrays:
        return dict(arrays)


def noise(samples, seed=0) -> np.ndarray:
    """Noise that swells and fades, with pauses: neither flat nor of one level."""
    rng = np.random.default_rng(seed)
    level = np.interp(
        np.arange(samples),
        np.arange(0, samples + 4000, 4000),
        rng.uniform(0, 0.3, 2 + samples // 4000)[: len(range(0, samples + 4000, 4000))],
    )
    return (rng.standard_normal(samples) * level).astype(np.float32)


def power_frames(padded_S: np.ndarray, geometry: MelGeometry) -> np.ndarray:
    """|STFT|^2 in float64, frame by frame as the definition says."""
    g = geometry
    starts = np.arange(0, len(padded_S) - g.n_fft + 1, g.hop)
    window = np.sin(np.pi * np.arange(g.n_fft) / g.n_fft) ** 2
    frames = padded_S.astype(np.float64)[starts[:, None] + np.arange(g.n_fft)] * window
    return np.abs(np.fft.rfft(frames)) ** 2


def whisper_by_definition(wave_S, geometry=WHISPER_MEL) -> np.ndarray:
    wave_S = wave_S[:WINDOW]
    padded = np.pad(np.pad(wave_S, (0, WINDOW - len(wave_S))), 200, mode="reflect")
    mel = power_frames(padded, geometry)[:-1] @ mel_filterbank(geometry)
    log = np.log10(np.maximum(mel, 1e-10))
    log = np.maximum(log, log.max() - 8)
    return ((log + 4) / 4)[: min(3000, len(wave_S) // 160 + 1)]


def log_mel_by_definition(wave_S, geometry) -> np.ndarray:
    padded = np.pad(wave_S, (geometry.n_fft - geometry.hop) // 2, mode="reflect")
    magnitude = np.sqrt(power_frames(padded, geometry) + 1e-9)
    return np.log(np.maximum(magnitude @ mel_filterbank(geometry), 1e-5))


def assert_close(got, want, tolerance):
    assert got.shape == want.shape
    assert got.dtype == np.float32
    assert np.abs(got - want).max() <= tolerance


# --- filters and goldens --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "geometry",
    [
        *GEOMETRIES,
        MelGeometry(16000, 512, 128, 40, 50.0, 7000.0),
        MelGeometry(8000, 256, 80, 30, 0.0, 900.0),
    ],
)
def test_filters_equal_librosa(geometry):
    g = geometry
    want = librosa.filters.mel(
        sr=g.sample_rate, n_fft=g.n_fft, n_mels=g.n_mels, fmin=g.f_min, fmax=g.f_max
    ).T
    got = mel_filterbank(g)
    assert got.shape == want.shape == (g.n_fft // 2 + 1, g.n_mels)
    assert np.abs(got - want).max() <= 1e-6 * want.max()
    assert mel_filterbank(g) is got  # computed once


@pytest.mark.parametrize("edges", [(0, 8001), (-1, 8000), (300, 300)])
def test_filters_outside_the_spectrum(edges):
    with pytest.raises(ValueError, match="expected 0 <= f_min < f_max <= 8000"):
        mel_filterbank(MelGeometry(16000, 400, 160, 80, *map(float, edges)))


@pytest.mark.parametrize("xp", [np, jnp])
def test_goldens(xp):
    arrays = golden()
    jit = jax.jit if xp is jnp else lambda function: function
    for function, wave, key in (
        (functools.partial(whisper_log_mel, xp=xp), "wave16", "whisper_mel"),
        (functools.partial(log_mel, geometry=FLOW_MEL, xp=xp), "wave24", "mel24"),
    ):
        want = arrays[key].T
        got = jit(function)(arrays[wave])
        assert_close(np.asarray(got), want, 1e-4 * np.abs(want).max())
    assert len(arrays["whisper_mel"].T) == mel_length(len(arrays["wave16"])) == arrays["mel_frames"]


def test_frame_rates():
    assert [g.frame_rate for g in GEOMETRIES] == [100, 100, 62.5, 50]


# --- Whisper: equal to the definition, which pads to 30 s -----------------------------------------

EDGES = [400, 401, 559, 560, 599, 640, 47_999, 48_000, 479_000, 479_799, 479_800, 479_840,
         479_959, 479_960, 479_961, 479_999, 480_000, 480_001, 500_000]  # fmt: skip


@pytest.mark.parametrize("samples", EDGES)
@pytest.mark.parametrize("geometry", [WHISPER_MEL, WHISPER_MEL_80], ids=lambda g: str(g.n_mels))
def test_equals_the_padded_definition(samples, geometry):
    wave_S = noise(samples, samples)
    want = whisper_by_definition(wave_S, geometry)
    assert_close(whisper_log_mel(wave_S, geometry), want, 5e-5)


@settings(max_examples=20)
@given(samples=st.integers(400, WINDOW), seed=st.integers(0, 99))
def test_equals_the_padded_definition_at_any_length(samples, seed):
    wave_S = noise(samples, seed)
    assert_close(whisper_log_mel(wave_S), whisper_by_definition(wave_S), 5e-5)


@pytest.mark.parametrize("samples", [1000, 1119, 1120, 1279, 479_990, 480_000])
def test_maximum_in_a_frame_that_is_not_returned_or_the_last(samples):
    # A click at the very end is loudest in frames past the valid ones, which set the floor too.
    wave_S = 1e-3 * noise(samples)
    wave_S[-1] = 300.0
    want = whisper_by_definition(wave_S)
    assert_close(whisper_log_mel(wave_S), want, 5e-5)
    assert want.min() > -1.5 + 0.1  # the floor is above that of silence


@pytest.mark.parametrize("samples", [400, 16_000, 480_000])
def test_silence_is_finite(samples):
    silence = np.zeros(samples, np.float32)
    geometries = (HIFIGAN_MEL, FLOW_MEL) if samples > 720 else ()

    def mels(wave_S, xp):
        whisper = whisper_log_mel(wave_S, xp=xp)
        return whisper, [log_mel(wave_S, geometry, xp=xp) for geometry in geometries]

    for whisper, others in (mels(silence, np), jax.jit(lambda x: mels(x, jnp))(silence)):
        np.testing.assert_allclose(whisper, -1.5, atol=1e-6)
        assert all(np.isfinite(mel).all() for mel in others)


def test_float64_and_loud_input_stay_finite_float32():
    wave_S = noise(4000).astype(np.float64)
    np.testing.assert_array_equal(whisper_log_mel(wave_S), whisper_log_mel(wave_S.astype("f4")))
    loud = np.float32(2.0**31) * np.sign(noise(4000))
    assert np.isfinite(whisper_log_mel(loud)).all() and np.isfinite(log_mel(loud)).all()


def test_long_clips_come_in_runs_of_frames():
    # More frames than the NumPy path transforms at a time, for each geometry.
    wave_S = noise(200_000)
    for geometry in (HIFIGAN_MEL, FLOW_MEL):
        assert_close(log_mel(wave_S, geometry), log_mel_by_definition(wave_S, geometry), 1e-4)


# --- HiFi-GAN mels --------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [HIFIGAN_MEL, FLOW_MEL], ids=lambda g: str(g.sample_rate))
@pytest.mark.parametrize("extra", [0, 1, 100, 3000, 30_000])
def test_log_mel_equals_the_definition(geometry, extra):
    samples = (geometry.n_fft - geometry.hop) // 2 + 1 + extra
    wave_S = noise(samples, extra)
    want = log_mel_by_definition(wave_S, geometry)
    assert want.shape == (samples // geometry.hop, 80)
    assert_close(log_mel(wave_S, geometry), want, 1e-4)


# --- JAX ------------------------------------------------------------------------------------------

TWO_FFTS = 2e-5
"""Each FFT in float32 is within 1e-5 of float64 at faint bins; JAX 0.12 has another than SciPy."""


@pytest.mark.parametrize("samples", [400, 16_123, 479_970])
def test_whisper_in_jax_equals_numpy(samples):
    wave_S = noise(samples)
    got = jax.jit(functools.partial(whisper_log_mel, xp=jnp))(wave_S)
    assert_close(np.asarray(got), whisper_log_mel(wave_S), TWO_FFTS)


@pytest.mark.parametrize("geometry", [HIFIGAN_MEL, FLOW_MEL], ids=lambda g: str(g.sample_rate))
def test_log_mel_in_jax_equals_numpy(geometry):
    wave_S = noise(9_001)
    got = jax.jit(functools.partial(log_mel, geometry=geometry, xp=jnp))(wave_S)
    assert_close(np.asarray(got), log_mel(wave_S, geometry), 1e-4)


BATCHES = [
    (whisper_log_mel_batch, whisper_log_mel, WHISPER_MEL, 400),
    (log_mel_batch, log_mel, HIFIGAN_MEL, 385),
    (log_mel_batch, log_mel, FLOW_MEL, 721),
]


@pytest.mark.parametrize(("batch", "single", "geometry", "shortest"), BATCHES)
@pytest.mark.parametrize("padding", [0.0, 7.0, np.nan, np.inf])
def test_batch_equals_items_alone_whatever_the_padding(batch, single, geometry, shortest, padding):
    lengths = [9000, shortest, shortest - 1, 0, 8999, 4321, 20_000]
    longest = 9000
    waves = np.full((len(lengths), longest), padding, np.float32)
    for i, length in enumerate(lengths):
        waves[i, :length] = noise(longest, i)[:length]
    run = jax.jit(functools.partial(batch, geometry=geometry))
    mel_BTM, mel_lengths = map(np.asarray, run(waves, np.asarray(lengths, np.int32)))
    assert mel_BTM.dtype == np.float32
    for i, length in enumerate(lengths):
        if length < shortest:
            assert mel_lengths[i] == 0
            continue
        want = single(noise(longest, i)[:length], geometry)
        assert mel_lengths[i] == len(want)
        assert_close(mel_BTM[i, : len(want)], want, 1e-4)
    is_padding = np.arange(mel_BTM.shape[1])[None] >= mel_lengths[:, None]
    assert (mel_BTM[is_padding] == 0).all()
    assert mel_BTM.shape[1] == mel_lengths.max()


def test_batch_of_whole_windows():
    lengths = np.array([480_000, 479_965], np.int32)
    waves = np.stack([noise(481_000, i) for i in range(2)])
    mel_BTM, mel_lengths = jax.jit(whisper_log_mel_batch)(waves, lengths)
    np.testing.assert_array_equal(mel_lengths, [3000, 3000])
    for i, length in enumerate(lengths):
        assert_close(np.asarray(mel_BTM[i]), whisper_log_mel(waves[i, :length]), TWO_FFTS)


@pytest.mark.parametrize(("batch", "single", "geometry", "shortest"), BATCHES)
def test_gradients_are_finite_and_zero_on_padding(batch, single, geometry, shortest):
    lengths = np.array([3000, shortest - 1, 1500], np.int32)
    waves = np.stack([noise(3000, i) for i in range(3)])
    waves[2, 1500:] = np.nan
    waves[2, :1500] = 0  # silence: the root and the logarithm at their worst

    def total(x):
        return jnp.sum(batch(x, lengths, geometry)[0] ** 2)

    grads = np.asarray(jax.jit(jax.grad(total))(waves))
    assert np.isfinite(grads).all()
    assert np.abs(grads[0]).max() > 0
    assert (grads[1] == 0).all() and (grads[2, 1500:] == 0).all()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize(
    ("function", "wave", "words"),
    [
        (whisper_log_mel, np.zeros(0, np.float32), "0 samples.*at least 400"),
        (whisper_log_mel, np.zeros(399, np.float32), "399 samples.*at least 400"),
        (whisper_log_mel, np.zeros((1, 800), np.float32), r"\(1, 800\).*expected a floating"),
        (whisper_log_mel, np.zeros(800, np.int16), "int16.*expected a floating"),
        (log_mel, np.zeros(720, np.float32), "720 samples.*at least 721"),
        (functools.partial(log_mel, geometry=HIFIGAN_MEL), np.zeros(384, np.float32), "384.*385"),
    ],
)
def test_unusable_waveforms(xp, function, wave, words):
    with pytest.raises(AudioError, match=words):
        function(wave, xp=xp)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("function", [whisper_log_mel, log_mel])
def test_samples_that_are_no_numbers(function, value):
    wave_S = noise(2000)
    wave_S[1234] = value
    with pytest.raises(AudioError, match=f"sample 1234 is {value}"):
        function(wave_S)


@pytest.mark.parametrize("batch", [whisper_log_mel_batch, log_mel_batch])
@pytest.mark.parametrize("shape", [(2, 399), (800,), (1, 2, 800)])
def test_unusable_batches(batch, shape):
    with pytest.raises(AudioError, match="expected a floating array .B, S."):
        batch(np.zeros(shape, np.float32), np.zeros(shape[:1], np.int32))
