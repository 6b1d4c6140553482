"""The vocoder stage: learning, adversarial gradients, f0 and padding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ba_jax.audio.mel import FLOW_MEL, log_mel
from ba_jax.data.audio_batches import AudioBatch
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.discriminators import DiscriminatorConfig, Discriminators
from ba_jax.models.vocoder_config import VocoderConfig
from ba_jax.stages.base import StageError
from ba_jax.stages.vocoder import DISCRIMINATORS, VocoderSettings, VocoderStage, f0_target, generate
from tests.unit.stages.helpers import gradient_function, norm

CONFIG = BaichuanAudioConfig(
    vocoder=VocoderConfig(
        base_channels=16,
        f0_channels=16,
        harmonics=4,
        upsample_rates=(8, 15),
        upsample_kernels=(16, 31),
        resblock_kernels=(3,),
        source_resblock_kernels=(3, 3),
        dilations=(1,),
        f0_layers=2,
    )
)
JUDGES = DiscriminatorConfig(
    periods=(3,),
    period_channels=(4, 4),
    fft_sizes=(256,),
    bands=((0.0, 1.0),),
    resolution_channels=2,
)
SETTINGS = VocoderSettings(
    mel_scales=((1024, 256, 80),), discriminator_start=3, discriminators=JUDGES
)
SECONDS = 0.3
KEY = jax.random.key(0)


def tone(seconds: float, pitch: float) -> np.ndarray:
    """Harmonics of a pitch at 24 kHz, falling off as speech does."""
    t = np.arange(round(seconds * 24000)) / 24000
    wave = sum(np.sin(2 * np.pi * k * pitch * t) / k for k in range(1, 12))
    return (0.1 * wave).astype(np.float32)


def batch_of(*seconds: float, padding: float = 0.0) -> AudioBatch:
    """Crops of SECONDS from recordings of these lengths, filled up with `padding`."""
    count = len(seconds)
    wave = np.full((count, int(SECONDS * 24000)), padding, np.float32)
    mel = np.full((count, int(SECONDS * 50), 80), padding, np.float32)
    samples, frames = np.zeros((2, count), np.int32)
    for i, length in enumerate(seconds):
        crop = tone(length, 150 + 60 * i)
        target = log_mel(crop, FLOW_MEL)
        wave[i, : len(crop)], mel[i, : len(target)] = crop, target
        samples[i], frames[i] = len(crop), len(target)
    return AudioBatch(
        samples_B=samples,
        wave_BS=wave,
        whisper_mel_BTM=None,
        whisper_lengths_B=None,
        hifigan_mel_BTM=None,
        hifigan_lengths_B=None,
        flow_mel_BTM=mel,
        flow_lengths_B=frames,
        skipped_B=np.zeros(count, np.int32),
    )


@pytest.fixture(scope="module")
def stage() -> VocoderStage:
    return VocoderStage(CONFIG, SETTINGS)


@pytest.fixture(scope="module")
def variables(stage):
    """Drawn by NumPy, which takes no compilation: PyTorch's uniform initialisation."""
    rng = np.random.default_rng(0)

    def draw(path, leaf) -> np.ndarray:
        name = path[-1].key
        if name == "alpha":
            return np.ones(leaf.shape, np.float32)
        if name == "bias":
            return np.zeros(leaf.shape, np.float32)
        if name == "kernel_g":
            return np.full(leaf.shape, 3**-0.5, np.float32)
        bound = np.prod(leaf.shape[:-1]) ** -0.5
        return rng.uniform(-bound, bound, leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(stage.init, KEY)
    assert set(shapes["params"]) == {"vocoder", DISCRIMINATORS}
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def arrays(stage):
    return stage.arrays(batch_of(0.3, 0.2))


@pytest.fixture(scope="module")
def gradient(stage):
    return gradient_function(stage)


@pytest.fixture(scope="module")
def evaluate(stage):
    return jax.jit(lambda v, a, key: stage.evaluate(v, a, stage.totals(a), key))


@pytest.mark.deep
@pytest.mark.slow
def test_overfits_one_batch(stage, variables, arrays, gradient, evaluate):
    """Adversarial losses start after 43 steps and stay finite."""
    before = evaluate(variables, arrays, KEY)
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, 100), b1=0.8, b2=0.99)

    @jax.jit
    def update(params, grads, state):
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    params = variables["params"]
    state = tx.init(params)
    for step in range(100):
        at = {**variables, "params": params}
        key = jax.random.fold_in(KEY, step)
        (loss, _), grads = gradient(at, arrays, key, np.int32(step - 40))
        assert np.isfinite(loss), step
        params, state = update(params, grads, state)
    after = evaluate({**variables, "params": params}, arrays, KEY)
    for name, factor in (("mel", 2), ("mel_mae", 2), ("f0", 4)):
        assert after[name] < before[name] / factor, name


def test_gradients_equal_those_of_two_separate_losses(stage, variables, arrays, gradient):
    """HiFi-GAN's losses written out, generator and discriminators each alone; a full crop."""
    full = {name: array[:1] for name, array in arrays.items()}
    params, totals = variables["params"], stage.totals(full)
    judges = Discriminators(JUDGES)

    def fake_of(vocoder):
        variables = {"params": {"vocoder": vocoder}}
        return stage.model.apply(
            variables, full["mel_BTM"], full["lengths_B"], KEY, method=generate
        )

    def generator_loss(vocoder):
        fake, f0 = fake_of(vocoder)
        recovery = stage._reconstruction_losses(full["wave_BS"], fake, f0, full, totals)
        scores, maps = judges.apply({"params": params[DISCRIMINATORS]}, fake)
        _, wanted = judges.apply({"params": params[DISCRIMINATORS]}, full["wave_BS"])
        adversarial = sum(jnp.mean((s - 1) ** 2) for s in scores)
        matching = sum(
            jnp.mean(jnp.abs(x - y))
            for mine, theirs in zip(maps, wanted, strict=True)
            for x, y in zip(mine, theirs, strict=True)
        )
        s = SETTINGS
        judged = s.adversarial * adversarial + s.features * matching
        return s.mel * recovery["mel"] + s.f0 * recovery["f0"] + judged, fake

    def discriminator_loss(helper, fake):
        real_scores, _ = judges.apply({"params": helper}, full["wave_BS"])
        fake_scores, _ = judges.apply({"params": helper}, fake)
        return sum(
            jnp.mean((r - 1) ** 2) + jnp.mean(f**2)
            for r, f in zip(real_scores, fake_scores, strict=True)
        )

    @jax.jit
    def separate(vocoder, helper):
        (loss, fake), grads = jax.value_and_grad(generator_loss, has_aux=True)(vocoder)
        return (loss, grads), jax.value_and_grad(discriminator_loss)(helper, fake)

    # The second item is empty: the compiled step of two items serves.
    padded = {name: np.concatenate([array, array * 0]) for name, array in full.items()}
    (loss, aux), got = gradient(variables, padded, KEY, np.int32(3))
    (g_loss, want_g), (d_loss, want_d) = separate(params["vocoder"], params[DISCRIMINATORS])
    np.testing.assert_allclose(loss, g_loss + d_loss, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["discriminators"], d_loss, rtol=1e-5)
    for name, want in (("vocoder", want_g), (DISCRIMINATORS, want_d)):
        assert norm(want) > 1e-2
        difference = jax.tree.map(np.subtract, got[name], want)
        assert norm(difference) < 1e-4 * norm(want), name


def test_no_adversarial_losses_before_discriminator_start(variables, arrays, gradient):
    (_, aux), grads = gradient(variables, arrays, KEY, np.int32(2))
    names = {"loss", "mel", "f0", "adversarial", "features", "discriminators"}
    assert set(aux.metrics) == names
    assert all(aux.metrics[name] == 0 for name in ("adversarial", "features", "discriminators"))
    assert norm(grads[DISCRIMINATORS]) == 0 and 0 < norm(grads["vocoder"]) < np.inf
    (_, aux), later = gradient(variables, arrays, KEY, np.int32(3))
    assert all(aux.metrics[name] > 0 for name in names)
    assert norm(later[DISCRIMINATORS]) > 0
    assert norm(later["vocoder"]) != norm(grads["vocoder"])


def test_padding_changes_nothing(stage, variables, gradient, evaluate):
    clean, dirty = (stage.arrays(batch_of(0.3, 0.2, padding=p)) for p in (0.0, np.nan))
    assert np.isnan(dirty["wave_BS"]).any() and np.isnan(dirty["mel_BTM"]).any()
    assert evaluate(variables, dirty, KEY) == evaluate(variables, clean, KEY)
    (loss, _), grads = gradient(variables, clean, KEY, np.int32(9))
    (dirty_loss, _), dirty_grads = gradient(variables, dirty, KEY, np.int32(9))
    assert loss == dirty_loss
    jax.tree.map(np.testing.assert_array_equal, grads, dirty_grads)


def test_an_empty_row_changes_nothing(stage, variables, arrays, gradient):
    """A damaged recording: all zeros, no frames."""
    alone = {name: np.concatenate([a[:1], a[:1] * 0]) for name, a in arrays.items()}
    twice = {name: np.concatenate([a[:1], a[:1]]) for name, a in arrays.items()}
    (loss, aux), grads = gradient(variables, alone, KEY, np.int32(9))
    assert np.isfinite(loss) and np.isfinite(norm(grads))
    (_, both), _ = gradient(variables, twice, KEY, np.int32(9))
    # Equal but for the second item's own source noise.
    for name, value in aux.metrics.items():
        np.testing.assert_allclose(value, both.metrics[name], rtol=0.05, err_msg=name)


def test_evaluation_is_deterministic(variables, arrays, evaluate):
    first = evaluate(variables, arrays, KEY)
    assert set(first) == {"loss", "mel", "f0", "mel_mae"}
    assert first == evaluate(variables, arrays, jax.random.key(9))


def test_f0_of_a_tone_and_of_silence():
    frames = f0_target(tone(0.5, 220.0))
    assert frames.shape == (25,) and frames.dtype == np.float32
    np.testing.assert_allclose(frames, 220, rtol=0.02)
    assert (f0_target(np.zeros(12000, np.float32)) == 0).all()
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, 12000).astype(np.float32)
    assert (f0_target(noise) > 0).mean() < 0.1
    assert (f0_target(1e-4 * tone(0.5, 220.0)) == 0).all()  # -80 dB of full scale
    assert f0_target(noise[:500]).tolist() == [0]  # too short to be framed


def test_f0_is_measured_on_the_mels_frames():
    """Silence, then a tone from sample 9600, where the 480 samples of frame 20 begin."""
    wave = np.concatenate([np.zeros(9600, np.float32), tone(0.4, 180.0)])
    frames = f0_target(wave)
    mel = log_mel(wave, FLOW_MEL)
    assert len(frames) == len(mel) == 40
    first = int(np.flatnonzero(frames)[0])
    assert abs(first - 20) <= 1 and (frames[first + 2 :] > 0).all()
    np.testing.assert_allclose(frames[22:], 180, rtol=0.02)
    assert (frames[:18] == 0).all()


def test_arrays_are_of_whole_frames(stage, arrays):
    assert {name: a.shape for name, a in arrays.items()} == {
        "mel_BTM": (2, 15, 80),
        "lengths_B": (2,),
        "wave_BS": (2, 7200),
        "f0_BT": (2, 15),
    }
    assert stage.amounts(arrays) == {"tokens": 25, "audio_seconds": 0.5, "examples": 2}
    assert (arrays["f0_BT"][1, 10:] == 0).all()
    np.testing.assert_allclose(arrays["f0_BT"][1, :10], 210, rtol=0.02)


def test_discriminators_without_loss_weights_are_left_out():
    alone = dataclasses.replace(SETTINGS, adversarial=0.0, features=0.0)
    stage = VocoderStage(CONFIG, alone)
    assert set(jax.eval_shape(stage.init, KEY)["params"]) == {"vocoder"}
    arrays = stage.arrays(batch_of(0.3))
    whole = VocoderStage(CONFIG, SETTINGS).flops(arrays, ("vocoder",))
    assert 0 < stage.flops(arrays, ("vocoder",)) < whole


def test_pictures_are_sounds(stage, variables, arrays):
    sounds = stage.pictures(variables, arrays)
    assert {name: (len(wave), rate) for name, (wave, rate) in sounds.items()} == {
        f"audio/{i}/{name}": (samples, 24000)
        for i, samples in ((0, 7200), (1, 4800))
        for name in ("target", "generated")
    }
    np.testing.assert_array_equal(sounds["audio/1/target"][0], arrays["wave_BS"][1, :4800])


def test_incomplete_or_empty_batches_are_refused(stage):
    batch = batch_of(0.3)
    with pytest.raises(StageError, match=r"vocoder: batches without \['wave'\]"):
        stage.arrays(batch._replace(wave_BS=None))
    with pytest.raises(StageError, match="1 clips without a frame to learn"):
        stage.arrays(batch._replace(flow_lengths_B=np.zeros(1, np.int32)))
    short = batch._replace(flow_mel_BTM=batch.flow_mel_BTM[:, :1])
    with pytest.raises(StageError, match="clips of 480 samples at 24000 Hz, expected at least 721"):
        stage.arrays(short)
    other = dataclasses.replace(CONFIG.vocoder, sample_rate=48000)
    with pytest.raises(StageError, match=r"expected \(24000, 480, 80\)"):
        VocoderStage(dataclasses.replace(CONFIG, vocoder=other), SETTINGS)
    with pytest.raises(ValueError, match="mel = -1"):
        VocoderSettings(mel=-1.0)
    with pytest.raises(ValueError, match="mel_scales"):
        VocoderSettings(mel_scales=())
