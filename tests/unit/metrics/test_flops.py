"""Counts against hand counts at the released size, XLA's count, and what must hold of any count."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.config import from_mapping
from ba_jax.metrics import flops
from ba_jax.models.audio_decoder import AudioDecoder, AudioDecoderConfig
from ba_jax.models.audio_encoder import AudioEncoder, AudioEncoderConfig
from ba_jax.models.audio_head import AudioHead, AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.models.discriminators import DiscriminatorConfig, Discriminators
from ba_jax.models.flow_prenet import FlowPrenet, FlowPrenetConfig
from ba_jax.models.flow_unet import FlowUNet, FlowUNetConfig
from ba_jax.models.llm import LLM, LLMConfig
from ba_jax.models.vocoder import Vocoder
from ba_jax.models.vocoder_config import VocoderConfig
from ba_jax.models.vq_bridge import VQBridge, VQBridgeConfig
from configs.models import get_config

GIGA = 1e9


@pytest.fixture(scope="module")
def released() -> BaichuanAudioConfig:
    return from_mapping(BaichuanAudioConfig, get_config("7b"))


# --- the released size, counted by hand ---------------------------------------------------------


def test_llm_by_hand(released):
    q_and_out, k_and_v, ffn = 2 * 3584 * 3584, 2 * 3584 * 512, 3 * 3584 * 18944
    token = 28 * 2 * (q_and_out + k_and_v + ffn)
    pair = 28 * 2 * (3584 + 3584)
    logit = 2 * 3584 * 152064
    assert flops.llm(released.llm, 1, 0, 0) == token
    assert flops.llm(released.llm, 0, 1, 0) == pair
    assert flops.llm(released.llm, 0, 0, 1) == logit
    assert flops.llm(released.llm, 10, 55, 3) == 10 * token + 55 * pair + 3 * logit
    # The round figures: 3 x (13.05 + 1.09 LM head + 0.000201 x S) GFLOP a token.
    length = 4096
    forward = flops.llm(released.llm, length, flops.causal_pairs(length), length)
    rounded = 3 * (13.05 + 1.09 + 0.000201 * length)
    assert flops.train(forward) / length / GIGA == pytest.approx(rounded, rel=1e-3)


def test_audio_head_by_hand(released):
    projections = 8 * 4 * 2 * 3584 * 3584  # depths, matrices
    feed_forward = 8 * 2 * 2 * 3584 * 7168
    attention = (1 + 2 + 3 + 4 + 5 + 6 + 7 + 8) * 2 * 2 * 3584
    rows = (8192 + 1) + (4096 + 1) + (2048 + 1) + 5 * (1024 + 1)
    frame = 3 * (projections + feed_forward + attention) + 2 * 3584 * rows
    assert flops.audio_head(released.audio_head, 1) == frame
    assert flops.audio_head(released.audio_head, 7) == 7 * frame
    assert flops.train(frame) / GIGA == pytest.approx(15.2, rel=2e-3)
    first = 3 * (projections + feed_forward) / 8 + 3 * 2 * 2 * 3584 + 2 * 3584 * 8193
    assert flops.audio_head(released.audio_head, 5, 1) == 5 * first


def test_encoder_and_bridge_by_hand(released):
    convolutions = 3000 * 2 * 3 * 128 * 1280 + 1500 * 2 * 3 * 1280 * 1280
    layer = 1500 * 2 * (4 * 1280 * 1280 + 2 * 1280 * 5120) + 1500 * 1500 * 2 * 2 * 1280
    encoder = flops.audio_encoder(released.audio_encoder, 3000)
    assert encoder == convolutions + 32 * layer
    projections = 375 * 2 * (3 * 5120 * 5120 + 5120 * 1280)
    distances = 375 * 2 * 5120 * (8192 + 4096 + 2048 + 5 * 1024)
    assert flops.vq_projections(released.vq_bridge, 375) == projections
    assert flops.vq_distances(released.vq_bridge, 375) == distances
    assert flops.vq_bridge(released.vq_bridge, 375) == projections + distances
    # The round figures, GFLOP a second of audio: encoder 76, encoding 80.
    assert encoder / 30 / GIGA == pytest.approx(76, rel=0.01)
    bridge = flops.vq_bridge(released.vq_bridge, 375)
    assert (encoder + bridge) / 30 / GIGA == pytest.approx(80, rel=0.01)


def test_decoders_by_hand(released):
    """30 s: 375 codes, 1499 features, 2998 coarse and 1873 refined frames."""
    pairs = 1499 * 1500 // 2
    layer = 1499 * 2 * (4 * 1280 * 1280 + 2 * 1280 * 5120) + pairs * 4 * 1280
    upsampling = 375 * 2 * 3 * 1280 * 1280 + 1499 * 2 * 3 * 1280 * 80
    refine = 1873 * 2 * (5 * 80 * 256 + 3 * 5 * 256 * 256 + 256 * 80)
    decoder = flops.audio_decoder(released.audio_decoder, 375)
    assert decoder == 8 * layer + upsampling + refine

    layer = 1500 * 2 * (4 * 512 * 512 + 2 * 512 * 2048) + 1500 * 1501 // 2 * 4 * 512
    linear = 1500 * 2 * (1280 * 2048 + 2048 * 512 + 512 * 80)
    prenet = flops.flow_prenet(released.flow_prenet, 1500)
    assert prenet == 12 * layer + linear

    pairs = 100 * (100 + 200 + 300 + 400 + 500 + 600 + 700 + 800) + 100 * (
        900 + 1000 + 1100 + 1200 + 1300 + 1400 + 1500
    )
    layer = 1500 * 2 * (4 * 256 * 512 + 2 * 256 * 1024) + pairs * 4 * 512
    resnets = 14 * 3 * 256 * 256  # their second convolutions
    resnets += (160 + 12 * 256 + 512) * (3 + 1) * 256  # their first, and the shortcuts
    frames = 1500 * 2 * (resnets + 3 * 3 * 256 * 256 + 256 * 80)
    time = 2 * (160 * 1024 + 1024 * 1024 + 14 * 1024 * 256)
    unet = flops.flow_unet(released.flow_unet, 1500)
    assert unet == 14 * 4 * layer + frames + time

    # The round figures, GFLOP a second of audio: 18, 5, and 15 for the U-Net, which counts all
    # pairs of frames, as a dense mask computes them; 11.2 where only those that are seen count.
    assert decoder / 30 / GIGA == pytest.approx(18, rel=0.03)
    assert prenet / 30 / GIGA == pytest.approx(5, rel=0.03)
    assert unet / 30 / GIGA == pytest.approx(11.2, rel=0.01)
    dense_mask = dataclasses.replace(released.flow_unet, chunk=1500)
    assert flops.flow_unet(dense_mask, 1500) / 30 / GIGA == pytest.approx(15, rel=0.03)


def test_vocoder_by_hand(released):
    """30 s: 1500 frames become 12,000, 60,000, then 180,001 after the reflected one."""
    f0 = 1500 * 2 * (3 * 80 * 512 + 4 * 3 * 512 * 512 + 512)
    assert flops.vocoder_f0(released.vocoder, 1500) == f0
    source = 720_000 * 2 * 9
    transforms = 180_001 * 2 * 2 * 16 * 18
    outer = 1500 * 2 * 7 * 80 * 512 + 180_001 * 2 * 7 * 64 * 18
    ups = 2 * (1500 * 16 * 512 * 256 + 12_000 * 11 * 256 * 128 + 60_000 * 7 * 128 * 64)
    downs = 2 * 18 * (12_000 * 30 * 256 + 60_000 * 6 * 128 + 180_001 * 64)
    blocks = 12_000 * (3 + 7 + 11 + 7) * 256 * 256
    blocks += 60_000 * (3 + 7 + 11 + 7) * 128 * 128
    blocks += 180_001 * (3 + 7 + 11 + 11) * 64 * 64
    generator = source + transforms + outer + ups + downs + 2 * 6 * blocks
    assert flops.vocoder_generator(released.vocoder, 1500) == generator
    assert flops.vocoder(released.vocoder, 1500) == f0 + generator
    assert (f0 + generator) / 30 / GIGA == pytest.approx(31, rel=0.02)


def test_discriminators_by_hand():
    config = DiscriminatorConfig(
        periods=(5,),
        period_channels=(4, 6),
        fft_sizes=(64,),
        bands=((0.0, 0.5), (0.5, 1.0)),
        resolution_channels=3,
    )
    # 203 samples: 41 rows of 5, a third of them after the first convolution, 14; the second has
    # stride 1. 13 frames of 16 and 17 bins: 16, 8, 4, 2, 2 and 17, 9, 5, 3, 3 columns.
    period = 2 * 5 * (14 * 5 * 1 * 4 + 14 * 5 * 4 * 6 + 14 * 3 * 6 * 1)
    low = 16 * 27 * 2 * 3 + (8 + 4 + 2) * 27 * 3 * 3 + 2 * 9 * 3 * 3
    high = 17 * 27 * 2 * 3 + (9 + 5 + 3) * 27 * 3 * 3 + 3 * 9 * 3 * 3
    resolution = 2 * 13 * (low + high + (2 + 3) * 9 * 3)
    assert flops.discriminators(config, 203) == period + resolution
    assert flops.discriminators(config, 203, items=4) == 4 * (period + resolution)


# --- XLA's count --------------------------------------------------------------------------------
# Of the lowered program, which is neither compiled nor run, so that widths can be large enough for
# what is not counted here (norms, activations, softmax) to be little. XLA counts attention's masked
# pairs, which are added to ours, and no tap of a convolution that lies on padding. Seen: XLA's is
# larger by 0.4 % (LLM) to 3.3 % (U-Net), and smaller by 2.4 % for the discriminators.
BATCH = 2
TOLERANCE = 0.04


def xla_flops(module, *args, **options) -> float:
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda *a: module.init(key, *a, **options), *args)
    lowered = jax.jit(lambda v, *a: module.apply(v, *a, **options)).lower(variables, *args)
    return lowered.cost_analysis()["flops"]


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


LENGTHS = jax.ShapeDtypeStruct((BATCH,), jnp.int32)


def masked_pairs(length: int) -> int:
    return length * length - flops.causal_pairs(length)


def test_llm_as_xla_counts():
    config = LLMConfig(
        vocab_size=2000, width=512, layers=2, heads=4, kv_heads=2, head_dim=96, ffn_width=1024
    )
    layers = xla_flops(LLM(config, scan=False), floats(BATCH, 64, 512))
    counted = flops.llm(config, BATCH * 64, BATCH * 64 * 64, 0)
    assert layers == pytest.approx(counted, rel=TOLERANCE)
    scanned = xla_flops(LLM(config), floats(BATCH, 64, 512))
    assert scanned < 0.6 * counted  # one of two layers: why this file exists
    logits = xla_flops(LLM(config), floats(BATCH, 64, 512), method="logits")
    assert logits == pytest.approx(flops.llm(config, 0, 0, BATCH * 64), rel=1e-3)


def test_audio_head_as_xla_counts():
    config = AudioHeadConfig(512, 2, (512, 256, 128, 64, 64, 64, 64, 64))
    seen = xla_flops(AudioHead(config), floats(96, 512), floats(96, 8, 512))
    counted = flops.audio_head(config, 96) + 2 * 96 * masked_pairs(8) * 4 * 512
    assert seen == pytest.approx(counted, rel=TOLERANCE)


def test_audio_encoder_as_xla_counts():
    config = AudioEncoderConfig(mel_bins=80, width=512, layers=2, heads=4, ffn_width=2048)
    seen = xla_flops(AudioEncoder(config, scan=False), floats(BATCH, 200, 80), LENGTHS)
    assert seen == pytest.approx(flops.audio_encoder(config, [200] * BATCH), rel=TOLERANCE)


def test_vq_bridge_as_xla_counts():
    config = VQBridgeConfig(256, 4, (512, 256, 128, 64, 64, 64, 64, 64))
    seen = xla_flops(VQBridge(config), floats(BATCH, 80, 256), LENGTHS)
    assert seen == pytest.approx(flops.vq_bridge(config, BATCH * 20), rel=TOLERANCE)


def test_a_decoder_of_another_width_as_xla_counts():
    """nano_whisper's bridge: 512 wide, projected to a decoder 256 wide."""
    narrow = from_mapping(BaichuanAudioConfig, get_config("nano_whisper")).vq_bridge
    assert narrow.decoder_width not in (None, narrow.width)
    wide = dataclasses.replace(narrow, decoder_width=None)
    seen, counted = (
        [count(config) for config in (narrow, wide)]
        for count in (
            lambda c: xla_flops(VQBridge(c), floats(BATCH, 80, c.width), LENGTHS),
            lambda c: flops.vq_bridge(c, BATCH * 20),
        )
    )
    assert 0 < seen[1] - seen[0] == pytest.approx(counted[1] - counted[0], rel=1e-3)
    assert seen == pytest.approx(counted, rel=TOLERANCE)


def test_audio_decoder_as_xla_counts():
    config = AudioDecoderConfig(
        width=512, layers=2, heads=4, ffn_width=2048, mel_bins=80, refine_channels=(256,) * 4
    )
    seen = xla_flops(AudioDecoder(config, scan=False), floats(BATCH, 32, 512), LENGTHS)
    counted = flops.audio_decoder(config, [32] * BATCH) + BATCH * 2 * masked_pairs(127) * 4 * 512
    assert seen == pytest.approx(counted, rel=TOLERANCE)


def test_flow_prenet_as_xla_counts():
    config = FlowPrenetConfig(
        in_width=256, width=512, layers=2, heads=4, ffn_width=2048, mel_bins=80
    )
    seen = xla_flops(FlowPrenet(config, scan=False), floats(BATCH, 100, 256), LENGTHS)
    counted = flops.flow_prenet(config, [100] * BATCH) + BATCH * 2 * masked_pairs(100) * 4 * 512
    assert seen == pytest.approx(counted, rel=TOLERANCE)


def test_flow_unet_as_xla_counts():
    config = FlowUNetConfig(
        mel_bins=80, channels=256, blocks=2, mid_blocks=2, heads=4, head_dim=64, chunk=100
    )
    mel = floats(BATCH, 100, 80)
    seen = xla_flops(FlowUNet(config, scan=False), mel, mel, floats(BATCH), LENGTHS)
    assert seen == pytest.approx(flops.flow_unet(config, [100] * BATCH), rel=TOLERANCE)


def test_vocoder_as_xla_counts():
    config = VocoderConfig(base_channels=512, f0_channels=128)
    mel, module = floats(BATCH, 40, 80), Vocoder(config)
    f0 = xla_flops(module, mel, LENGTHS, method="f0")
    assert f0 == pytest.approx(flops.vocoder_f0(config, [40] * BATCH), rel=TOLERANCE)
    samples = 40 * 480
    generator = xla_flops(module, mel, floats(BATCH, samples, 1), LENGTHS, method="decode")
    counted = flops.vocoder_generator(config, [40] * BATCH)
    counted -= flops.dense(BATCH * samples, 9, 1)  # the source is made outside `decode`
    assert generator == pytest.approx(counted, rel=TOLERANCE)


def test_discriminators_as_xla_counts():
    config = DiscriminatorConfig(periods=(2, 5), fft_sizes=(1024, 512))
    seen = xla_flops(Discriminators(config), floats(BATCH, 24000))
    assert seen == pytest.approx(flops.discriminators(config, 24000, BATCH), rel=TOLERANCE)


# --- training, pairs, lengths -------------------------------------------------------------------


def test_training_counts_only_the_products_of_the_backward_pass():
    assert flops.train(10) == 30
    assert flops.train(10, trained=False) == 20
    assert flops.train(10, through=False) == 20
    assert flops.train(10, trained=False, through=False) == 10


def test_training_as_xla_counts():
    """A matrix product: value and gradients with respect to weights, inputs, or both."""
    x, w = floats(256, 256), floats(256, 256)

    def value(x, w):
        return jnp.sum(x @ w)

    def count(argnums) -> float:
        step = jax.jit(jax.value_and_grad(value, argnums))
        return step.lower(x, w).cost_analysis()["flops"]

    forward = flops.dense(256, 256, 256)
    assert count((0, 1)) == pytest.approx(flops.train(forward), rel=0.01)
    assert count(0) == pytest.approx(flops.train(forward, trained=False), rel=0.01)
    assert count(1) == pytest.approx(flops.train(forward, through=False), rel=0.01)


def test_pairs_are_those_of_the_masks():
    from ba_jax.models.flow_unet import chunk_mask
    from ba_jax.models.llm import packed_mask

    segments_BL = np.array([[1, 1, 1, 2, 2, 0, 0], [0, 3, 3, 3, 3, 4, 0], [0] * 7])
    assert flops.packed_pairs(segments_BL) == int(packed_mask(jnp.asarray(segments_BL)).sum())
    assert flops.causal_pairs([3, 2, 4, 1]) == flops.packed_pairs(segments_BL)

    lengths = [0, 1, 9, 10, 11, 25]
    config = FlowUNetConfig(
        mel_bins=8, channels=8, blocks=1, mid_blocks=0, heads=1, head_dim=8, chunk=10
    )
    far = dataclasses.replace(config, chunk=25)
    seen = 0
    for length in lengths:
        seen += int(chunk_mask(jnp.array([length]), 25, 10)[0, 0, :length].sum())
    unseen = sum(length**2 for length in lengths) - seen
    assert flops.flow_unet(far, lengths) - flops.flow_unet(config, lengths) == 2 * unseen * 4 * 8


def test_items_add_up_and_nothing_is_free(released):
    c = released
    for count, config in (
        (flops.audio_encoder, c.audio_encoder),
        (flops.audio_decoder, c.audio_decoder),
        (flops.flow_prenet, c.flow_prenet),
        (flops.flow_unet, c.flow_unet),
        (flops.vocoder, c.vocoder),
    ):
        assert count(config, np.array([40, 33])) == count(config, 40) + count(config, 33)
        assert 0 < count(config, 33) < count(config, 40)
    for count, config in ((flops.audio_encoder, c.audio_encoder), (flops.vocoder, c.vocoder)):
        assert count(config, []) == 0
        assert count(config, [0, 40]) == count(config, 40)
    assert flops.audio_decoder(c.audio_decoder, [0, 40]) == flops.audio_decoder(c.audio_decoder, 40)


@pytest.mark.parametrize("lengths", [[3.5], [-1], ["a"]])
def test_bad_lengths_are_refused(released, lengths):
    with pytest.raises(ValueError, match="expected integers >= 0"):
        flops.audio_encoder(released.audio_encoder, lengths)
