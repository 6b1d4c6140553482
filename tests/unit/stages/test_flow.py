"""The flow stage: learns, leaves the tokenizer alone, drops conditions, reads no padding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ba_jax.audio.mel import (
    COARSE_MEL,
    FLOW_MEL,
    HIFIGAN_MEL,
    WHISPER_MEL_80,
    log_mel,
    whisper_log_mel,
)
from ba_jax.data.audio_batches import AudioBatch
from ba_jax.models.audio_decoder import AudioDecoderConfig
from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.models.flow_matching import FlowMatchingConfig
from ba_jax.models.flow_prenet import FlowPrenetConfig
from ba_jax.models.flow_unet import FlowUNetConfig
from ba_jax.models.vq_bridge import VQBridgeConfig
from ba_jax.stages.base import StageError
from ba_jax.stages.flow import (
    FlowSettings,
    FlowStage,
    decode,
    draw_codebooks,
    draw_rotations,
    rotate,
    split_keys,
)
from tests.unit.stages.helpers import gliding_tone, gradient_function, norm

CONFIG = BaichuanAudioConfig(
    audio_encoder=AudioEncoderConfig(mel_bins=80, width=16, layers=1, heads=2, ffn_width=32),
    vq_bridge=VQBridgeConfig(width=16, pooling=4, codebook_sizes=(16, 8, 8)),
    audio_decoder=AudioDecoderConfig(
        width=16, layers=1, heads=2, ffn_width=32, mel_bins=80, refine_channels=(8,)
    ),
    flow_prenet=FlowPrenetConfig(
        in_width=16, width=16, layers=1, heads=2, ffn_width=32, mel_bins=80
    ),
    flow_unet=FlowUNetConfig(mel_bins=80, channels=24, blocks=1, mid_blocks=1, heads=2, head_dim=8),
)
FROZEN = ("audio_encoder", "vq_bridge", "audio_decoder")
TRAINED = ("flow_prenet", "flow_unet")


def batch_of(*seconds: float, bucket: float = 0.5, padding: float = 0.0) -> AudioBatch:
    """Clips of these lengths in a bucket, filled up with `padding`."""
    count = len(seconds)
    whisper = np.full((count, int(bucket * 100) + 1, 80), padding, np.float32)
    flow = np.full((count, int(bucket * 50), 80), padding, np.float32)
    lengths = np.zeros((3, count), np.int32)
    for i, length in enumerate(seconds):
        heard = whisper_log_mel(gliding_tone(length, 16000, 120 + 60 * i), WHISPER_MEL_80)
        wanted = log_mel(gliding_tone(length, 24000, 120 + 60 * i), FLOW_MEL)
        whisper[i, : len(heard)], flow[i, : len(wanted)] = heard, wanted
        lengths[:, i] = len(heard), len(wanted), round(length * 24000)
    return AudioBatch(
        samples_B=lengths[2],
        wave_BS=None,
        whisper_mel_BTM=whisper,
        whisper_lengths_B=lengths[0],
        hifigan_mel_BTM=None,
        hifigan_lengths_B=None,
        flow_mel_BTM=flow,
        flow_lengths_B=lengths[1],
        skipped_B=np.zeros(count, np.int32),
    )


@pytest.fixture(scope="module")
def stage() -> FlowStage:
    return FlowStage(CONFIG, FlowSettings(eval_steps=2, eval_times=2))


@pytest.fixture(scope="module")
def variables(stage):
    """Drawn by NumPy, which takes no compilation: kernels scaled by their fan-in."""
    rng = np.random.default_rng(0)

    def draw(path, leaf) -> np.ndarray:
        name = path[-1].key
        if name == "scale":
            return np.ones(leaf.shape, np.float32)
        if name == "bias":
            return np.zeros(leaf.shape, np.float32)
        scale = np.prod(leaf.shape[-2:-1]) ** -0.5 if name == "kernel" else 0.5
        return (scale * rng.normal(size=leaf.shape)).astype(np.float32)

    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def arrays(stage):
    return stage.arrays(batch_of(0.5, 0.3))


@pytest.fixture(scope="module")
def gradient(stage):
    return gradient_function(stage)


@pytest.fixture(scope="module")
def evaluate_parts(stage):
    return jax.jit(stage.evaluate)


@pytest.fixture(scope="module")
def evaluate(stage, evaluate_parts):
    """(variables, arrays, key) -> metrics of the whole batch."""
    return lambda v, a, key: evaluate_parts(v, a, stage.totals(a), key)


def features(model, *args):
    """Compute 50 Hz features of a mel, like the stage."""
    mel, lengths, *codebooks = args
    codes, lengths = model.encode(mel, lengths)
    output = decode(model, model.vq_bridge.dequantize(codes, lengths, *codebooks), lengths)
    return output.hidden_BTD, output.hidden_lengths_B


@jax.jit
def features_of(variables, *args):
    return BaichuanAudio(CONFIG).apply(variables, *args, method=features)


def test_amounts_and_totals_count_frames_with_codes_and_mel(stage, arrays):
    # 0.5 s: 51 mel, 26 encoder, 6 code, 23 decoder frames of 25; 0.3 s: 31, 16, 4, 15 of 15.
    assert arrays["lengths_B"].tolist() == [23, 15]
    assert stage.amounts(arrays) == {"tokens": 38, "audio_seconds": 0.76, "examples": 2}
    assert stage.totals(arrays)["frames"] == 38


def test_host_and_model_agree_on_lengths(stage, variables, arrays):
    _, lengths_B = features_of(variables, arrays["whisper_mel_BTM"], arrays["whisper_lengths_B"])
    np.testing.assert_array_equal(stage.mu_lengths(stage._code_lengths(arrays)), lengths_B)
    assert stage.mu_lengths(np.array([0, 1, 2])).tolist() == [0, 3, 7]


@pytest.mark.deep
@pytest.mark.slow
def test_overfits_one_batch(stage, variables, arrays, gradient, evaluate):
    key = jax.random.key(1)
    before = evaluate(variables, arrays, key)
    tx = optax.adam(optax.cosine_decay_schedule(1e-2, 300))
    params = variables["params"]
    state = tx.init(params)

    @jax.jit
    def update(params, grads, state):
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    for number in range(300):
        at = {**variables, "params": params}
        _, grads = gradient(at, arrays, jax.random.fold_in(key, number))
        params, state = update(params, grads, state)
    after = evaluate({**variables, "params": params}, arrays, key)
    for name, factor in (("prior", 5), ("cfm", 10), ("mel_mae", 4)):
        assert after[name] < before[name] / factor, name


def test_frozen_components_get_a_gradient_of_zero(variables, arrays, gradient):
    (_, aux), grads = gradient(variables, arrays, jax.random.key(0))
    assert set(aux.metrics) == {"loss", "prior", "cfm"}
    for name in FROZEN:
        assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads[name])), name
    for name in TRAINED:
        assert norm(grads[name]) > 1e-3, name


@pytest.mark.deep
@pytest.mark.slow
def test_the_decoder_trains_if_its_weight_is_set(variables, arrays, gradient):
    stage = FlowStage(CONFIG, FlowSettings(decoder=0.5))
    with pytest.raises(StageError, match="batches without .'hifigan_mel', 'coarse_mel'"):
        stage.arrays(batch_of(0.5, 0.3))
    batch = batch_of(0.5, 0.3)
    mel, coarse = np.zeros((2, 31, 80), np.float32), np.zeros((2, 50, 80), np.float32)
    for i, seconds in enumerate((0.5, 0.3)):
        wave = gliding_tone(seconds, 16000, 120 + 60 * i)
        for target, geometry in ((mel, HIFIGAN_MEL), (coarse, COARSE_MEL)):
            frames = log_mel(wave, geometry)
            target[i, : len(frames)] = frames
    batch = batch._replace(
        hifigan_mel_BTM=mel,
        hifigan_lengths_B=np.array([31, 18]),
        coarse_mel_BTM=coarse,
        coarse_lengths_B=np.array([50, 30]),
    )
    heard = stage.arrays(batch)
    # 6 and 4 code frames, 46 and 30 of the coarse mel at 100 Hz.
    assert heard["refined_lengths_B"].tolist() == [28, 18]
    assert heard["coarse_lengths_B"].tolist() == [46, 30]

    @jax.jit
    def run(params):
        at = {**variables, "params": params}
        return stage.loss(at, heard, stage.totals(heard), jax.random.key(0), jnp.int32(0))

    (loss, aux), grads = jax.value_and_grad(run, has_aux=True)(variables["params"])
    (frozen_loss, _), _ = gradient(variables, arrays, jax.random.key(0))
    np.testing.assert_allclose(loss, frozen_loss + 0.5 * aux.metrics["decoder"], rtol=1e-5)
    assert 0 < aux.metrics["decoder_mae"] < aux.metrics["decoder"]
    assert norm(grads["audio_decoder"]) > 1e-3
    assert norm(grads["vq_bridge"]["decoder_proj"]) > 1e-3
    # The codes do not change.
    bridge = {name: grads["vq_bridge"][name] for name in ("gate", "up", "down", "norm")}
    assert norm(bridge) == norm(grads["audio_encoder"]) == 0
    trained = ("flow_prenet", "flow_unet")
    assert stage.flops(heard, trained) > FlowStage(CONFIG, FlowSettings()).flops(heard, trained)


def test_padding_changes_nothing(stage, variables, gradient, evaluate):
    """NaN past the clips, and rows of nothing but NaN."""
    key = jax.random.key(3)
    clean, dirty = (stage.arrays(batch_of(0.5, 0.3, padding=p)) for p in (0.0, np.nan))
    (loss, _), grads = gradient(variables, clean, key)
    (dirty_loss, _), dirty_grads = gradient(variables, dirty, key)
    assert loss == dirty_loss
    jax.tree.map(np.testing.assert_array_equal, grads, dirty_grads)
    metrics = evaluate(variables, dirty, key)
    assert metrics == evaluate(variables, clean, key)
    dirty["lengths_B"][1] = dirty["whisper_lengths_B"][1] = 0
    (loss, _), grads = gradient(variables, dirty, key)
    assert np.isfinite(loss) and np.isfinite(norm(grads))


def test_metrics_of_parts_add_up(stage, variables, arrays, evaluate_parts):
    """Each part holds one row and empty ones; divided by the totals of the batch, parts add up."""
    totals, key = stage.totals(arrays), jax.random.key(0)

    def without(row: int):
        part = {name: array.copy() for name, array in arrays.items()}
        part["lengths_B"][row] = part["whisper_lengths_B"][row] = 0
        return evaluate_parts(variables, part, totals, key)

    first, second = without(1), without(0)
    for name, value in evaluate_parts(variables, arrays, totals, key).items():
        assert first[name] > 0.1 * value, name
        np.testing.assert_allclose(first[name] + second[name], value, rtol=1e-4, err_msg=name)


def test_rotation_changes_the_loss_and_a_dropped_condition_leaves_the_prenet(
    variables, arrays, gradient
):
    """Every item is rotated: another prior loss. Every condition is dropped: the CFM loss has no
    gradient in the prenet."""
    flow = FlowMatchingConfig(condition_dropout=1.0)
    settings = FlowSettings(prior=0.0, rotation=1.0)
    changed = FlowStage(dataclasses.replace(CONFIG, flow_matching=flow), settings)
    key = jax.random.key(1)

    def loss(prenet):
        at = {**variables, "params": {**variables["params"], "flow_prenet": prenet}}
        return changed.loss(at, arrays, changed.totals(arrays), key, jnp.int32(0))

    grads, aux = jax.jit(jax.grad(loss, has_aux=True))(variables["params"]["flow_prenet"])
    assert norm(grads) == 0
    (_, plain), _ = gradient(variables, arrays, key)
    assert abs(aux.metrics["prior"] - plain.metrics["prior"]) > 1e-3


def test_pictures_are_sampled_with_the_preconditioning(variables, arrays):
    """With a U-Net of zeros the samples lie at mu, by the stage and by the assembly."""
    flow = FlowMatchingConfig(residual_std=0.01, guidance=0.0)
    config = dataclasses.replace(CONFIG, flow_matching=flow)
    params = variables["params"]
    out = jax.tree.map(np.zeros_like, params["flow_unet"]["out"])
    silent = {**params, "flow_unet": {**params["flow_unet"], "out": out}}
    silent = {**variables, "params": silent}
    pictures = FlowStage(config, FlowSettings(eval_steps=8)).pictures(silent, arrays)
    assert {name: mel.shape for name, mel in pictures.items()} == {
        f"mel/{i}/{name}": (frames, 80)
        for i, frames in ((0, 23), (1, 15))
        for name in ("target", "mu", "sampled")
    }
    np.testing.assert_array_equal(pictures["mel/1/target"], arrays["mel_BTM"][1, :15])
    for i in (0, 1):
        mu = pictures[f"mel/{i}/mu"]
        error = np.abs(pictures[f"mel/{i}/target"] - mu).mean()
        assert np.abs(pictures[f"mel/{i}/sampled"] - mu).mean() < 0.02 * error

    def decoded(model, *hidden):
        mu, _ = model.flow_prenet(*hidden)
        return mu, model.flow_decode(*hidden, jnp.zeros_like(mu))[0]

    hidden = features_of(silent, arrays["whisper_mel_BTM"], arrays["whisper_lengths_B"])
    apply = functools.partial(BaichuanAudio(config).apply, method=decoded)
    mu, mel = jax.device_get(jax.jit(apply)(silent, *hidden))
    np.testing.assert_allclose(mel[0], mu[0], atol=1e-3)
    np.testing.assert_allclose(mu[0, :23], pictures["mel/0/mu"], atol=1e-5)


def test_evaluation_is_deterministic(variables, arrays, evaluate):
    first = evaluate(variables, arrays, jax.random.key(0))
    assert set(first) == {"loss", "prior", "cfm", "mel_mae"}
    assert first == evaluate(variables, arrays, jax.random.key(9))


def test_keeping_all_codebooks_equals_decoding_the_codes(variables, arrays):
    model = BaichuanAudio(CONFIG)
    args = arrays["whisper_mel_BTM"], arrays["whisper_lengths_B"]
    want, _ = features_of(variables, *args)
    got, _ = features_of(variables, *args, np.array([3, 3]))
    np.testing.assert_allclose(got, want, atol=1e-4)
    fewer, _ = features_of(variables, *args, np.array([3, 1]))
    np.testing.assert_allclose(fewer[0], want[0], atol=1e-4)
    assert np.abs(fewer[1] - want[1]).max() > 1e-2

    def first_code_alone(model, mel, lengths):
        codes, lengths = model.encode(mel, lengths)
        z = model.vq_bridge.embeds[0].value[codes[..., 0]]
        return model.audio_decoder(model.vq_bridge.project(z), lengths).hidden_BTD

    first = jax.jit(lambda v: model.apply(v, *args, method=first_code_alone))(variables)
    np.testing.assert_allclose(fewer[1], first[1], atol=1e-4)


def test_stored_codes_give_the_same_loss_without_an_encoder(stage, variables, arrays, evaluate):
    mel = arrays["whisper_mel_BTM"], arrays["whisper_lengths_B"]
    codes, lengths = jax.jit(lambda v: stage.model.apply(v, *mel, method="encode"))(variables)
    stored = FlowStage(CONFIG, dataclasses.replace(stage.settings, audio="codes"))
    assert stored.components == stage.components[1:]
    batch = batch_of(0.5, 0.3)
    with pytest.raises(StageError, match=r"batches without \['codes'\]; name them"):
        stored.arrays(batch)
    batch = batch._replace(
        whisper_mel_BTM=None,
        whisper_lengths_B=None,
        codes_BNQ=np.asarray(codes),
        code_lengths_B=np.asarray(lengths),
    )
    from_codes = stored.arrays(batch)
    assert from_codes["lengths_B"].tolist() == arrays["lengths_B"].tolist()
    want = evaluate(variables, arrays, jax.random.key(0))
    without = {
        name: {k: v for k, v in group.items() if k != "audio_encoder"}
        for name, group in variables.items()
    }
    got = jax.jit(stored.evaluate)(
        without, from_codes, stored.totals(from_codes), jax.random.key(0)
    )
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    assert stored.flops(from_codes, TRAINED) < stage.flops(arrays, TRAINED)


def test_codebook_dropout_draws_the_configured_share():
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(draw_codebooks, static_argnums=2)
    kept = np.asarray(draw(keys, 0.5, 8))
    counts = np.bincount(kept, minlength=9)[1:] / 4000
    np.testing.assert_allclose(counts, [0.0625] * 7 + [0.5625], atol=0.03)
    assert (np.asarray(draw(keys, 0.0, 8)) == 8).all()


def test_rotations_draw_the_configured_share():
    keys, lengths = jax.random.split(jax.random.key(0), 4000), np.full(4000, 5)
    draw = jax.jit(draw_rotations)
    by = np.asarray(draw(keys, 0.5, lengths))
    np.testing.assert_allclose(np.bincount(by) / 4000, [0.6, *[0.1] * 4], atol=0.03)
    assert not np.asarray(draw(keys, 0.0, lengths)).any()
    assert not np.asarray(draw(keys, 1.0, 0 * lengths)).any()


def test_rotated_codes_and_mels_stay_aligned():
    """A frame of codes has two mel frames (the last lacks one); padding stays in place."""
    lengths, by = np.array([4, 3, 0]), np.array([1, 2, 0])
    codes = np.tile(np.arange(5), (3, 1))[..., None]
    mel = np.tile(np.arange(10), (3, 1))[..., None]
    turned = np.asarray(jax.jit(rotate)(codes, by, lengths, lengths))[..., 0]
    assert turned.tolist() == [[1, 2, 3, 0, 4], [2, 0, 1, 3, 4], [0, 1, 2, 3, 4]]
    frames = np.maximum(2 * lengths - 1, 0)
    turned_mel = np.asarray(jax.jit(rotate)(mel, 2 * by, 2 * lengths, frames))[..., 0]
    assert turned_mel[0].tolist() == [2, 3, 4, 5, 6, 6, 0, 7, 8, 9]
    assert turned_mel[1].tolist() == [4, 4, 0, 1, 2, 5, 6, 7, 8, 9]
    assert turned_mel[2].tolist() == list(range(10))


def test_every_draw_of_an_item_has_its_key():
    """Rotations once shared the key of the number of codebooks."""

    @jax.jit
    def drawn_with(key):
        keys = split_keys(key, 3)
        drawn = [*keys, *jax.vmap(jax.random.split, out_axes=1)(keys.codebooks)]
        return [jax.random.key_data(keys_B) for keys_B in drawn]

    data = np.concatenate(drawn_with(jax.random.key(0)))
    assert len(np.unique(data, axis=0)) == len(data)


def test_incomplete_or_empty_batches_are_refused(stage):
    batch = batch_of(0.5)
    with pytest.raises(StageError, match=r"flow: batches without \['flow_mel'\]"):
        stage.arrays(batch._replace(flow_mel_BTM=None, flow_lengths_B=None))
    nothing = np.zeros(1, np.int32)
    with pytest.raises(StageError, match="1 clips without a frame to learn"):
        stage.arrays(batch._replace(flow_lengths_B=nothing, whisper_lengths_B=nothing))
    odd = dataclasses.replace(CONFIG.flow_unet, mel_bins=64)
    with pytest.raises(StageError, match="flow_unet: mel_bins = 64, expected 80"):
        FlowStage(dataclasses.replace(CONFIG, flow_unet=odd), FlowSettings())
    with pytest.raises(ValueError, match="codebook_dropout = 2"):
        FlowSettings(codebook_dropout=2.0)
    with pytest.raises(ValueError, match="eval_steps = 0"):
        FlowSettings(eval_steps=0)
    with pytest.raises(ValueError, match="rotation = 2"):
        FlowSettings(rotation=2.0)
