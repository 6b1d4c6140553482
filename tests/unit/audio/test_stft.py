"""STFT and overlap-add: torch's conventions, and the same numbers from NumPy and JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ba_jax.audio.stft import hann_window, overlap_add, stft

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
    traced = jax.jit(lambda x: stft(x, 64, 20, hann_window(40), pad_mode=pad_mode, xp=jnp))
    close(traced(x_S), got)


@pytest.mark.parametrize(("n_fft", "hop"), [(400, 160), (16, 4), (15, 4)])
@pytest.mark.parametrize("shape", [(), (2,)])
def test_overlap_add(n_fft, hop, shape):
    frames = noise(*shape, 9, n_fft)
    want = np.zeros((*shape, n_fft + 8 * hop), np.float32)
    for t in range(9):
        want[..., t * hop : t * hop + n_fft] += frames[..., t, :]
    close(overlap_add(frames, hop), want)
    close(jax.jit(lambda x: overlap_add(x, hop, xp=jnp))(frames), want)


def test_float64_stays_float64():
    assert stft(noise(100).astype(np.float64), 16, 4, hann_window(16)).dtype == np.complex128


def test_gradients_are_right():
    x_S, weight = noise(64), noise(17, 9)

    def weighted(x):
        return jnp.sum(weight * stft(x, 16, 4, hann_window(16), xp=jnp).real)

    leaf = torch.tensor(x_S, requires_grad=True)
    spectrum = torch.stft(leaf, 16, 4, window=torch_window(16), return_complex=True).real.mT
    (spectrum * torch.tensor(weight)).sum().backward()
    np.testing.assert_allclose(jax.jit(jax.grad(weighted))(x_S), leaf.grad, atol=1e-5)


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
