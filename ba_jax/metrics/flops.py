"""Analytic FLOPs of every component, from its config and the real number of frames or tokens.

Counts two for each multiply-add of matrix products and convolutions in the forward pass; `train`
adds the backward pass. Not counted: norms, activations, biases, softmax, resizing, FFTs, losses,
the optimiser, and recomputation by remat. Padding and masked pairs of positions do not count: this
is the work that the model needs, the device does more. Convolutions count all taps, those on the
zeros around an item too. XLA's count is no substitute: it counts the body of a scan once.

Lengths are an integer or an array of integers, one per item; results are integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ba_jax.audio.lengths import encoder_length
from ba_jax.models.audio_decoder import AudioDecoderConfig
from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.audio_head import AudioHeadConfig
from ba_jax.models.discriminators import DiscriminatorConfig
from ba_jax.models.flow_prenet import FlowPrenetConfig
from ba_jax.models.flow_unet import FlowUNetConfig
from ba_jax.models.llm import LLMConfig
from ba_jax.models.vocoder_config import VocoderConfig
from ba_jax.models.vq_bridge import VQBridgeConfig


def train(forward: int, trained: bool = True, through: bool = True) -> int:
    """Forward and backward FLOPs of a module whose forward pass takes `forward` FLOPs.

    The backward pass has a product of the forward's size for the weights, if they are `trained`,
    and another for the inputs, if gradients pass `through` to earlier modules: 3, 2 or 1 times.
    """
    return forward * (1 + bool(trained) + bool(through))


def _integers(name: str, values: Any) -> np.ndarray:
    array = np.atleast_1d(np.asarray(values))
    if array.size and (array.dtype.kind not in "iu" or array.min() < 0):
        raise ValueError(f"{name} {values!r}: expected integers >= 0")
    return array.astype(np.int64).reshape(-1)


def dense(rows: int, inputs: int, outputs: int) -> int:
    """A linear layer on `rows` vectors; a convolution has kernel * channels inputs."""
    return 2 * int(rows) * inputs * outputs


def causal_pairs(lengths: Any) -> int:
    """(query, key) pairs of causal attention within each of several sequences."""
    lengths = _integers("lengths", lengths)
    return int(np.sum(lengths * (lengths + 1) // 2))


def packed_pairs(segments_BL: np.ndarray) -> int:
    """Pairs of causal attention within each segment of packed rows; 0 is padding."""
    return sum(
        causal_pairs(np.unique(row[row > 0], return_counts=True)[1])
        for row in np.asarray(segments_BL)
    )


def _chunk_pairs(lengths: np.ndarray, chunk: int) -> int:
    """Pairs where a query sees all keys before the end of its own chunk."""
    whole, rest = lengths // chunk, lengths % chunk
    return int(np.sum(chunk * chunk * (whole * (whole + 1) // 2) + rest * lengths))


def _attention(pairs: int, width: int) -> int:
    """Scores and their sum of values over all heads, `width` wide together."""
    return 4 * int(pairs) * width


def _transformer(rows: int, pairs: int, layers: int, width: int, ffn_width: int) -> int:
    """Layers of four projections and a feed-forward of two."""
    layer = dense(rows, width, 4 * width + 2 * ffn_width) + _attention(pairs, width)
    return layers * layer


def llm(config: LLMConfig, tokens: int, attention_pairs: int, logits: int) -> int:
    """Layers on `tokens` positions, output layer on `logits` of them.

    Args:
      config: sizes.
      tokens, logits: numbers of positions.
      attention_pairs: (query, key) pairs, see `causal_pairs` and `packed_pairs`.
    """
    c = config
    inner = c.heads * c.head_dim
    layer = dense(tokens, c.width, 2 * inner + 2 * c.kv_heads * c.head_dim + 3 * c.ffn_width)
    layer += _attention(attention_pairs, inner)
    return c.layers * layer + dense(logits, c.width, c.vocab_size)


def audio_head(config: AudioHeadConfig, frames: int, depths: int | None = None) -> int:
    """The first `depths` depths (None: all) of `frames` frames in one teacher-forced pass."""
    c, depths = config, config.depth if depths is None else depths
    layer = _transformer(frames * depths, frames * causal_pairs(depths), 1, c.width, 2 * c.width)
    classifiers = dense(frames, c.width, sum(size + 1 for size in c.codebook_sizes[:depths]))
    return c.layers * layer + classifiers


def audio_encoder(config: AudioEncoderConfig, lengths: Any) -> int:
    """`lengths` in mel frames of 10 ms."""
    c = config
    mel = _integers("lengths", lengths)
    frames = np.where(mel > 0, encoder_length(mel), 0)
    total = int(frames.sum())
    convolutions = dense(mel.sum(), 3 * c.mel_bins, c.width) + dense(total, 3 * c.width, c.width)
    pairs = int(np.sum(frames**2))
    return convolutions + _transformer(total, pairs, c.layers, c.width, c.ffn_width)


def vq_projections(config: VQBridgeConfig, frames: int) -> int:
    """Bridge and the projection to the audio decoder, on frames of codes."""
    wide = config.code_width
    return dense(frames, wide, 3 * wide + (config.decoder_width or config.width))


def vq_distances(config: VQBridgeConfig, frames: int) -> int:
    """Products with all rows of all codebooks. No gradient passes: count them once."""
    return dense(frames, config.code_width, sum(config.codebook_sizes))


def vq_bridge(config: VQBridgeConfig, frames: int) -> int:
    """Everything on frames of codes; without a gradient, see its two parts."""
    return vq_projections(config, frames) + vq_distances(config, frames)


def audio_decoder(config: AudioDecoderConfig, lengths: Any) -> int:
    """`lengths` in frames of codes; both mels."""
    c = config
    codes = _integers("lengths", lengths)
    hidden, mel = c.hidden_length(codes), c.decoded_frames(codes)
    total = dense(codes.sum(), c.width, c.kernel_size * c.width)
    total += _transformer(int(hidden.sum()), causal_pairs(hidden), c.layers, c.width, c.ffn_width)
    total += dense(hidden.sum(), c.width, c.kernel_size * c.mel_bins)
    inputs = c.mel_bins
    for channels in c.refine_channels:
        total += dense(mel.sum(), 5 * inputs, channels)
        inputs = channels
    return total + dense(mel.sum(), inputs, c.mel_bins)


def flow_prenet(config: FlowPrenetConfig, lengths: Any) -> int:
    """`lengths` in frames of the audio decoder's features (50 Hz)."""
    c = config
    frames = np.floor(_integers("lengths", lengths) * c.length_ratio).astype(np.int64)
    total = int(frames.sum())
    mlp = dense(total, c.in_width + c.width, 4 * c.width)
    layers = _transformer(total, causal_pairs(frames), c.layers, c.width, c.ffn_width)
    return mlp + layers + dense(total, c.width, c.mel_bins)


def flow_unet(config: FlowUNetConfig, lengths: Any) -> int:
    """One evaluation; `lengths` in mel frames (50 Hz). Guidance takes two per step."""
    c = config
    frames = _integers("lengths", lengths)
    items, total, width = len(frames), int(frames.sum()), c.channels
    inner = c.heads * c.head_dim
    layer = dense(total, width, 4 * inner + 2 * 4 * width)
    layer += _attention(_chunk_pairs(frames, c.chunk), inner)

    def stage(inputs: int) -> int:
        blocks = dense(total, 3 * inputs + 3 * width + inputs, width)
        return blocks + dense(items, c.time_width, width) + c.blocks * layer

    time = dense(items, 2 * c.mel_bins + c.time_width, c.time_width)
    stages = stage(2 * c.mel_bins) + c.mid_blocks * stage(width) + stage(2 * width)
    convolutions = 3 * dense(total, 3 * width, width)  # after "down", after "up", the final block
    return time + stages + convolutions + dense(total, width, c.mel_bins)


def vocoder_f0(config: VocoderConfig, lengths: Any) -> int:
    """The f0 predictor; `lengths` in mel frames (50 Hz)."""
    c = config
    total = int(_integers("lengths", lengths).sum())
    inputs = 3 * (c.mel_bins + (c.f0_layers - 1) * c.f0_channels)
    return dense(total, inputs, c.f0_channels) + dense(total, c.f0_channels, 1)


def vocoder_generator(config: VocoderConfig, lengths: Any) -> int:
    """Source and generator; `lengths` in mel frames (50 Hz).

    Both short-time transforms are matrix products there, and counted.
    """
    c = config
    frames = _integers("lengths", lengths)
    frames = frames[frames > 0]
    here, width, spectrum = int(frames.sum()), c.base_channels, c.n_fft + 2
    spectra = int(np.sum(frames * (c.frame_samples // c.hop) + 1))
    total = dense(here * c.frame_samples, c.harmonics + 1, 1)
    total += 2 * dense(spectra, c.n_fft, spectrum)
    total += dense(here, 7 * c.mel_bins, width)
    for i, rate in enumerate(c.upsample_rates):
        total += dense(here, width, c.upsample_kernels[i] * (width // 2))
        here, width = here * rate, width // 2
        if i == c.stages - 1:
            here += len(frames)  # the reflected frame
        stride = c.source_strides[i]
        total += dense(here, (1 if stride == 1 else 2 * stride) * spectrum, width)
        kernels = sum(c.resblock_kernels) + c.source_resblock_kernels[i]
        total += 2 * len(c.dilations) * dense(here, kernels * width, width)
    return total + dense(here, 7 * width, spectrum)


def vocoder(config: VocoderConfig, lengths: Any) -> int:
    """Mel to waveform; `lengths` in mel frames (50 Hz)."""
    return vocoder_f0(config, lengths) + vocoder_generator(config, lengths)


def discriminators(config: DiscriminatorConfig, samples: int, items: int = 1) -> int:
    """Both kinds on `items` waveforms of `samples` samples each; the spectrograms are FFTs."""
    c = config
    total = 0
    for period in c.periods:
        rows, inputs = -(-samples // period), 1
        for i, channels in enumerate(c.period_channels):
            rows = (rows - 1) // (1 if i == len(c.period_channels) - 1 else 3) + 1
            total += dense(rows * period, 5 * inputs, channels)
            inputs = channels
        total += dense(rows * period, 3 * inputs, 1)
    for fft_size in c.fft_sizes:
        rows, bins = 1 + samples // (fft_size // 4), fft_size // 2 + 1
        judged = 0
        for low, high in c.bands:
            columns, inputs = int(high * bins) - int(low * bins), 2
            for taps, stride in ((27, 1), (27, 2), (27, 2), (27, 2), (9, 1)):
                columns = (columns - 1) // stride + 1
                total += dense(rows * columns, taps * inputs, c.resolution_channels)
                inputs = c.resolution_channels
            judged += columns
        total += dense(rows * judged, 9 * c.resolution_channels, 1)
    return items * total
