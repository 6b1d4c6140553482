"""Augmentation of speech: speed, noise (Gaussian, to a signal-to-noise ratio) and SpecAugment.

Everything is off by default and a pure function of the generator that is passed in.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ba_jax.config import check_at_least


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Augmentation of speech.

    Attributes:
      speeds: factors of speed. A recording has one of them, the same in all epochs, because its
        number of frames of codes must not change. Pitch rises with speed (Ko et al. 2015).
      noise_probability: probability of adding white noise to a chunk.
      noise_snr_db: (lowest, highest) signal-to-noise ratio, drawn uniformly.
      time_masks, max_time_mask: SpecAugment (Park et al. 2019): number of masks and the longest
        one in mel frames; a mask covers at most a fifth of the chunk.
      mel_masks, max_mel_mask: the same over mel bins.
    """

    speeds: tuple[float, ...] = (1.0,)
    noise_probability: float = 0.0
    noise_snr_db: tuple[float, float] = (10.0, 40.0)
    time_masks: int = 0
    max_time_mask: int = 40
    mel_masks: int = 0
    max_mel_mask: int = 20

    def __post_init__(self):
        if not self.speeds or not all(0.5 <= speed <= 2.0 for speed in self.speeds):
            raise ValueError(f"speeds {self.speeds}, expected one or more from 0.5 to 2")
        if not 0 <= self.noise_probability <= 1:
            raise ValueError(f"noise_probability {self.noise_probability}, expected 0 to 1")
        low, high = self.noise_snr_db
        if not -20 <= low <= high <= 100:
            raise ValueError(
                f"noise_snr_db {self.noise_snr_db}, expected -20 <= low <= high <= 100"
            )
        check_at_least(self, time_masks=0, max_time_mask=0, mel_masks=0, max_mel_mask=0)

    def wave(self, wave_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add noise with `noise_probability`; a silent wave stays silent."""
        if not self.noise_probability or rng.random() >= self.noise_probability:
            return wave_S
        power = float(np.mean(np.square(wave_S, dtype=np.float64)))
        snr_db = rng.uniform(*self.noise_snr_db)
        noise_S = rng.standard_normal(len(wave_S), np.float32)
        return wave_S + noise_S * np.float32(np.sqrt(power) * 10 ** (-snr_db / 20))

    def mel(self, mel_TM: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Replace stretches of time and bands of bins by the mel's mean."""
        if not self.time_masks and not self.mel_masks:
            return mel_TM
        masked_TM, mean = mel_TM.copy(), mel_TM.mean()
        frames, bins = mel_TM.shape
        for _ in range(self.time_masks):
            width = int(rng.integers(min(self.max_time_mask, frames // 5) + 1))
            start = int(rng.integers(frames - width + 1))
            masked_TM[start : start + width] = mean
        for _ in range(self.mel_masks):
            width = int(rng.integers(min(self.max_mel_mask, bins) + 1))
            start = int(rng.integers(bins - width + 1))
            masked_TM[:, start : start + width] = mean
        return masked_TM
