import functools
import json
import pathlib

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ba_jax.convert.tables import vocoder as table
from ba_jax.models.vocoder import Snake, Vocoder, WindowPosition
from ba_jax.models.vocoder_config import VocoderConfig, receptive_field
from ba_jax.models.vocoder_source import (
    draw_source_noise,
    draw_source_phase,
    frame_phase,
    sine_of_cycles,
    sine_squared,
)
from ba_jax.models.vocoder_stft import inverse_stft, source_stft
from ba_jax.models.weight_norm import WeightNormConv, WeightNormConvTranspose

TINY = pathlib.Path(__file__).parents[2] / "data" / "tiny"

# All parts of the real vocoder, with 24 samples a frame: quick to compile.
SMALL = VocoderConfig(
    base_channels=16,
    f0_channels=4,
    mel_bins=5,
    sample_rate=1200,
    harmonics=2,
    upsample_rates=(2, 3),
    upsample_kernels=(4, 7),
    resblock_kernels=(3, 5),
    source_resblock_kernels=(3, 5),
    dilations=(2,),
    f0_layers=2,
)
MODEL = Vocoder(SMALL)
LENGTHS = np.array([3, 9, 0, 1], np.int32)


@pytest.fixture(scope="module")
def checkpoint():
    state = torch.load(TINY / "hift.pt", weights_only=True, map_location="cpu")
    return {name: tensor.numpy() for name, tensor in state.items()}


def shapes_of(model, frames=2):
    args = (
        jnp.zeros((1, frames, model.config.mel_bins)),
        jnp.array([frames]),
        jax.random.key(0),
    )
    return jax.eval_shape(model.init, jax.random.key(0), *args)


def imported(checkpoint):
    """Config and variables, by the rows of the table; every tensor must be used once."""
    config = table.config_from_shapes({name: x.shape for name, x in checkpoint.items()})
    flat = {}
    rows = table.rows(config)
    assert sorted(row.source for row in rows) == sorted(checkpoint)
    for row in rows:
        (target,) = row.targets
        assert target not in flat
        value = checkpoint[row.source]
        flat[target] = einops.rearrange(value, row.layout) if row.layout else value
    tree = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[leaf] = value
    return config, {"params": tree["params"]["vocoder"]}


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)

    def draw(path, x):
        leaf = path[-1].key
        if leaf == "alpha":
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        if leaf == "kernel_g":
            return rng.uniform(0.3, 0.6, x.shape).astype(np.float32)
        return rng.normal(0, 0.3, x.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes_of(MODEL))
    # f0 around the threshold of 10 Hz, so that some frames are unvoiced.
    classifier = variables["params"]["f0_predictor"]["classifier"]
    classifier["kernel"] *= 300
    return variables


@pytest.fixture(scope="module")
def mel():
    rng = np.random.default_rng(1)
    mel = rng.normal(0, 1, (len(LENGTHS), LENGTHS.max(), SMALL.mel_bins)).astype(np.float32)
    for item, length in zip(mel, LENGTHS, strict=True):
        item[length:] = np.nan
    return mel


@jax.jit
def run(variables, mel, lengths, keys):
    f0 = MODEL.apply(variables, mel, lengths, method="f0")
    wave, source = MODEL.apply(variables, mel, lengths, keys)
    return f0, source[..., 0], wave


def close(ours, expected, share=1e-5):
    """Equal within `share` of the expected peak."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=share * np.abs(expected).max())


# Against the reference


def test_golden(checkpoint):
    config, variables = imported(checkpoint)
    sizes = json.loads((TINY / "vocoder_config.json").read_text())
    assert config == VocoderConfig(**sizes)
    golden = np.load(TINY / "golden.npz")
    mel = golden["voc_mel"].transpose(0, 2, 1)
    batch, frames, _ = mel.shape
    # A wider batch with arbitrary padding; the goldens come from a batch without padding.
    mel = np.pad(mel, ((0, 0), (0, 2), (0, 0)), constant_values=np.nan)
    lengths = jnp.full(batch, frames)
    phase = golden["voc_phase"][:, :, 0]

    @jax.jit
    def run(variables, mel, phase):
        model = Vocoder(config).bind(variables)
        f0 = model.f0(mel, lengths)
        source, uv = model.source(f0, lengths, phase)
        return f0, source, uv, model.decode(mel, source, lengths)

    f0, source, uv, wave = jax.device_get(run(variables, mel, phase))
    samples = frames * config.frame_samples
    close(f0[:, :frames], golden["voc_f0"], 1e-4)
    close(source[:, :samples, 0], golden["voc_source"][:, 0], 1e-4)
    close(uv[:, :samples], golden["voc_uv"], 0)
    close(wave[:, :samples], golden["voc_wav"], 1e-4)
    for padding in (f0[:, frames:], source[:, samples:], uv[:, samples:], wave[:, samples:]):
        np.testing.assert_array_equal(padding, 0)


def test_table_covers_the_model(checkpoint):
    config, variables = imported(checkpoint)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(
        lambda x: x.shape, shapes_of(Vocoder(config))
    )


def test_full_size():
    model = Vocoder(VocoderConfig(base_channels=512, f0_channels=512))
    shapes = shapes_of(model)
    leaves = jax.tree.leaves(shapes)
    assert len(leaves) == len(table.rows(model.config)) == 328
    assert sum(x.size for x in leaves) == 20_821_295
    wave, source = jax.eval_shape(
        model.apply, shapes, jnp.zeros((2, 100, 80)), jnp.array([100, 7]), jax.random.key(0)
    )
    assert wave.shape == (2, 48000) and source.shape == (2, 48000, 1)


def test_config_from_bad_shapes(checkpoint):
    shapes = {name: x.shape for name, x in checkpoint.items()}

    def reject(match, **changes):
        changed = {**shapes, **{k.replace("__", "."): v for k, v in changes.items()}}
        with pytest.raises(ValueError, match=match):
            table.config_from_shapes({k: v for k, v in changed.items() if v is not None})

    reject("no tensor 'conv_pre.weight_v'; expected", conv_pre__weight_v=None)
    reject(r"'conv_pre.weight_v' has shape \(32, 80\)", conv_pre__weight_v=(32, 80))
    reject("base_channels 33: expected a positive multiple of 8", conv_pre__weight_v=(33, 80, 7))
    reject("reads 80 mel bins; expected 81", conv_pre__weight_v=(32, 81, 7))
    reject("no tensor 'm_source.l_linear.weight'", m_source__l_linear__weight=None)


# Weight normalisation


@pytest.mark.parametrize("kernel, dilation, stride", [(3, 1, 1), (7, 5, 1), (6, 1, 3)])
def test_conv_equals_torch(kernel, dilation, stride):
    rng = np.random.default_rng(0)
    padding = (kernel - 1) * dilation // 2
    theirs = torch.nn.Conv1d(4, 6, kernel, stride, padding, dilation)
    theirs = torch.nn.utils.parametrizations.weight_norm(theirs)
    gain, direction = (p.detach().numpy() for p in theirs.parametrizations.weight.parameters())
    gain = gain * rng.uniform(0.5, 2, gain.shape).astype(np.float32)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(torch.tensor(gain))
    x = rng.normal(0, 1, (2, 40, 4)).astype(np.float32)
    ours = jax.jit(WeightNormConv(6, (kernel,), (stride,), (dilation,), (padding,)).apply)
    params = {
        "kernel_v": einops.rearrange(direction, "o i k -> k i o"),
        "kernel_g": einops.rearrange(gain, "o i k -> k i o"),
        "bias": theirs.bias.detach().numpy(),
    }
    expected = theirs(torch.tensor(x).mT).mT.detach()
    close(ours({"params": params}, x), expected, 1e-6)


@pytest.mark.parametrize("kernel, stride", [(16, 8), (11, 5), (7, 3), (4, 4), (3, 1)])
def test_conv_transpose_equals_torch(kernel, stride):
    rng = np.random.default_rng(0)
    theirs = torch.nn.ConvTranspose1d(4, 6, kernel, stride, (kernel - stride) // 2)
    theirs = torch.nn.utils.parametrizations.weight_norm(theirs)
    gain, direction = (p.detach().numpy() for p in theirs.parametrizations.weight.parameters())
    assert gain.shape == (4, 1, 1)  # one an input channel
    gain = gain * rng.uniform(0.5, 2, gain.shape).astype(np.float32)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(torch.tensor(gain))
    x = rng.normal(0, 1, (2, 11, 4)).astype(np.float32)
    ours = jax.jit(WeightNormConvTranspose(6, kernel, stride).apply)
    params = {
        "kernel_v": einops.rearrange(direction, "i o k -> k i o"),
        "kernel_g": einops.rearrange(gain, "i o k -> k i o"),
        "bias": theirs.bias.detach().numpy(),
    }
    y = ours({"params": params}, x)
    assert y.shape == (2, 11 * stride, 6)
    close(y, theirs(torch.tensor(x).mT).mT.detach(), 1e-6)


def test_kernel_starts_as_kernel_v():
    x = np.ones((1, 5, 3), np.float32)
    for layer in (WeightNormConv(4, (3,)), WeightNormConvTranspose(4, 3, 1)):
        params = jax.device_get(jax.jit(layer.init)(jax.random.key(0), x)["params"])
        doubled = {**params, "kernel_v": 2 * params["kernel_v"]}
        apply = jax.jit(layer.apply)
        close(apply({"params": params}, x), apply({"params": doubled}, x), 1e-6)
        axes = tuple(i for i in range(3) if params["kernel_g"].shape[i] == 1)
        norm = np.sqrt(np.sum(np.square(params["kernel_v"]), axis=axes, keepdims=True))
        np.testing.assert_allclose(params["kernel_g"], norm, rtol=1e-6)
    with pytest.raises(ValueError, match="kernel_size 4, stride 3; expected"):
        WeightNormConvTranspose(4, 4, 3).init(jax.random.key(0), x)


# Short-time spectra


def test_stft_and_inverse_equal_torch():
    rng = np.random.default_rng(0)
    samples = np.array([48, 120, 0, 12])
    wave = np.zeros((4, 120), np.float32)
    for row, n in zip(wave, samples, strict=True):
        row[:n] = rng.normal(0, 1, n)
    analyse, synthesise = (jax.jit(f, static_argnums=(2, 3)) for f in (source_stft, inverse_stft))
    spectrum = np.asarray(analyse(wave, samples, 16, 4))
    assert spectrum.shape == (4, 31, 18)
    noise = rng.normal(0, 1, spectrum.shape).astype(np.float32)
    inverse = np.asarray(synthesise(noise, samples, 16, 4))
    assert inverse.shape == (4, 120)
    window = torch.hann_window(16)
    for i, n in enumerate(samples):
        count = n // 4 + 1 if n else 0
        np.testing.assert_array_equal(spectrum[i, count:], 0)
        np.testing.assert_array_equal(inverse[i, n:], 0)
        if not n:
            continue
        alone = torch.tensor(wave[i, :n])
        expected = torch.stft(alone, 16, 4, window=window, return_complex=True).mT
        close(spectrum[i, :count], torch.cat([expected.real, expected.imag], 1), 1e-6)
        item = torch.tensor(noise[i, :count]).mT
        expected = torch.istft(torch.complex(item[:9], item[9:]), 16, 4, window=window)
        close(inverse[i, :n], expected, 1e-6)
    # Analysis, then synthesis: the waveform again.
    close(synthesise(spectrum, samples, 16, 4), wave, 1e-6)


# Source


def test_phase_keeps_its_precision_for_a_minute():
    config = VocoderConfig(base_channels=8, f0_channels=4)
    frames, count = 60 * config.frame_rate, config.harmonics + 1
    rng = np.random.default_rng(0)
    f0 = (250 + 100 * np.sin(np.arange(frames) / 30) + rng.normal(0, 3, frames)).astype(np.float32)
    f0[1000:1100] = 3.7  # unvoiced, yet it moves the phase
    phase = rng.uniform(-np.pi, np.pi, count).astype(np.float32)
    kernel = rng.normal(0, 1, count).astype(np.float32)
    variables = {"params": {"source_mixer": {"kernel": kernel[:, None], "bias": np.zeros(1)}}}

    @jax.jit
    def last_second(f0, phase):
        lengths = jnp.array([frames])
        source, uv = Vocoder(config).apply(variables, f0, lengths, phase, method="source")
        return source[0, -24000:, 0], uv

    ours, uv = jax.device_get(last_second(f0[None], phase[None]))
    assert uv.sum() == (frames - 100) * 480

    steps = np.repeat(f0, 480)[:, None] / np.float64(24000) * np.arange(1, count + 1)

    def expected(cycles):
        cycles = cycles[-24000:].astype(np.float64) % 1
        return np.tanh(0.1 * np.sin(2 * np.pi * cycles + phase) @ kernel.astype(np.float64))

    exact = expected(np.cumsum(steps, axis=0))
    peak = np.abs(exact).max()
    tolerance = 1e-4 * peak
    assert np.abs(ours - exact).max() < tolerance
    plain = expected(np.cumsum(steps.astype(np.float32), axis=0, dtype=np.float32))
    assert np.abs(plain - exact).max() > 1000 * tolerance
    # Even a sum in float64 fails once it is rounded to float32 before its fraction is taken.
    rounded = expected(np.cumsum(steps, axis=0).astype(np.float32))
    assert np.abs(rounded - exact).max() > 10 * tolerance


def test_phase_continues_from_frame_to_frame():
    config = VocoderConfig(base_channels=8, f0_channels=4)
    f0 = np.array([[10.0, 50.0, 123.456, 0.0, 777.7, 25.0]], np.float32)
    advance = f0[0, :, None].astype(np.float64) / 50 * np.arange(1, 10)
    expected = np.cumsum(np.concatenate([np.zeros((1, 9)), advance[:-1]]), axis=0) % 1
    error = np.asarray(jax.jit(frame_phase, static_argnums=1)(f0, config))[0] - expected
    assert np.abs(error - np.round(error)).max() < 1e-6


def test_sine_polynomials():
    rng = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-20, 20, 4001), rng.normal(0, 3e3, 2000)]).astype(np.float32)
    sine_squares = jax.jit(sine_squared)
    squared = sine_squares(x)
    np.testing.assert_allclose(squared, np.sin(x.astype(np.float64)) ** 2, rtol=0, atol=1e-6)
    # Finite and in range also where float32 does not resolve a period.
    far = np.asarray(sine_squares(np.array([1e7, -1e12, 1e30], np.float32)))
    assert ((far >= 0) & (far <= 1)).all()
    cycles = np.linspace(-3, 3, 6001).astype(np.float32)
    expected = np.sin(2 * np.pi * cycles.astype(np.float64))
    sine = jax.jit(sine_of_cycles)(cycles)
    np.testing.assert_allclose(sine, expected, rtol=0, atol=5e-7)


def test_noise_is_tied_to_positions():
    draw = jax.jit(functools.partial(draw_source_noise, config=SMALL), static_argnums=(1, 2))
    key = jax.random.key(3)
    whole = np.asarray(draw(key, 2, 10))
    assert whole.shape == (2, 10 * SMALL.frame_samples, 3)
    assert abs(whole.mean()) < 0.1 and abs(whole.std() - 1) < 0.05
    start = 4 * SMALL.frame_samples
    np.testing.assert_array_equal(draw(key, 2, 6, first_frame_B=4), whole[:, start:])
    mixed = np.asarray(draw(key, 2, 3, first_frame_B=np.array([0, 4])))
    np.testing.assert_array_equal(mixed[0], whole[0, : 3 * SMALL.frame_samples])
    np.testing.assert_array_equal(mixed[1], whole[1, start : start + 3 * SMALL.frame_samples])
    # Items differ, and an item with a key of its own does not depend on its row.
    assert not np.array_equal(whole[0], whole[1])
    keys = jax.random.split(key, 3)
    np.testing.assert_array_equal(np.asarray(draw(keys, 3, 2))[1:], draw(keys[1:], 2, 2))
    phase = np.asarray(jax.jit(draw_source_phase, static_argnums=(1, 2))(key, 50, SMALL))
    np.testing.assert_array_equal(phase[:, 0], 0)
    assert phase.shape == (50, 3) and 3 < np.abs(phase).max() <= np.pi
    with pytest.raises(ValueError, match=r"shape \(3,\): expected \(\) or \(2,\)"):
        draw(keys, 2, 1)


def test_source_levels():
    frames = 200
    f0 = np.array([[100.0, 0.0] * (frames // 2)], np.float32)
    kernel = np.array([[1.0], [0.0], [0.0]], np.float32)
    variables = {"params": {"source_mixer": {"kernel": kernel, "bias": np.zeros(1)}}}

    @jax.jit
    def sources(*args):
        noise = draw_source_noise(jax.random.key(0), 1, frames, SMALL)
        return [MODEL.apply(variables, *args, *more, method="source") for more in ((), (noise,))]

    args = (f0, np.array([frames]), np.zeros((1, 3), np.float32))
    (clean, uv), (noisy, _) = jax.device_get(sources(*args))
    voiced = uv[0] == 1
    np.testing.assert_array_equal(
        voiced.reshape(frames, -1), np.repeat(f0.T > 10, SMALL.frame_samples, axis=1)
    )
    clean, noisy = (np.arctanh(np.asarray(x)[0, :, 0]) for x in (clean, noisy))
    assert abs(clean[voiced]).max() == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_array_equal(clean[~voiced], 0)
    assert (noisy - clean)[voiced].std() == pytest.approx(0.003, rel=0.05)
    assert noisy[~voiced].std() == pytest.approx(0.1 / 3, rel=0.05)


# The whole vocoder


def test_padding_does_not_matter(variables, mel):
    keys = jax.random.split(jax.random.key(7), len(LENGTHS))
    batch = jax.device_get(run(variables, mel, LENGTHS, keys))
    rates = (1, SMALL.frame_samples, SMALL.frame_samples)
    uv = batch[0][:2] > SMALL.voiced_threshold
    assert uv.any() and not uv.all()
    for i, length in enumerate(LENGTHS):
        for x, rate in zip(batch, rates, strict=True):
            assert np.isfinite(x[i]).all()
            np.testing.assert_array_equal(x[i, length * rate :], 0)
        if length in (1, 3):
            alone = run(variables, mel[i : i + 1, :length], LENGTHS[i : i + 1], keys[i : i + 1])
            for x, y, rate in zip(batch, alone, rates, strict=True):
                close(x[i, : length * rate], np.asarray(y)[0], 1e-5)


@jax.jit
def gradients(params, mel):
    """Wave, gradients of a loss on it for parameters and mel, and of a loss on f0."""

    def wave_loss(params, mel):
        wave, _ = MODEL.apply({"params": params}, mel, LENGTHS, jax.random.key(0))
        return jnp.mean(jnp.abs(wave - 0.1)), wave

    def f0_loss(params):
        f0 = MODEL.apply({"params": params}, mel, LENGTHS, method="f0")
        return jnp.mean(jnp.abs(f0 - 100))

    of_wave, wave = jax.grad(wave_loss, argnums=(0, 1), has_aux=True)(params, mel)
    return wave, of_wave, jax.grad(f0_loss)(params)


def test_waveform_stays_in_range(variables, mel):
    loud = jax.tree.map(np.array, variables)
    loud["params"]["conv_post"]["bias"][:9] = 500  # exp overflows float32 from 89 on
    wave, of_wave, _ = jax.device_get(gradients(loud["params"], mel))
    assert np.abs(wave).max() == np.float32(SMALL.audio_limit)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of_wave))


def test_gradients(variables, mel):
    _, (of_wave, of_mel), of_f0 = jax.device_get(gradients(variables["params"], mel))
    assert np.isfinite(of_mel).all()
    for i, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(of_mel[i, length:], 0)
    assert np.abs(of_mel[1]).max() > 0
    for loss, tree in (("wave", of_wave), ("f0", of_f0)):
        for path, x in jax.tree_util.tree_leaves_with_path(tree):
            assert np.isfinite(x).all(), path
            # Each loss reaches exactly its own parameters: no gradient passes through the source.
            reached = (path[0].key == "f0_predictor") == (loss == "f0")
            assert (np.abs(x).max() > 0) == reached, (loss, path)


def test_bfloat16(variables, mel):
    keys = jax.random.split(jax.random.key(7), len(LENGTHS))
    f0, source, wave = jax.device_get(run(variables, mel, LENGTHS, keys))
    model = Vocoder(SMALL, dtype=jnp.bfloat16)
    rounded, rounded_source = jax.device_get(jax.jit(model.apply)(variables, mel, LENGTHS, keys))
    assert rounded.dtype == rounded_source.dtype == jnp.float32
    close(rounded_source[..., 0], source, 1e-5)  # float32 whatever the compute dtype
    error = np.sqrt(np.mean(np.square(rounded - wave)) / np.mean(np.square(wave)))
    assert 1e-6 < error < 0.02  # 0.004 here: bfloat16 rounds by 2^-9 at each of some 20 layers


def test_bad_input(variables):
    lengths = jnp.array([2])
    mel = jnp.zeros((1, 2, 5))
    for bad in (jnp.zeros((1, 2, 6)), jnp.zeros((1, 0, 5)), jnp.zeros((2, 5))):
        with pytest.raises(ValueError, match=r"mel of shape .*: expected \(batch, frames >= 1, 5"):
            MODEL.apply(variables, bad, lengths, method="f0")
    with pytest.raises(ValueError, match=r"lengths of shape \(2,\): expected \(1,\)"):
        MODEL.apply(variables, mel, jnp.array([1, 2]), method="f0")
    with pytest.raises(ValueError, match=r"source of shape .*: expected \(1, 48, 1\)"):
        MODEL.apply(variables, mel, jnp.zeros((1, 47, 1)), lengths, method="decode")


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"base_channels": 12}, "base_channels 12: expected a positive multiple of 8"),
        ({"f0_channels": 0}, "f0_channels 0"),
        ({"upsample_kernels": (16, 11)}, r"upsample_kernels \(16, 11\): expected 3 numbers"),
        ({"n_fft": 12}, "n_fft 12: expected a multiple of 2 \\* hop, 8"),
        ({"sample_rate": 22050}, "sample_rate 22050: expected a multiple of the 480"),
    ],
)
def test_bad_config(changes, match):
    with pytest.raises(ValueError, match=match):
        VocoderConfig(**{"base_channels": 16, "f0_channels": 8, **changes})


def test_snake_equals_its_definition():
    x = np.random.default_rng(0).normal(0, 4, (2, 5, 3)).astype(np.float32)
    alpha = np.array([0.3, 1.0, 20.0], np.float32)
    expected = torch.tensor(x) + torch.sin(torch.tensor(alpha * x)) ** 2 / torch.tensor(alpha)
    snake = jax.jit(Snake().apply)
    close(snake({"params": {"alpha": alpha}}, x), expected, 1e-6)
    # alpha 0 is the identity, not a division by zero.
    zero = {"params": {"alpha": np.zeros(3, np.float32)}}
    np.testing.assert_array_equal(snake(zero, x), x)


# Windows


def test_windows_equal_the_whole(variables):
    """Apart from the receptive field at inner edges: phase, noise, reflection."""
    length, before = 80, receptive_field(SMALL)
    assert before == 12 and receptive_field(VocoderConfig(base_channels=8, f0_channels=1)) == 21
    mel = np.random.default_rng(2).normal(0, 1, (1, length, SMALL.mel_bins)).astype(np.float32)
    key = jax.random.key(5)
    whole = jax.jit(lambda v, *a: MODEL.apply(v, *a)[0])(variables, mel, jnp.array([length]), key)
    whole = np.asarray(whole)[0]
    size, step = 40, SMALL.frame_samples
    window = jax.jit(lambda v, *a: MODEL.apply(v, *a, method="window"))
    heard, first, phase, anchor = 0, 0, 0, 0
    while heard < length:
        window_mel = mel[:, first : first + size]
        frames = window_mel.shape[1]
        upto = length if first + size >= length else first + size - before
        following = max(0, upto - before)
        next_anchor = following + SMALL.f0_layers if following else 0
        position = WindowPosition(
            *(jnp.array([n]) for n in (first, anchor - first, phase, next_anchor - first))
        )
        padded = np.pad(window_mel, ((0, 0), (0, size - frames), (0, 0)), constant_values=np.nan)
        wave, phase = window(variables, padded, jnp.array([frames]), key, position)
        place_S = slice((heard - first) * step, (upto - first) * step)
        close(np.asarray(wave)[0, place_S], whole[heard * step : upto * step], 1e-4)
        heard, first, anchor, phase = upto, following, next_anchor, int(phase[0])
    assert heard == length and first > 0 and phase > 0
