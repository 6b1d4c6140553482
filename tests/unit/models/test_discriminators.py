import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ba_jax.models.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    ResolutionDiscriminator,
    ShortWaveError,
)
from ba_jax.models.weight_norm import narrow_conv

SMALL = DiscriminatorConfig(
    periods=(2, 5),
    period_channels=(4, 6, 8),
    fft_sizes=(256, 128),
    bands=((0.0, 0.3), (0.3, 1.0)),
    resolution_channels=4,
)
MODEL = Discriminators(SMALL)
SAMPLES = 403  # a multiple of neither period nor hop


@pytest.fixture(scope="module")
def wave():
    return np.random.default_rng(0).normal(0, 0.2, (2, SAMPLES)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(wave):
    rng = np.random.default_rng(1)

    def draw(path, x):
        # Gains that are not the norms of kernel_v, and biases other than 0.
        if path[-1].key == "kernel_g":
            return rng.uniform(0.5, 2, x.shape).astype(np.float32)
        return rng.normal(0, 0.1, x.shape).astype(np.float32)

    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), wave)
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def run():
    return jax.jit(MODEL.apply)


@pytest.fixture(scope="module")
def judged(run, variables, wave):
    return run(variables, wave)


def torch_conv(x, params, **kwargs):
    """A weight-normalised Conv2d of PyTorch with our parameters."""
    v = torch.tensor(np.asarray(params["kernel_v"])).permute(3, 2, 0, 1)
    conv = torch.nn.Conv2d(v.shape[1], v.shape[0], tuple(v.shape[2:]), **kwargs)
    conv = torch.nn.utils.parametrizations.weight_norm(conv)
    with torch.no_grad():
        gain = torch.tensor(np.asarray(params["kernel_g"])).reshape(-1, 1, 1, 1)
        conv.parametrizations.weight.original0.copy_(gain)
        conv.parametrizations.weight.original1.copy_(v)
        conv.bias.copy_(torch.tensor(np.asarray(params["bias"])))
        return conv(x)


def torch_period(wave, params, period):
    """HiFi-GAN section 2.3: rows of `period` samples, convolutions of width 1."""
    x = F.pad(wave[:, None], (0, -wave.shape[1] % period), mode="reflect")
    x = x.view(x.shape[0], 1, -1, period)
    features = []
    count = len(params) - 1
    for i in range(count):
        stride = 1 if i == count - 1 else 3
        x = torch_conv(x, params[f"conv_{i}"], stride=(stride, 1), padding=(2, 0))
        x = F.leaky_relu(x, 0.1)
        features.append(x)
    x = torch_conv(x, params["conv_post"], padding=(1, 0))
    return x.flatten(1), [*features, x]


def torch_resolution(wave, params, fft_size, bands):
    """DAC section 3.4: complex spectrogram, bands of its bins, 2-D convolutions."""
    wave = wave - wave.mean(1, keepdim=True)
    wave = 0.8 * wave / (wave.abs().max(1, keepdim=True).values + 1e-9)
    window = torch.hann_window(fft_size)
    spectrum = torch.stft(wave, fft_size, fft_size // 4, window=window, return_complex=True)
    spectrum = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
    bins = fft_size // 2 + 1
    features, judged = [], []
    for b, (low, high) in enumerate(bands):
        x = spectrum[..., int(low * bins) : int(high * bins)]
        for i, (width, stride) in enumerate([(9, 1), (9, 2), (9, 2), (9, 2), (3, 1)]):
            conv = params[f"band_{b}_conv_{i}"]
            x = F.leaky_relu(torch_conv(x, conv, stride=(1, stride), padding=(1, width // 2)), 0.1)
            features += [x] if i else []
        judged.append(x)
    x = torch_conv(torch.cat(judged, 3), params["conv_post"], padding=1)
    return x.flatten(1), [*features, x]


def test_equals_torch(variables, wave, judged):
    params = variables["params"]
    x = torch.tensor(wave)
    expected = [
        torch_period(x, params["multi_period"][f"period_{p}"], p) for p in SMALL.periods
    ] + [
        torch_resolution(x, params["multi_resolution"][f"fft_{n}"], n, SMALL.bands)
        for n in SMALL.fft_sizes
    ]
    scores, features = judged
    assert len(scores) == len(features) == len(expected)
    for score, maps, (torch_score, torch_maps) in zip(scores, features, expected, strict=True):
        peak = float(torch_score.abs().max())
        np.testing.assert_allclose(score, torch_score, rtol=0, atol=2e-5 * peak)
        for ours, theirs in zip(maps, torch_maps, strict=True):
            theirs = theirs.permute(0, 2, 3, 1).numpy()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_published_sizes():
    config = DiscriminatorConfig()
    model = Discriminators(config)
    wave = jax.ShapeDtypeStruct((2, 24000), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), wave)
    scores, features = jax.eval_shape(model.apply, variables, wave)
    # Five convolutions and the last one a period; four of five a band and the last one a window.
    assert [len(maps) for maps in features] == [6] * 5 + [4 * 5 + 1] * 3
    rows = 24000 // 2
    for i, channels in enumerate(config.period_channels):
        rows = rows if i == 4 else -(-rows // 3)
        assert features[0][i].shape == (2, rows, 2, channels)
    assert scores[0].shape == (2, rows * 2)
    for n, maps, score in zip(config.fft_sizes, features[5:], scores[5:], strict=True):
        frames = 1 + 24000 // (n // 4)
        assert all(m.shape[:2] == (2, frames) for m in maps)
        assert all(m.shape[3] == 32 for m in maps[:-1])
        assert score.shape == (2, maps[-1].shape[1] * maps[-1].shape[2])
    count = sum(x.size for x in jax.tree.leaves(variables["params"]["multi_period"]))
    gains = sum(
        x.size
        for path, x in jax.tree_util.tree_leaves_with_path(variables["params"]["multi_period"])
        if path[-1].key == "kernel_g"
    )
    assert count - gains == 41_092_165  # five times 8.2 M, weights and biases


def test_period_is_a_fold(run, variables, wave, judged):
    # Samples a period apart share a column: a change in one column reaches no other.
    changed = wave.copy()
    changed[:, 3::5] += 0.1
    before, after = judged[1][1], run(variables, changed)[1][1]
    for a, b in zip(before, after, strict=True):
        difference = np.abs(np.asarray(a) - np.asarray(b)).max(axis=(0, 1, 3))
        assert difference[3] > 0
        np.testing.assert_array_equal(difference[[0, 1, 2, 4]], 0)


def test_resolution_ignores_loudness_and_offset(wave):
    model = ResolutionDiscriminator(128, SMALL.bands, 4)
    spectrogram = jax.jit(lambda wave: model.apply({}, wave, method="spectrogram"))
    plain, scaled = np.asarray(spectrogram(wave)), spectrogram(0.03 * wave + 0.5)
    assert plain.shape == (2, 1 + SAMPLES // 32, 65, 2)
    np.testing.assert_allclose(plain, scaled, rtol=0, atol=1e-5 * np.abs(plain).max())
    # A sine of peak 1 on bin 8 becomes one of 0.8: magnitude 0.8 / 2 * sum of the Hann window.
    sine = np.sin(2 * np.pi * 8 / 128 * np.arange(1024))[None].astype(np.float32)
    magnitude = np.linalg.norm(np.asarray(spectrogram(sine)), axis=-1)
    np.testing.assert_allclose(magnitude[0, 8:20, 8], 0.8 / 2 * 64, rtol=1e-4)


@jax.jit
def gradients(variables, wave):
    """Gradients of a loss on all scores and features, in the parameters and the wave."""

    def loss(variables, wave):
        scores, features = MODEL.apply(variables, wave)
        maps = [jnp.mean(jnp.abs(m)) for maps in features for m in maps]
        return sum(jnp.mean((1 - s) ** 2) for s in scores) + sum(maps)

    return jax.grad(loss, argnums=(0, 1))(variables, wave)


@pytest.mark.parametrize("kind", ["noise", "silence"])
def test_gradients_are_finite(variables, wave, kind):
    wave = wave if kind == "noise" else np.zeros_like(wave)
    weights, samples = gradients(variables, wave)
    for path, x in jax.tree_util.tree_leaves_with_path(weights):
        assert np.isfinite(x).all(), path
        if kind == "noise":
            assert np.abs(x).max() > 0, path
    assert np.isfinite(samples).all()


def test_bfloat16(variables, wave, judged):
    scores, _ = jax.jit(Discriminators(SMALL, dtype=jnp.bfloat16).apply)(variables, wave)
    for ours, exact in zip(scores, judged[0], strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.abs(np.asarray(ours, np.float32) - exact).max()
        assert error < 0.03 * np.abs(exact).max()  # bfloat16 rounds by 2^-9, a few times over


def test_bad_input(variables):
    assert SMALL.min_samples == 129
    with pytest.raises(ShortWaveError, match=r"\(2, 128\): expected .* >= 129"):
        MODEL.apply(variables, jnp.zeros((2, 128)))
    with pytest.raises(ShortWaveError, match=r"\(200,\)"):
        MODEL.apply(variables, jnp.zeros(200))
    with pytest.raises(ValueError, match=r"band \(0.0, 0.1\): holds none of the 5 bins"):
        DiscriminatorConfig(fft_sizes=(8,))


@pytest.mark.parametrize(
    "width, kernel, stride", [(65, (3, 9), 1), (64, (3, 9), 2), (5, (3, 3), 1), (9, (1, 2), 3)]
)
def test_narrow_convolution_is_a_convolution(width, kernel, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, width, 2)).astype(np.float32)
    taps = rng.normal(size=(*kernel, 2, 3)).astype(np.float32)
    padding = (kernel[0] // 2, kernel[1] // 2)
    want = F.conv2d(
        torch.tensor(x).permute(0, 3, 1, 2),
        torch.tensor(taps).permute(3, 2, 0, 1),
        stride=(1, stride),
        padding=padding,
    )
    got = jax.jit(narrow_conv, static_argnums=(2, 3))(x, taps, stride, padding)
    np.testing.assert_allclose(got, want.permute(0, 2, 3, 1), atol=1e-5)
