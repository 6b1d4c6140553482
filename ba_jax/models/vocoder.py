"""Vocoder: 80-bin mel at 50 Hz to a 24 kHz waveform (HiFTNet, arXiv 2309.09493).

A predictor reads f0 from the mel; a neural source filter turns f0 into harmonics and noise
(`vocoder_source`); a generator in the style of HiFi-GAN (arXiv 2010.05646) upsamples the mel, adds
the source's spectrum at every resolution and predicts a short-time spectrum, which an inverse STFT
turns into a waveform (`vocoder_stft`). Baichuan-Audio (arXiv 2502.17239) uses the released
CosyVoice 2 weights.

Shapes: B batch, T mel frames, M mel bins, S samples (`config.frame_samples`, 480, a frame), C
channels; here H is the fundamental and its harmonics (9), R frames of the short-time spectrum. Each
method takes lengths in mel frames, ignores its input past them and returns zeros past them: an item
has the same result in a padded batch as alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.layers import Dtype, Layer, length_mask, zero_past
from ba_jax.models.vocoder_config import VocoderConfig
from ba_jax.models.vocoder_source import (
    HarmonicMixer,
    draw_source_noise,
    draw_source_phase,
    frame_phase,
    fundamental_phase,
    item_keys,
    sine_of_cycles,
    sine_squared,
)
from ba_jax.models.vocoder_stft import inverse_stft, source_stft
from ba_jax.models.weight_norm import WeightNormConv, WeightNormConvTranspose

_EXACT = jax.lax.Precision.HIGHEST  # float32 products also where the device prefers fewer bits


class WindowPosition(NamedTuple):
    """Positions of windows of mels in their segments, all (B,) int32.

    Attributes:
      first_B: frames of the segment before the window.
      anchor_B, phase_B: a frame of the window and the fundamental's phase before it. f0 needs
        `f0_layers` frames on either side, so the anchor is that far from the window's start, or the
        segment's first frame.
      next_B: the frame of this window that will be the next window's anchor.
    """

    first_B: jax.Array
    anchor_B: jax.Array
    phase_B: jax.Array
    next_B: jax.Array


class Snake(nn.Module):
    """x + sin(alpha x)^2 / (alpha + 1e-9) (arXiv 2006.08195), alpha per channel; float32 inside."""

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        alpha = self.param("alpha", nn.initializers.ones, (x_BTC.shape[-1],), self.param_dtype)
        alpha = alpha.astype(jnp.float32)[None, None]
        x = x_BTC.astype(jnp.float32)
        return (x + sine_squared(alpha * x) * (1 / (alpha + 1e-9))).astype(x_BTC.dtype)


class ResBlock(Layer):
    """Residual block of HiFi-GAN with Snake: one pair of convolutions per dilation.

    Input and output are zero past the lengths, which are in frames of this block's resolution.
    """

    kernel_size: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x_BTC: jax.Array, lengths_B: jax.Array) -> jax.Array:
        def conv(x: jax.Array, name: str, dilation: int) -> jax.Array:
            y = WeightNormConv(
                x_BTC.shape[-1],
                (self.kernel_size,),
                dilation=(dilation,),
                padding=((self.kernel_size - 1) * dilation // 2,),
                name=name,
                **self.dtypes,
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

    Always float32: rounding f0 to bfloat16 would detune the excitation.
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


class Vocoder(Layer):
    """HiFT vocoder; see the module docstring.

    Attributes:
      config: sizes.
      dtype: compute type of the generator's convolutions (float32 or bfloat16). f0, source, the
        magnitude's exponential, the last convolution and both STFTs are always float32.
      param_dtype: type of the parameters.
    """

    config: VocoderConfig

    def setup(self):
        c = self.config
        self.f0_predictor = F0Predictor(c, self.param_dtype)
        self.source_mixer = HarmonicMixer(self.param_dtype)
        self.conv_pre = WeightNormConv(c.base_channels, (7,), padding=(3,), **self.dtypes)
        widths = [c.base_channels >> (i + 1) for i in range(c.stages)]
        self.ups = [
            WeightNormConvTranspose(width, kernel, rate, **self.dtypes)
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
                **self.dtypes,
            )
            for width, stride in zip(widths, c.source_strides, strict=True)
        ]
        self.source_resblocks = [
            ResBlock(kernel, c.dilations, **self.dtypes) for kernel in c.source_resblock_kernels
        ]
        self.resblocks = [
            ResBlock(kernel, c.dilations, **self.dtypes)
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
        """Excitation for f0. No gradient reaches f0: its predictor is trained by another loss.

        Args:
          f0_BT: Hz.
          lengths_B: valid mel frames.
          phase_BH: initial phase of each harmonic, radians (`draw_source_phase`).
          noise_BSH: standard normal noise (`draw_source_noise`); None: no noise.
          fundamental_BT: see `fundamental_phase`; None: the first frame is the segment's first.

        Returns:
          source_BS1 and uv_BS (1 where voiced, 0 elsewhere), float32.
        """
        c = self.config
        f0 = jnp.where(length_mask(lengths_B, f0_BT.shape[1]), f0_BT, 0).astype(jnp.float32)
        f0 = jax.lax.stop_gradient(f0)
        batch, frames = f0.shape
        count = c.harmonics + 1
        # The phase at sample j of a frame includes the advance of that sample, hence j + 1.
        ordinal = jnp.arange(1, c.frame_samples + 1, dtype=jnp.float32)
        harmonic = jnp.arange(1, count + 1, dtype=jnp.float32)
        steps = (ordinal[:, None] * harmonic[None])[None, None]
        start_BTH = frame_phase(f0, c, fundamental_BT)
        cycles = f0[:, :, None, None] * steps / c.sample_rate + start_BTH[:, :, None]
        cycles = cycles + phase_BH[:, None, None] / (2 * np.pi)
        sines = c.sine_amplitude * sine_of_cycles(cycles)
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
          ValueError: as `f0`, or a source without `frame_samples` samples a mel frame.
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
        stage_lengths_B = lengths_B
        for i, rate in enumerate(c.upsample_rates):
            stage_lengths_B = stage_lengths_B * rate
            x = zero_past(self.ups[i](nn.leaky_relu(x, c.leaky_slope)), stage_lengths_B)
            if i == c.stages - 1:  # one frame by reflection, to match the centred STFT's count
                x = jnp.concatenate([x[:, 1:2], x], axis=1)
                stage_lengths_B = jnp.where(lengths_B > 0, stage_lengths_B + 1, 0)
            excitation = zero_past(self.source_downs[i](spectrum), stage_lengths_B)
            x = x + self.source_resblocks[i](excitation, stage_lengths_B)
            kernels = len(c.resblock_kernels)
            blocks = self.resblocks[i * kernels : (i + 1) * kernels]
            x = sum(block(x, stage_lengths_B) for block in blocks) / kernels
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
    ) -> tuple[jax.Array, jax.Array]:
        """Mel to wave_BS, and the source_BS1 used.

        Args:
          mel_BTM: natural-log mel at `frame_rate` frames a second.
          lengths_B: valid frames.
          key: random key for the source's phase and noise, or one for each item.

        Raises:
          ValueError: as `f0`.
        """
        source = self._excite(self.f0(mel_BTM, lengths_B), lengths_B, key)
        return self.decode(mel_BTM, source, lengths_B), source

    def window(
        self, mel_BTM: jax.Array, lengths_B: jax.Array, key: jax.Array, position: WindowPosition
    ) -> tuple[jax.Array, jax.Array]:
        """A window of each segment's mel to wave_BS, and the phase_B before `position.next_B`.

        The samples equal those of the whole segment, except within `receptive_field` frames of an
        end where the segment continues.

        Args:
          mel_BTM, lengths_B, key: as in `__call__`.
          position: positions of the windows in their segments.

        Raises:
          ValueError: as `f0`.
        """
        f0_BT = self.f0(mel_BTM, lengths_B)
        fundamental = fundamental_phase(f0_BT, self.config, position.anchor_B, position.phase_B)
        source = self._excite(f0_BT, lengths_B, key, fundamental, position.first_B)
        wave = self.decode(mel_BTM, source, lengths_B)
        return wave, jnp.take_along_axis(fundamental, position.next_B[:, None], axis=1)[:, 0]

    def _excite(self, f0_BT, lengths_B, key, fundamental_BT=None, first_B=0) -> jax.Array:
        """source_BS1 with phase and noise drawn from a key.

        `first_B` is the position of the first frame in its segment.
        """
        c = self.config
        batch, frames = f0_BT.shape
        phase_key, noise_key = jax.vmap(jax.random.split, out_axes=1)(item_keys(key, batch))
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
