"""Discriminators that train the vocoder: multi-period and multi-resolution.

`MultiPeriodDiscriminator` folds the waveform into rows of p samples and convolves down the columns
(HiFi-GAN, arXiv 2010.05646). `MultiResolutionDiscriminator` looks at bands of complex spectrograms
of several window lengths (Descript Audio Codec, arXiv 2306.06546).

They judge training crops: every waveform of a batch is S samples of real signal without padding, so
there are no lengths. A crop that is too short for the longest window raises `ShortWaveError`.

Scores and feature maps are lists. A score (B, P) has one entry for each patch that a discriminator
judges; a feature map is (B, rows, columns, C), and the last one of each discriminator is its score
before flattening.
"""

from __future__ import annotations

import dataclasses

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from ba_jax.audio.stft import hann_window, stft
from ba_jax.models.layers import Layer
from ba_jax.models.weight_norm import WeightNormConv

Judgement = tuple[list[jax.Array], list[list[jax.Array]]]


class ShortWaveError(ValueError):
    """A waveform that is too short for the discriminators."""


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the discriminators; the defaults are the published ones.

    Attributes:
      periods: in samples, one discriminator each.
      period_channels: channels of the convolutions of a `PeriodDiscriminator`; all but the last
        stride by 3.
      fft_sizes: window lengths in samples, one discriminator each; the hop is a quarter.
      bands: limits of the frequency bands as parts of the n_fft / 2 + 1 bins; each band has
        separate convolutions.
      resolution_channels: channels of the convolutions on a band.

    Raises:
      ValueError: a band that holds no bin of the smallest window.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    fft_sizes: tuple[int, ...] = (2048, 1024, 512)
    bands: tuple[tuple[float, float], ...] = (
        (0.0, 0.1),
        (0.1, 0.25),
        (0.25, 0.5),
        (0.5, 0.75),
        (0.75, 1.0),
    )
    resolution_channels: int = 32

    def __post_init__(self):
        bins = min(self.fft_sizes) // 2 + 1
        for band in self.bands:
            if int(band[0] * bins) >= int(band[1] * bins):
                raise ValueError(
                    f"band {band}: holds none of the {bins} bins of fft size {min(self.fft_sizes)}"
                )

    @property
    def min_samples(self) -> int:
        """The shortest waveform that can be reflected at its ends as the discriminators do."""
        return max(*(n // 2 + 1 for n in self.fft_sizes), *self.periods)


def _check_wave(wave_BS: jax.Array, min_samples: int) -> None:
    if wave_BS.ndim != 2 or wave_BS.shape[1] < min_samples:
        raise ShortWaveError(
            f"waveform of shape {wave_BS.shape}: expected (batch, samples >= {min_samples})"
        )


class PeriodDiscriminator(Layer):
    """HiFi-GAN's discriminator of one period: score (B, P) and its feature maps.

    Raises:
      ShortWaveError: a waveform of fewer samples than the period.
    """

    period: int
    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, wave_BS: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        _check_wave(wave_BS, self.period)
        missing = -wave_BS.shape[1] % self.period
        if missing:
            wave_BS = jnp.pad(wave_BS, ((0, 0), (0, missing)), mode="reflect")
        x = einops.rearrange(wave_BS, "b (t p) -> b t p 1", p=self.period)
        features = []
        last = len(self.channels) - 1
        for i, channels in enumerate(self.channels):
            x = WeightNormConv(
                channels,
                (5, 1),
                strides=(1 if i == last else 3, 1),
                padding=(2, 0),
                name=f"conv_{i}",
                **self.dtypes,
            )(x)
            x = nn.leaky_relu(x, 0.1)
            features.append(x)
        x = WeightNormConv(
            1,
            (3, 1),
            padding=(1, 0),
            name="conv_post",
            **self.dtypes,
        )(x)
        features.append(x)
        return einops.rearrange(x, "b t p 1 -> b (t p)"), features


class ResolutionDiscriminator(Layer):
    """Discriminator of one window length: score (B, P) and its feature maps.

    The waveform's mean is removed and its peak set to 0.8 first, so that loudness and offset do not
    count. Real and imaginary parts are the two input channels; frames are rows, bins columns. The
    first convolution of a band is not among the feature maps, as in the published code.

    Raises:
      ShortWaveError: a waveform of fewer than fft_size / 2 + 1 samples.
    """

    fft_size: int
    bands: tuple[tuple[float, float], ...]
    channels: int

    def spectrogram(self, wave_BS: jax.Array) -> jax.Array:
        """(B, frames, bins, 2) float32 of the normalised waveform, frames = 1 + 4 S // fft_size."""
        _check_wave(wave_BS, self.fft_size // 2 + 1)
        wave = wave_BS.astype(jnp.float32)
        wave = wave - jnp.mean(wave, axis=1, keepdims=True)
        wave = 0.8 * wave / (jnp.max(jnp.abs(wave), axis=1, keepdims=True) + 1e-9)
        window = hann_window(self.fft_size)
        spectrum = stft(wave, self.fft_size, self.fft_size // 4, window, xp=jnp)
        return jnp.stack([spectrum.real, spectrum.imag], axis=-1)

    @nn.compact
    def __call__(self, wave_BS: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        spectrum = self.spectrogram(wave_BS)
        bins = spectrum.shape[2]
        layers = (((3, 9), 1), ((3, 9), 2), ((3, 9), 2), ((3, 9), 2), ((3, 3), 1))
        features, judged = [], []
        for b, (low, high) in enumerate(self.bands):
            x = spectrum[:, :, int(low * bins) : int(high * bins)]
            for i, (kernel, stride) in enumerate(layers):
                x = WeightNormConv(
                    self.channels,
                    kernel,
                    strides=(1, stride),
                    padding=(kernel[0] // 2, kernel[1] // 2),
                    name=f"band_{b}_conv_{i}",
                    **self.dtypes,
                )(x)
                x = nn.leaky_relu(x, 0.1)
                if i > 0:
                    features.append(x)
            judged.append(x)
        x = jnp.concatenate(judged, axis=2)
        x = WeightNormConv(1, (3, 3), padding=(1, 1), name="conv_post", **self.dtypes)(x)
        features.append(x)
        return einops.rearrange(x, "b t f 1 -> b (t f)"), features


def _judge(discriminators: list[nn.Module], wave_BS: jax.Array) -> Judgement:
    """Scores and feature maps of each discriminator."""
    scores, features = zip(*(judge(wave_BS) for judge in discriminators), strict=True)
    return list(scores), list(features)


class MultiPeriodDiscriminator(Layer):
    """One `PeriodDiscriminator` a period: scores and feature maps, in the order of the periods."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, wave_BS: jax.Array) -> Judgement:
        c = self.config
        discriminators = [
            PeriodDiscriminator(period, c.period_channels, **self.dtypes, name=f"period_{period}")
            for period in c.periods
        ]
        return _judge(discriminators, wave_BS)


class MultiResolutionDiscriminator(Layer):
    """One `ResolutionDiscriminator` a window length: scores and feature maps, in their order."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, wave_BS: jax.Array) -> Judgement:
        c = self.config
        discriminators = [
            ResolutionDiscriminator(
                size, c.bands, c.resolution_channels, **self.dtypes, name=f"fft_{size}"
            )
            for size in c.fft_sizes
        ]
        return _judge(discriminators, wave_BS)


class Discriminators(Layer):
    """Both kinds together: scores and feature maps, those of the periods first.

    The input wave_BS is a batch of unpadded crops at the vocoder's sample rate. Parameters,
    spectrograms and their normalisation are float32; `dtype` is that of the convolutions.

    Raises:
      ShortWaveError: a waveform that is not (B, S) with S >= config.min_samples.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, wave_BS: jax.Array) -> Judgement:
        _check_wave(wave_BS, self.config.min_samples)
        c = self.config
        periods = MultiPeriodDiscriminator(c, **self.dtypes, name="multi_period")
        resolutions = MultiResolutionDiscriminator(c, **self.dtypes, name="multi_resolution")
        (scores, features), (more_scores, more_features) = periods(wave_BS), resolutions(wave_BS)
        return scores + more_scores, features + more_features
