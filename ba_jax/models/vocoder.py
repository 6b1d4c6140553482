"""Vocoder: 80-bin mel at 50 Hz to a 24 kHz waveform (HiFTNet, arXiv 2309.09493).

A predictor reads f0 from the mel; a neural source filter (arXiv 1904.12088) turns f0 into harmonics
and noise; a HiFi-GAN style generator (arXiv 2010.05646) upsamples the mel, adds the source's
spectrum at every resolution and predicts a short-time spectrum, which an inverse STFT makes a
waveform. Baichuan-Audio (arXiv 2502.17239) uses the released CosyVoice 2 weights.

Shapes: B batch, T mel frames, M mel bins, S samples (`config.frame_samples`, 480, a frame), C
channels; here H is the fundamental and its harmonics (9), R frames of the short-time spectrum. Each
method takes lengths in mel frames, reads nothing past them and returns zeros past them: an item
gives in a padded batch what it gives alone.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.layers import length_mask, zero_past
from ba_jax.models.vocoder_stft import inverse_stft, source_stft
from ba_jax.models.weight_norm import WeightNormConv, WeightNormConvTranspose, kernel_init

Dtype = Any
_EXACT = jax.lax.Precision.HIGHEST  # float32 products also where the device prefers fewer bits


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the vocoder; the defaults are those of the released weights.

    Attributes:
      base_channels: channels after the first convolution; each upsampling halves them.
      f0_channels: channels of the f0 predictor.
      mel_bins: bins of the input.
      sample_rate: in Hz; must be a multiple of `frame_samples`.
      harmonics: sines above the fundamental.
      upsample_rates, upsample_kernels: of the transposed convolutions.
      resblock_kernels: of the parallel residual blocks after each upsampling.
      source_resblock_kernels: of the residual block on the source at each resolution.
      dilations: of the convolutions of every residual block.
      n_fft, hop: of the short-time spectra, in samples; hop divides n_fft / 2.
      f0_layers: convolutions of the f0 predictor.
      sine_amplitude: of each harmonic.
      noise_std: of the noise on voiced samples; unvoiced ones get sine_amplitude / 3.
      voiced_threshold: f0 in Hz above which a frame is voiced.
      leaky_slope: of the leaky ReLU before each upsampling.
      max_magnitude: the magnitude spectrum is clipped there.
      audio_limit: the waveform is clipped to +- this value.

    Raises:
      ValueError: sizes that do not fit together.
    """

    base_channels: int
    f0_channels: int
    mel_bins: int = 80
    sample_rate: int = 24000
    harmonics: int = 8
    upsample_rates: tuple[int, ...] = (8, 5, 3)
    upsample_kernels: tuple[int, ...] = (16, 11, 7)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    source_resblock_kernels: tuple[int, ...] = (7, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    n_fft: int = 16
    hop: int = 4
    f0_layers: int = 5
    sine_amplitude: float = 0.1
    noise_std: float = 0.003
    voiced_threshold: float = 10.0
    leaky_slope: float = 0.1
    max_magnitude: float = 100.0
    audio_limit: float = 0.99

    def __post_init__(self):
        stages = len(self.upsample_rates)
        if self.base_channels < 1 or self.base_channels % 2**stages:
            raise ValueError(
                f"base_channels {self.base_channels}: expected a positive multiple of {2**stages},"
                f" because {stages} upsamplings halve it"
            )
        if self.f0_channels < 1:
            raise ValueError(f"f0_channels {self.f0_channels}: expected >= 1")
        for name in ("upsample_kernels", "source_resblock_kernels"):
            if len(getattr(self, name)) != stages:
                raise ValueError(f"{name} {getattr(self, name)}: expected {stages} numbers")
        if self.n_fft % (2 * self.hop):
            raise ValueError(f"n_fft {self.n_fft}: expected a multiple of 2 * hop, {2 * self.hop}")
        if self.sample_rate % self.frame_samples:
            raise ValueError(
                f"sample_rate {self.sample_rate}: expected a multiple of the {self.frame_samples}"
                " samples of a mel frame"
            )

    @property
    def frame_samples(self) -> int:
        """Samples of a mel frame."""
        return math.prod(self.upsample_rates) * self.hop

    @property
    def frame_rate(self) -> int:
        """Mel frames a second."""
        return self.sample_rate // self.frame_samples

    @property
    def source_strides(self) -> tuple[int, ...]:
        """Stride from the source's spectra to each stage's resolution."""
        return tuple(math.prod(self.upsample_rates[i + 1 :]) for i in range(self.stages))

    @property
    def stages(self) -> int:
        return len(self.upsample_rates)


class WindowPlace(NamedTuple):
    """Where windows of mels lie in their segments, all (B,) int32.

    Attributes:
      first_B: frames of the segment before the window.
      anchor_B, phase_B: a frame of the window and the fundamental's phase before it. f0 needs
        `f0_layers` frames on either side: so many from the window's start, or the segment's first.
      next_B: the frame of the window that will be the next window's anchor.
    """

    first_B: jax.Array
    anchor_B: jax.Array
    phase_B: jax.Array
    next_B: jax.Array


def _keys(key: jax.Array, batch: int) -> jax.Array:
    """One key an item: `key` folded with the row number, or `key` itself if it holds B keys."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"random keys of shape {key.shape}: expected () or ({batch},)")
    return key


def draw_source_phase(key: jax.Array, batch: int, config: VocoderConfig) -> jax.Array:
    """Random initial phases phase_BH in radians, uniform in +-pi; 0 for the fundamental.

    `key` is one random key, or one for each item.
    """

    def item(key: jax.Array) -> jax.Array:
        phase_H = jax.random.uniform(key, (config.harmonics,), jnp.float32, -math.pi, math.pi)
        return jnp.pad(phase_H, (1, 0))

    return jax.vmap(item)(_keys(key, batch))


def draw_source_noise(
    key: jax.Array, batch: int, frames: int, config: VocoderConfig, first_frame_B=0
) -> jax.Array:
    """Standard normal noise_BSH for mel frames first_frame ... first_frame + frames - 1.

    The noise of a frame depends on the key and on the frame's position alone, not on how many
    frames are drawn: a stream drawn in chunks gets what one draw would have given.

    Args:
      key: one random key, or one for each item.
      first_frame_B: position of the first frame, one number or one for each item.
    """
    positions = jnp.broadcast_to(jnp.asarray(first_frame_B), (batch,))[:, None]
    positions = positions + jnp.arange(frames)[None]

    def frame(key: jax.Array, position: jax.Array) -> jax.Array:
        shape = (config.frame_samples, config.harmonics + 1)
        return jax.random.normal(jax.random.fold_in(key, position), shape, jnp.float32)

    noise = jax.vmap(jax.vmap(frame, (None, 0)))(_keys(key, batch), positions)
    return noise.reshape(batch, -1, config.harmonics + 1)


def reach(config: VocoderConfig) -> int:
    """Mel frames on either side of a sample beyond which nothing changes it, but the phase.

    The longest way back from a sample: through the last convolutions and every stage's residual
    blocks to the mel, or at some stage over to the source and on to f0. 21 for the defaults.
    """
    c = config

    def halo(kernels: tuple[int, ...]) -> int:
        return max(kernel - 1 for kernel in kernels) // 2 * sum(d + 1 for d in c.dilations)

    samples, farthest = c.n_fft // 2 + (3 + 1) * c.hop, 0  # conv_post, the reflected frame
    step = c.hop
    for i in reversed(range(c.stages)):
        samples += halo(c.resblock_kernels) * step
        source = samples + halo(c.source_resblock_kernels[i : i + 1]) * step
        source += c.source_strides[i] * c.hop + c.n_fft // 2
        farthest = max(farthest, source + (c.f0_layers + 1) * c.frame_samples)
        step *= c.upsample_rates[i]
        samples += -(-c.upsample_kernels[i] // (2 * c.upsample_rates[i])) * step
    return -(-max(farthest, samples + 3 * c.frame_samples) // c.frame_samples)


def _phase_unit(config: VocoderConfig) -> tuple[int, int]:
    """(bits, modulus) of the phase: counted in 2^-bits Hz, a cycle is `modulus`."""
    bits = int(math.log2(2**31 / ((config.harmonics + 1) * config.frame_rate)))
    return bits, config.frame_rate << bits  # harmonic * phase stays below 2^31


def fundamental_phase(
    f0_BT: jax.Array,
    config: VocoderConfig,
    anchor_B: jax.Array | None = None,
    phase_B: jax.Array | None = None,
) -> jax.Array:
    """Phase of the fundamental before each frame, start_BT, int32, a cycle is 2^bits frame rates.

    f0 is constant inside a frame, so that a frame advances the fundamental by f0 / frame_rate
    cycles, of which only f0 modulo frame_rate counts. That remainder is exact in float32 and is
    added up in integers of 2^-bits Hz: no rounding builds up, however long the clip, and neither
    the order of the additions nor the length of the batch can change the result.

    Args:
      f0_BT: Hz.
      config: of the vocoder.
      anchor_B, phase_B: a frame of each item and the phase before it; None: 0 before the first.
    """
    rate = config.frame_rate
    bits, modulus = _phase_unit(config)
    f0 = f0_BT.astype(jnp.float32)
    remainder = f0 - jnp.floor(f0 / rate) * rate
    advance = jnp.round(remainder * 2.0**bits).astype(jnp.int32) % modulus

    def add(a: jax.Array, b: jax.Array) -> jax.Array:
        total = a + b
        return jnp.where(total >= modulus, total - modulus, total)

    start = (jax.lax.associative_scan(add, advance, axis=1) - advance) % modulus
    if anchor_B is None:
        return start
    there_B1 = jnp.take_along_axis(start, anchor_B[:, None], axis=1)
    return (start - there_B1 + phase_B[:, None]) % modulus


def frame_phase(
    f0_BT: jax.Array, config: VocoderConfig, fundamental_BT: jax.Array | None = None
) -> jax.Array:
    """Phase of each harmonic before each frame, start_BTH in cycles, [0, 1).

    `fundamental_BT` is `fundamental_phase`'s; None: with 0 before the first frame.
    """
    if fundamental_BT is None:
        fundamental_BT = fundamental_phase(f0_BT, config)
    _, modulus = _phase_unit(config)
    harmonic = jnp.arange(1, config.harmonics + 2, dtype=jnp.int32)
    start = (fundamental_BT[:, :, None] * harmonic[None, None]) % modulus
    return start.astype(jnp.float32) / modulus


def _sine(x: jax.Array) -> jax.Array:
    """sin(x) for |x| <= pi / 2 within 2e-7: an odd polynomial."""
    square = x * x
    sine = -2.3889859e-8
    for coefficient in (2.7525562e-6, -1.9840874e-4, 8.3333310e-3, -1 / 6, 1.0):
        sine = sine * square + np.float32(coefficient)
    return x * sine


def _sine_of_cycles(cycles: jax.Array) -> jax.Array:
    """sin(2 pi cycles), float32; like `_sin_squared`, several times faster than XLA's on CPU."""
    turn = cycles - jnp.round(cycles)
    folded = jnp.where(jnp.abs(turn) > 0.25, jnp.sign(turn) * 0.5 - turn, turn)
    return _sine(np.float32(2 * np.pi) * folded)


def _sin_squared(x: jax.Array) -> jax.Array:
    """sin(x)^2 within 1e-6 for |x| up to 1e4, float32; several times faster than XLA's sine on CPU.

    The period is pi: x is reduced to +-pi/2 with pi in three parts, so that no digits are lost. Far
    beyond, where float32 no longer resolves a period, the clip keeps the result in [0, 1].
    """
    count = jnp.round(x * np.float32(1 / np.pi))
    x = x - count * np.float32(3.140625)
    x = x - count * np.float32(9.67502593994e-4)
    x = jnp.clip(x - count * np.float32(1.50995799e-7), -np.pi / 2, np.pi / 2)
    return jnp.square(_sine(x))


class Snake(nn.Module):
    """x + sin(alpha x)^2 / (alpha + 1e-9) (arXiv 2006.08195), alpha per channel; float32 inside."""

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        alpha = self.param("alpha", nn.initializers.ones, (x_BTC.shape[-1],), self.param_dtype)
        alpha = alpha.astype(jnp.float32)[None, None]
        x = x_BTC.astype(jnp.float32)
        return (x + _sin_squared(alpha * x) * (1 / (alpha + 1e-9))).astype(x_BTC.dtype)


class ResBlock(nn.Module):
    """Residual block of HiFi-GAN with Snake: one pair of convolutions a dilation.

    Input and output are zero past the lengths, which are in frames of this block's resolution.
    """

    kernel_size: int
    dilations: tuple[int, ...]
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array, lengths_B: jax.Array) -> jax.Array:
        def conv(x: jax.Array, name: str, dilation: int) -> jax.Array:
            y = WeightNormConv(
                x_BTC.shape[-1],
                (self.kernel_size,),
                dilation=(dilation,),
                padding=((self.kernel_size - 1) * dilation // 2,),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                name=name,
            )(x)
            return zero_past(y, lengths_B)

        for i, dilation in enumerate(self.dilations):
            y = Snake(self.param_dtype, name=f"activations1_{i}")(x_BTC)
            y = conv(y, f"convs1_{i}", dilation)
            y = Snake(self.param_dtype, name=f"activations2_{i}")(y)
            x_BTC = x_BTC + conv(y, f"convs2_{i}", 1)
        return x_BTC


class F0Predictor(nn.Module):
    """f0 in Hz from the mel: convolutions with ELU, a linear layer, the absolute value.

    Always float32: an error of bfloat16's size in f0 would detune the excitation.
    """

    config: VocoderConfig
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, mel_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
        x = zero_past(mel_BTM.astype(jnp.float32), lengths_B)
        for i in range(self.config.f0_layers):
            x = WeightNormConv(
                self.config.f0_channels,
                (3,),
                padding=(1,),
                precision=_EXACT,
                param_dtype=self.param_dtype,
                name=f"conv_{i}",
            )(x)
            x = zero_past(nn.elu(x), lengths_B)
        x = nn.Dense(1, precision=_EXACT, param_dtype=self.param_dtype, name="classifier")(x)
        return jnp.abs(zero_past(x, lengths_B)[:, :, 0])


class HarmonicMixer(nn.Module):
    """tanh of a weighted sum over harmonics, (B, S, H) to (B, S, 1), float32.

    A multiply and a sum rather than a matrix product: they fuse with the sines, which are then
    never stored.
    """

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, sines_BSH: jax.Array) -> jax.Array:
        count = sines_BSH.shape[-1]
        kernel = self.param("kernel", kernel_init(count), (count, 1), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (1,), self.param_dtype)
        kernel, bias = kernel.astype(jnp.float32), bias.astype(jnp.float32)
        mixed = jnp.sum(sines_BSH * kernel[None, None, :, 0], axis=-1, keepdims=True)
        return jnp.tanh(mixed + bias[None, None])


class Vocoder(nn.Module):
    """HiFT vocoder; see the module docstring.

    Attributes:
      config: sizes.
      dtype: of the generator's convolutions (float32 or bfloat16). f0, source, the magnitude's
        exponential, the last convolution and both STFTs are float32 in any case.
      param_dtype: of the parameters.
    """

    config: VocoderConfig
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self):
        c = self.config
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.f0_predictor = F0Predictor(c, self.param_dtype)
        self.source_mixer = HarmonicMixer(self.param_dtype)
        self.conv_pre = WeightNormConv(c.base_channels, (7,), padding=(3,), **dtypes)
        widths = [c.base_channels >> (i + 1) for i in range(c.stages)]
        self.ups = [
            WeightNormConvTranspose(width, kernel, rate, **dtypes)
            for width, kernel, rate in zip(
                widths, c.upsample_kernels, c.upsample_rates, strict=True
            )
        ]
        self.source_downs = [
            nn.Conv(
                width,
                (1 if stride == 1 else 2 * stride,),
                strides=stride,
                padding=((0 if stride == 1 else stride // 2,) * 2,),
                kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
                **dtypes,
            )
            for width, stride in zip(widths, c.source_strides, strict=True)
        ]
        self.source_resblocks = [
            ResBlock(kernel, c.dilations, **dtypes) for kernel in c.source_resblock_kernels
        ]
        self.resblocks = [
            ResBlock(kernel, c.dilations, **dtypes)
            for _ in range(c.stages)
            for kernel in c.resblock_kernels
        ]
        self.conv_post = WeightNormConv(
            c.n_fft + 2, (7,), padding=(3,), param_dtype=self.param_dtype
        )

    def f0(self, mel_BTM: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """f0_BT in Hz, float32.

        Raises:
          ValueError: a mel that is not (B, T, mel_bins) with T >= 1, or lengths that are not (B,).
        """
        self._check(mel_BTM, lengths_B)
        return self.f0_predictor(mel_BTM, lengths_B)

    def source(
        self,
        f0_BT: jax.Array,
        lengths_B: jax.Array,
        phase_BH: jax.Array,
        noise_BSH: jax.Array | None = None,
        fundamental_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Excitation for f0. No gradient reaches f0: its predictor has a loss of its own.

        Args:
          f0_BT: Hz.
          lengths_B: valid mel frames.
          phase_BH: initial phase of each harmonic, radians (`draw_source_phase`).
          noise_BSH: standard normal noise (`draw_source_noise`); None: no noise.
          fundamental_BT: `fundamental_phase`'s; None: the first frame is the segment's first.

        Returns:
          source_BS1 and uv_BS (1 where voiced, 0 elsewhere), float32.
        """
        c = self.config
        f0 = jnp.where(length_mask(lengths_B, f0_BT.shape[1]), f0_BT, 0).astype(jnp.float32)
        f0 = jax.lax.stop_gradient(f0)
        batch, frames = f0.shape
        count = c.harmonics + 1
        # The phase at sample j of a frame counts that sample's own advance, hence j + 1.
        ordinal = jnp.arange(1, c.frame_samples + 1, dtype=jnp.float32)
        harmonic = jnp.arange(1, count + 1, dtype=jnp.float32)
        steps = (ordinal[:, None] * harmonic[None])[None, None]
        start_BTH = frame_phase(f0, c, fundamental_BT)
        cycles = f0[:, :, None, None] * steps / c.sample_rate + start_BTH[:, :, None]
        cycles = cycles + phase_BH[:, None, None] / (2 * np.pi)
        sines = c.sine_amplitude * _sine_of_cycles(cycles)
        voiced = (f0 > c.voiced_threshold).astype(jnp.float32)
        uv_BT11 = voiced[:, :, None, None]
        sines = sines * uv_BT11
        if noise_BSH is not None:
            std = uv_BT11 * c.noise_std + (1 - uv_BT11) * (c.sine_amplitude / 3)
            noise = noise_BSH.reshape(batch, frames, c.frame_samples, count)
            sines = sines + std * noise.astype(jnp.float32)
        source = self.source_mixer(sines.reshape(batch, -1, count))
        source = zero_past(source, lengths_B * c.frame_samples)
        return source, jnp.repeat(voiced, c.frame_samples, axis=1)

    def decode(self, mel_BTM: jax.Array, source_BS1: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """wave_BS, float32 within +-audio_limit, from a mel and its excitation.

        Raises:
          ValueError: as `f0`, or a source that has not `frame_samples` samples a mel frame.
        """
        c = self.config
        self._check(mel_BTM, lengths_B)
        expected = (mel_BTM.shape[0], mel_BTM.shape[1] * c.frame_samples, 1)
        if source_BS1.shape != expected:
            raise ValueError(f"source of shape {source_BS1.shape}: expected {expected}")
        samples_B = lengths_B * c.frame_samples
        source = zero_past(source_BS1.astype(jnp.float32), samples_B)[:, :, 0]
        spectrum = source_stft(source, samples_B, c.n_fft, c.hop).astype(self.dtype)
        x = zero_past(mel_BTM.astype(self.dtype), lengths_B)
        x = zero_past(self.conv_pre(x), lengths_B)
        here_B = lengths_B
        for i, rate in enumerate(c.upsample_rates):
            here_B = here_B * rate
            x = zero_past(self.ups[i](nn.leaky_relu(x, c.leaky_slope)), here_B)
            if i == c.stages - 1:  # one frame by reflection, to match the centred STFT's count
                x = jnp.concatenate([x[:, 1:2], x], axis=1)
                here_B = jnp.where(lengths_B > 0, here_B + 1, 0)
            excitation = zero_past(self.source_downs[i](spectrum), here_B)
            x = x + self.source_resblocks[i](excitation, here_B)
            kernels = len(c.resblock_kernels)
            blocks = self.resblocks[i * kernels : (i + 1) * kernels]
            x = sum(block(x, here_B) for block in blocks) / kernels
        x = self.conv_post(nn.leaky_relu(x.astype(jnp.float32), 0.01))
        bins = c.n_fft // 2 + 1
        # The inner bound keeps the gradient finite where exp would overflow.
        log_limit = math.log(c.max_magnitude) + 1
        magnitude = jnp.minimum(jnp.exp(jnp.minimum(x[..., :bins], log_limit)), c.max_magnitude)
        phase = jnp.sin(x[..., bins:])
        spectrum = jnp.concatenate(
            [magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)], axis=-1
        )
        wave = inverse_stft(spectrum, samples_B, c.n_fft, c.hop)
        return jnp.clip(wave, -c.audio_limit, c.audio_limit)

    def __call__(
        self,
        mel_BTM: jax.Array,
        lengths_B: jax.Array,
        key: jax.Array,
        cached_source_BS1: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Mel to wave_BS, and the source_BS1 used.

        Args:
          mel_BTM: natural-log mel at `frame_rate` frames a second.
          lengths_B: valid frames.
          key: random key for the source's phase and noise, or one for each item.
          cached_source_BS1: if given, takes the place of the first samples of the source, so that a
            chunk which starts with frames already heard continues their excitation.

        Raises:
          ValueError: as `f0`, or a cached source that is longer than the mel.
        """
        c = self.config
        source = self._excite(self.f0(mel_BTM, lengths_B), lengths_B, key)
        if cached_source_BS1 is not None:
            cached = cached_source_BS1.shape[1]
            if cached > source.shape[1]:
                raise ValueError(
                    f"cached source of {cached} samples: expected at most the {source.shape[1]}"
                    " of the mel"
                )
            source = jnp.concatenate(
                [cached_source_BS1.astype(jnp.float32), source[:, cached:]], axis=1
            )
            source = zero_past(source, lengths_B * c.frame_samples)
        return self.decode(mel_BTM, source, lengths_B), source

    def window(
        self, mel_BTM: jax.Array, lengths_B: jax.Array, key: jax.Array, place: WindowPlace
    ) -> tuple[jax.Array, jax.Array]:
        """A window of each segment's mel to wave_BS, and the phase_B before `place.next_B`.

        The samples are those that the whole segment gives, but for `reach` frames at either end
        where the segment goes on.

        Args:
          mel_BTM, lengths_B, key: as `__call__`'s.
          place: of the windows.

        Raises:
          ValueError: as `f0`.
        """
        f0_BT = self.f0(mel_BTM, lengths_B)
        fundamental = fundamental_phase(f0_BT, self.config, place.anchor_B, place.phase_B)
        source = self._excite(f0_BT, lengths_B, key, fundamental, place.first_B)
        wave = self.decode(mel_BTM, source, lengths_B)
        return wave, jnp.take_along_axis(fundamental, place.next_B[:, None], axis=1)[:, 0]

    def _excite(self, f0_BT, lengths_B, key, fundamental_BT=None, first_B=0) -> jax.Array:
        """source_BS1 with phase and noise from a key; `first_B` is the first frame's position."""
        c = self.config
        batch, frames = f0_BT.shape
        phase_key, noise_key = jax.vmap(jax.random.split, out_axes=1)(_keys(key, batch))
        phase = draw_source_phase(phase_key, batch, c)
        noise = draw_source_noise(noise_key, batch, frames, c, first_B)
        return self.source(f0_BT, lengths_B, phase, noise, fundamental_BT)[0]

    def _check(self, mel_BTM: jax.Array, lengths_B: jax.Array) -> None:
        shape = mel_BTM.shape
        if len(shape) != 3 or shape[1] < 1 or shape[2] != self.config.mel_bins:
            raise ValueError(
                f"mel of shape {shape}: expected (batch, frames >= 1, {self.config.mel_bins})"
            )
        if lengths_B.shape != shape[:1]:
            raise ValueError(f"lengths of shape {lengths_B.shape}: expected {shape[:1]}")
