"""STFT and its inverse: torch's conventions, and the same numbers from NumPy and JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ba_jax.audio import hann_window, istft, stft

SIZES = [(400, 160), (16, 4), (1920, 480), (1024, 256), (15, 4), (64, 48)]


def noise(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def torch_window(length):
    return torch.hann_window(length)


def close(got, want, tolerance=1e-6):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 400])
def test_hann_window(length):
    np.testing.assert_allclose(hann_window(length), torch_window(length), atol=1e-6)
    with pytest.raises(ValueError, match="read-only"):
        hann_window(length)[0] = 1


@pytest.mark.parametrize(("n_fft", "hop"), SIZES)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("samples", [1920, 3001])
def test_equals_torch(n_fft, hop, center, samples):
    x_BS = noise(2, samples)
    want = torch.stft(
        torch.from_numpy(x_BS),
        n_fft,
        hop,
        window=torch_window(n_fft),
        center=center,
        return_complex=True,
    )
    want = want.transpose(1, 2).numpy()
    got = stft(x_BS, n_fft, hop, hann_window(n_fft), center=center)
    assert got.dtype == np.complex64
    close(got, want, 2e-6)
    traced = jax.jit(
        functools.partial(
            stft, n_fft=n_fft, hop=hop, window=hann_window(n_fft), center=center, xp=jnp
        )
    )(x_BS)
    assert traced.dtype == np.complex64
    close(traced, got)


@pytest.mark.parametrize("pad_mode", ["reflect", "constant"])
def test_short_window_and_padding_mode(pad_mode):
    x_S = noise(500)
    want = torch.stft(
        torch.from_numpy(x_S),
        64,
        20,
        win_length=40,
        window=torch_window(40),
        pad_mode=pad_mode,
        return_complex=True,
    )
    got = stft(x_S, 64, 20, hann_window(40), pad_mode=pad_mode)
    close(got, want.T.numpy(), 2e-6)
    close(stft(x_S, 64, 20, hann_window(40), pad_mode=pad_mode, xp=jnp), got)


@pytest.mark.parametrize(("n_fft", "hop"), [(400, 160), (16, 4), (15, 4), (1920, 480)])
@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("extra", [None, -7, 5])
def test_inverse_equals_torch(n_fft, hop, shape, extra):
    frames, bins = 9, n_fft // 2 + 1
    # With imaginary parts at 0 Hz and at the Nyquist frequency, which are to be ignored.
    spectrum = (noise(*shape, frames, bins) + 1j * noise(*shape, frames, bins, seed=1)).astype(
        np.complex64
    )
    length = None if extra is None else hop * (frames - 1) + extra
    want = torch.istft(
        torch.from_numpy(spectrum).transpose(-1, -2),
        n_fft,
        hop,
        window=torch_window(n_fft),
        length=length,
    ).numpy()
    window = hann_window(n_fft)
    got = istft(spectrum, n_fft, hop, window, length=length)
    assert got.dtype == np.float32
    close(got, want, 2e-6)
    traced = jax.jit(lambda s: istft(s, n_fft, hop, window, length=length, xp=jnp))(spectrum)
    assert traced.dtype == np.float32
    close(traced, got)


def test_inverse_without_centring_equals_torch():
    spectrum = stft(noise(300), 16, 4, np.ones(16), center=False)
    want = torch.istft(torch.from_numpy(spectrum).T, 16, 4, window=torch.ones(16), center=False)
    close(istft(spectrum, 16, 4, np.ones(16), center=False), want.numpy(), 2e-6)


def test_length_beyond_the_frames_is_zero():
    spectrum = stft(noise(320), 16, 4, hann_window(16))
    for xp in (np, jnp):
        got = istft(spectrum, 16, 4, np.ones(16), length=400, xp=xp)
        assert got.shape == (400,)
        assert np.abs(got[336 - 8 :]).max() == 0


@settings(max_examples=30)
@given(
    n_fft=st.integers(4, 80),
    share=st.floats(0.1, 0.5),
    samples=st.integers(100, 700),
    rows=st.integers(1, 3),
)
def test_round_trip(n_fft, share, samples, rows):
    hop = max(1, int(share * n_fft))
    x = noise(rows, samples, seed=samples)
    window = hann_window(n_fft)
    # A periodic Hann window of half overlap or more covers every sample; float64 shows it exactly.
    back = istft(stft(x.astype(np.float64), n_fft, hop, window), n_fft, hop, window)
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, x[:, : back.shape[1]], atol=1e-10)
    assert samples - back.shape[1] < hop + n_fft % 2


def test_float64_stays_float64():
    assert stft(noise(100).astype(np.float64), 16, 4, hann_window(16)).dtype == np.complex128


def test_gradients_are_finite_and_right():
    x_S = noise(64)
    window = hann_window(16)

    def energy(x):
        spectrum = stft(x, 16, 4, window, xp=jnp)
        return jnp.sum(istft(spectrum, 16, 4, window, xp=jnp) ** 2)

    # The round trip is the identity, so that the gradient of its energy is 2 x.
    np.testing.assert_allclose(jax.grad(energy)(x_S), 2 * x_S, atol=1e-4)


@pytest.mark.parametrize(
    ("samples", "kwargs", "words"),
    [
        (200, dict(n_fft=400, hop=160), "200 samples: reflecting 200 takes at least 201"),
        (399, dict(n_fft=400, hop=160, center=False), "399 samples: expected at least one frame"),
        (400, dict(n_fft=400, hop=0), "hop = 0"),
        (400, dict(n_fft=100, hop=10, window=np.ones(101)), "1 <= W <= n_fft"),
    ],
)
def test_bad_sizes(samples, kwargs, words):
    kwargs.setdefault("window", np.ones(kwargs["n_fft"]))
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        stft(noise(samples), **kwargs)


def test_inverse_that_does_not_exist():
    spectrum = np.ones((5, 9), np.complex64)
    with pytest.raises(ValueError, match="sample 0 has a window sum of 0"):
        istft(spectrum, 16, 4, hann_window(16), center=False)
    with pytest.raises(ValueError, match="expected at least"):
        istft(np.ones((500, 9), np.complex64), 16, 20, np.ones(16))
    with pytest.raises(ValueError, match="8 bins"):
        istft(np.ones((5, 8), np.complex64), 16, 4, hann_window(16))
    with pytest.raises(ValueError, match="0 frames"):
        istft(np.ones((0, 9), np.complex64), 16, 4, hann_window(16))
