"""Sizes of the vocoder, and its receptive field."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the vocoder; the defaults are those of the released weights.

    Attributes:
      base_channels: channels after the first convolution; each upsampling halves them.
      f0_channels: channels of the f0 predictor.
      mel_bins: bins of the input.
      sample_rate: in Hz; must be a multiple of `frame_samples`.
      harmonics: sines above the fundamental.
      upsample_rates, upsample_kernels: strides and widths of the transposed convolutions.
      resblock_kernels: widths of the parallel residual blocks after each upsampling.
      source_resblock_kernels: widths of the residual block on the source at each resolution.
      dilations: dilations of the convolutions of every residual block.
      n_fft, hop: window and hop of the short-time spectra, in samples; hop divides n_fft / 2.
      f0_layers: convolutions of the f0 predictor.
      sine_amplitude: amplitude of each harmonic.
      noise_std: standard deviation of the noise on voiced samples; unvoiced ones get sine_amplitude
        / 3.
      voiced_threshold: f0 in Hz above which a frame is voiced.
      leaky_slope: slope of the leaky ReLU before each upsampling.
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
        for name, value in dataclasses.asdict(self).items():
            numbers = value if isinstance(value, tuple) else (value,)
            least = 0 if isinstance(value, float) or name == "harmonics" else 1
            if not all(least <= number < math.inf for number in numbers):
                raise ValueError(f"{name} {value}: expected >= {least}")
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
        """Stride from the source's spectra to the resolution of each stage."""
        return tuple(math.prod(self.upsample_rates[i + 1 :]) for i in range(self.stages))

    @property
    def stages(self) -> int:
        """Number of upsamplings."""
        return len(self.upsample_rates)


def receptive_field(config: VocoderConfig) -> int:
    """Mel frames on either side that a sample depends on, apart from the source's phase.

    The longest path back from a sample: through the last convolutions and every stage's residual
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
