"""Vocoder stage: the HiFT generator learns waveforms of mels, against discriminators (paper 3.2).

The generator turns the mel of a crop of a recording into a waveform. It is judged by multi-period
and multi-resolution discriminators (least-squares GAN and feature matching), by log-mels at several
resolutions, and by f0: the predictor inside the generator learns the recording's f0, which is
measured on the host (`f0_target`).

One loss trains both sides at once: the generator's part holds the discriminators' parameters fixed,
the discriminators' part holds the waveform fixed, so that each gets the gradient of its loss.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.mel import FLOW_MEL, MelGeometry, log_mel_batch
from ba_jax.data.audio_batches import WAVE_RATE, AudioBatch
from ba_jax.losses import gan
from ba_jax.losses.flow import l1_B
from ba_jax.metrics import flops
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.models.discriminators import DiscriminatorConfig, Discriminators
from ba_jax.models.layers import length_mask
from ba_jax.models.vocoder_source import draw_source_noise, draw_source_phase
from ba_jax.stages.base import (
    Aux,
    ClipStage,
    StageError,
    Variables,
    check_range,
    item_keys,
)

DISCRIMINATORS = "discriminators"
"""Entry of "params" beside the vocoder's."""

_F0_RANGE = (60.0, 600.0)  # Hz
_APERIODICITY = 0.4  # maximum of a voiced frame
_LOUDNESS = 0.03  # minimum RMS of a voiced frame, relative to the loudest frame
_SILENCE = 1e-3  # RMS below which no frame is voiced (-60 dB of full scale)
_HZ = 100.0  # unit of the f0 loss, so that it is about as large as the other terms
_EVAL_SEED = 0  # of the source's noise in evaluations, the same in each


@dataclasses.dataclass(frozen=True)
class VocoderSettings:
    """Settings of the stage.

    Attributes:
      mel, adversarial, features, f0: weights of the generator's losses: multi-scale mel, GAN,
        feature matching, f0. With both adversarial and features 0 there are no discriminators.
      discriminator_start: step at which adversarial training starts; before it the generator has
        its mel and f0 losses alone, the discriminators none.
      mel_scales: (n_fft, hop, bins) of the log-mels of the mel loss, up to 12 kHz.
      discriminators: their sizes.

    Raises:
      ValueError: a negative weight or start, or no mel scale.
    """

    mel: float = 45.0
    adversarial: float = 1.0
    features: float = 2.0
    f0: float = 1.0
    discriminator_start: int = 0
    mel_scales: tuple[tuple[int, int, int], ...] = (
        (512, 128, 40),
        (1024, 256, 80),
        (2048, 512, 128),
    )
    discriminators: DiscriminatorConfig = DiscriminatorConfig()

    def __post_init__(self):
        check_range(self, "mel", "adversarial", "features", "f0", "discriminator_start")
        if not self.mel_scales:
            raise ValueError("mel_scales = (), expected 1 or more")

    @property
    def geometries(self) -> tuple[MelGeometry, ...]:
        """Geometries of the mel loss."""
        return tuple(
            MelGeometry(WAVE_RATE, n_fft, hop, bins, f_max=WAVE_RATE / 2)
            for n_fft, hop, bins in self.mel_scales
        )

    @property
    def is_adversarial(self) -> bool:
        """Whether there are discriminators."""
        return bool(self.adversarial or self.features)


def f0_target(wave_S: np.ndarray) -> np.ndarray:
    """f0 in Hz of a 24 kHz waveform, (S // 480,), on the frames of `FLOW_MEL`; 0 where unvoiced.

    YIN (de Cheveigne and Kawahara 2002) on the mel's windows of 80 ms, 60 to 600 Hz. A frame is
    voiced if it is loud enough and, a period later, differs by at most 0.4 of its energy.
    """
    import librosa  # takes a second to import

    hop, n_fft = FLOW_MEL.hop, FLOW_MEL.n_fft
    frames = len(wave_S) // hop
    edge = (n_fft - hop) // 2
    if len(wave_S) <= edge or not frames:
        return np.zeros(frames, np.float32)
    padded = np.pad(wave_S[: frames * hop].astype(np.float32), edge, mode="reflect")
    low, high = _F0_RANGE
    f0_T = librosa.yin(
        padded, fmin=low, fmax=high, sr=WAVE_RATE, frame_length=n_fft, hop_length=hop, center=False
    )
    frames_TN = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    lag_T = np.rint(WAVE_RATE / f0_T).astype(np.int64)
    later = np.arange(n_fft)[None] + lag_T[:, None]
    inside = later < n_fft
    later_TN = np.take_along_axis(frames_TN, np.minimum(later, n_fft - 1), axis=1)
    energy = np.sum((np.square(frames_TN) + np.square(later_TN)) * inside, axis=1)
    difference = np.sum(np.square(frames_TN - later_TN) * inside, axis=1)
    rms_T = np.sqrt(np.mean(np.square(frames_TN), axis=1))
    loud = rms_T > max(_LOUDNESS * rms_T.max(), _SILENCE)
    return np.where(loud & (difference < _APERIODICITY * energy), f0_T, 0).astype(np.float32)


def generate(
    model: BaichuanAudio, mel_BTM: jax.Array, lengths_B: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mel to wave_BS and the predicted f0_BT; item i draws its source from fold_in(key, i).

    A method of the assembly: `model.apply(variables, ..., method=generate)`.
    """
    vocoder = model.vocoder
    batch, frames, _ = mel_BTM.shape
    phase_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(item_keys(key, batch))
    f0_BT = vocoder.f0(mel_BTM, lengths_B)
    source, _ = vocoder.source(
        f0_BT,
        lengths_B,
        draw_source_phase(phase_keys, batch, vocoder.config),
        draw_source_noise(noise_keys, batch, frames, vocoder.config),
    )
    return vocoder.decode(mel_BTM, source, lengths_B), f0_BT


class VocoderStage(ClipStage):
    """The vocoder stage; batches are `AudioBatch`es, best cropped, with `wave` and `flow_mel`.

    A recording shorter than the crop counts with its whole frames: waveforms are zero past them,
    mel and f0 losses run over its frames, the GAN's over its patches (`ba_jax.losses.gan`). Every
    loss is a mean over items, weighted by their frames.

    Raises:
      StageError: a model without a vocoder, or whose vocoder is not for `FLOW_MEL` at 24 kHz.
    """

    name = "vocoder"
    settings_class = VocoderSettings
    components = ("vocoder",)

    def __init__(self, config, settings, *, dtype=jnp.float32, **options):
        super().__init__(config, settings, dtype=dtype, **options)
        vocoder = self.config.vocoder
        sizes = (vocoder.sample_rate, vocoder.frame_samples, vocoder.mel_bins)
        expected = (WAVE_RATE, FLOW_MEL.hop, FLOW_MEL.n_mels)
        if sizes != expected:
            raise StageError(
                f"vocoder: sample rate, samples a frame and mel bins {sizes}, expected {expected}"
            )
        self.discriminators = Discriminators(settings.discriminators, dtype=dtype)

    def init(self, key: jax.Array) -> Variables:
        key, discriminators_key = jax.random.split(key)
        variables = super().init(key)
        if not self.settings.is_adversarial:
            return variables
        wave = jnp.zeros((1, self.settings.discriminators.min_samples))
        params = self.discriminators.init(discriminators_key, wave)["params"]
        return {**variables, "params": {**variables["params"], DISCRIMINATORS: params}}

    @functools.cached_property
    def min_samples(self) -> int:
        """The shortest crop that all losses can be computed on."""
        needed = [(g.n_fft - g.hop) // 2 + 1 for g in (*self.settings.geometries, FLOW_MEL)]
        if self.settings.is_adversarial:
            needed.append(self.settings.discriminators.min_samples)
        return max(needed)

    def arrays(self, batch: AudioBatch) -> dict[str, np.ndarray]:
        """mel_BTM with its lengths_B, wave_BS of as many whole frames, f0_BT.

        Raises:
          StageError: a batch without these features, too short for the losses, or empty.
        """
        self.check_features(batch, ["wave", "flow_mel"])
        rows, frames, _ = batch.flow_mel_BTM.shape
        samples = frames * FLOW_MEL.hop
        if samples < self.min_samples:
            raise StageError(
                f"stage {self.name}: clips of {samples} samples at {WAVE_RATE} Hz, expected at"
                f" least {self.min_samples}; lengthen the data's bucket"
            )
        lengths_B = np.asarray(batch.flow_lengths_B, np.int32)
        self.check_frames(lengths_B, batch)
        f0_BT = np.zeros((rows, frames), np.float32)
        for i, length in enumerate(lengths_B):
            f0_BT[i, :length] = f0_target(batch.wave_BS[i, : length * FLOW_MEL.hop])
        return {
            "mel_BTM": batch.flow_mel_BTM,
            "lengths_B": lengths_B,
            "wave_BS": batch.wave_BS[:, :samples],
            "f0_BT": f0_BT,
        }

    def flops(self, arrays: Mapping[str, Any], trained: Collection[str]) -> float:
        """Vocoder forward and backward; the discriminators on both waveforms of an item for their
        loss, and again on the generated one, with gradients to the waveform alone."""
        lengths_B = np.asarray(arrays["lengths_B"])
        total = flops.train(flops.vocoder(self.config.vocoder, lengths_B))
        if self.settings.is_adversarial:
            samples, items = arrays["wave_BS"].shape[1], int((lengths_B > 0).sum())
            forward = flops.discriminators(self.settings.discriminators, samples, items)
            total += flops.train(2 * forward) + flops.train(forward, trained=False)
        return float(total)

    def _waves(
        self, variables: Variables, arrays: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(real wave_BS, generated wave_BS, predicted f0_BT), zero past the lengths."""
        wave, lengths_B = arrays["wave_BS"].astype(jnp.float32), arrays["lengths_B"]
        real = jnp.where(length_mask(lengths_B * FLOW_MEL.hop, wave.shape[1]), wave, 0)
        generated, f0_BT = self.model.apply(
            variables, arrays["mel_BTM"], lengths_B, key, method=generate
        )
        return real, generated, f0_BT

    def _reconstruction_losses(
        self, real, generated, f0_BT, arrays, totals
    ) -> dict[str, jax.Array]:
        """Losses without discriminators, "mel" and "f0"."""
        lengths_B = arrays["lengths_B"]
        share_B = lengths_B / totals["frames"]
        samples_B = lengths_B * FLOW_MEL.hop
        mel_B = gan.multi_mel_B(generated, real, samples_B, self.settings.geometries)
        f0_B = gan.f0_B(f0_BT, arrays["f0_BT"], lengths_B) / _HZ
        return {"mel": jnp.sum(share_B * mel_B), "f0": jnp.sum(share_B * f0_B)}

    def _adversarial_losses(self, params, real, generated, arrays, totals) -> dict[str, jax.Array]:
        """Losses with discriminators of parameters `params`; for gradients see the module."""
        lengths_B, samples = arrays["lengths_B"], real.shape[1]
        share_B, samples_B = lengths_B / totals["frames"], lengths_B * FLOW_MEL.hop

        def features(params, wave_BS):
            return self.discriminators.apply({"params": params}, wave_BS)[1]

        # Both waves of an item side by side: items stay on their devices.
        both = jnp.stack([real, jax.lax.stop_gradient(generated)], axis=1)
        maps = features(params, both.reshape(-1, samples))
        pairs = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), maps)
        on_real = jax.tree.map(lambda x: x[:, 0], pairs)
        on_generated = jax.tree.map(lambda x: x[:, 1], pairs)
        fixed_on_generated = features(jax.lax.stop_gradient(params), generated)
        fixed_on_real = jax.lax.stop_gradient(on_real)
        size = (samples_B, samples)
        losses = {
            "adversarial": gan.generator_B(fixed_on_generated, *size),
            "features": gan.feature_matching_B(fixed_on_real, fixed_on_generated, *size),
            "discriminators": gan.discriminator_B(on_real, on_generated, *size),
        }
        return {name: jnp.sum(share_B * loss_B) for name, loss_B in losses.items()}

    def loss(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        """Both sides' losses; metrics "loss" (their weighted sum), "mel", "f0" (100 Hz), and
        "adversarial", "features", "discriminators", which are 0 before `discriminator_start`."""
        settings = self.settings
        real, generated, f0_BT = self._waves(variables, arrays, key)
        terms = self._reconstruction_losses(real, generated, f0_BT, arrays, totals)
        loss = settings.mel * terms["mel"] + settings.f0 * terms["f0"]
        if settings.is_adversarial:
            params = variables["params"][DISCRIMINATORS]
            gan_terms = self._adversarial_losses(params, real, generated, arrays, totals)
            started = step >= settings.discriminator_start
            gan_terms = {name: jnp.where(started, x, 0.0) for name, x in gan_terms.items()}
            loss += settings.adversarial * gan_terms["adversarial"]
            loss += settings.features * gan_terms["features"] + gan_terms["discriminators"]
            terms |= gan_terms
        return loss, Aux({"loss": loss, **terms})

    def evaluate(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """Errors of the generated waveform, with the same source noise for every key.

        Metrics "mel", "f0", "loss" (their weighted sum), and "mel_mae": mean absolute error of the
        generated waveform's log-mel in `FLOW_MEL`'s geometry, natural-log units.
        """
        fixed = jax.random.key(_EVAL_SEED)
        real, generated, f0_BT = self._waves(variables, arrays, fixed)
        terms = self._reconstruction_losses(real, generated, f0_BT, arrays, totals)
        loss = self.settings.mel * terms["mel"] + self.settings.f0 * terms["f0"]
        lengths_B = arrays["lengths_B"]
        mel, frames_B = log_mel_batch(generated, lengths_B * FLOW_MEL.hop, FLOW_MEL)
        mae = jnp.sum(l1_B(mel, arrays["mel_BTM"], frames_B)) / totals["frames"]
        return {"loss": loss, **terms, "mel_mae": mae}

    def draw(self, variables: Variables, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Waves "target" and "generated"."""
        real, generated, _ = self._waves(variables, arrays, jax.random.key(_EVAL_SEED))
        return {"target": real, "generated": generated}
