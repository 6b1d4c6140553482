"""Flow stage: the flow-matching decoder learns mels from the frozen tokenizer's codes (paper 3.2).

Audio is encoded to codes, and these are decoded to the audio decoder's 50 Hz features, by frozen
components. The prenet turns the features into mu (prior loss: L1 against the mel), the U-Net learns
the velocity of the flow from noise to the mel, given mu (CFM loss; mu is zeroed for a share of the
items, so that sampling can be guided). The CFM loss reaches the prenet through mu, too. The audio
decoder is frozen like the rest, unless it is to follow into the voices of the data
(`FlowSettings.decoder`).

N frames of codes give 4 N - 1 frames of features, the mel has one every 480 samples: an item counts
with the fewer of the two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.lengths import FRAME_SECONDS, bridge_length, encoder_length
from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL
from ba_jax.data.audio_batches import AudioBatch
from ba_jax.losses import flow as losses
from ba_jax.losses.codec import mel_errors
from ba_jax.metrics import flops
from ba_jax.models import flow_matching, layers
from ba_jax.models.audio_decoder import AudioDecoderOutput
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.stages.base import Aux, StageError, Variables
from ba_jax.stages.clips import ClipStage
from ba_jax.stages.tokenizer import decoded_frames, upsampled_frames

_PICTURES = 2  # items
_EVAL_SEED = 0  # of the noise of evaluations, the same in each


@dataclasses.dataclass(frozen=True)
class FlowSettings:
    """Settings of the stage; condition dropout and schedule are in the model's `flow_matching`.

    Attributes:
      prior, cfm: weights of the losses.
      codebook_dropout: share of items that are decoded from their first 1 to Q codebooks alone, the
        number drawn uniformly, so that codes cut short can be decoded.
      rotation: share of items whose frames are rotated in time, codes and mels alike, by a number
        drawn uniformly: of some minutes of speech a decoder otherwise learns when each thing is
        said, and speaks the same codes unintelligibly at another place.
      decoder: weight of L1 + L2 of the audio decoder's coarse and refined mel. Above 0, the
        decoder and the projection before it follow into the voices of the data, by this loss and
        the prior's; the config's rules must train them, and batches hold `hifigan_mel`. Codes stay
        what they are.
      eval_times: an evaluation takes the CFM loss at so many flow times: the schedule at the
        middles of as many equal parts of [0, 1].
      eval_steps: Euler steps of the mels sampled in evaluations.

    Raises:
      ValueError: a number out of range.
    """

    prior: float = 1.0
    cfm: float = 1.0
    codebook_dropout: float = 0.0
    rotation: float = 0.0
    decoder: float = 0.0
    eval_times: int = 4
    eval_steps: int = 4

    def __post_init__(self):
        for name in ("codebook_dropout", "rotation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected 0 to 1")
        for name in ("prior", "cfm", "decoder"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 0")
        for name in ("eval_times", "eval_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 1")


def draw_codebooks(keys_B: jax.Array, share: float, codebooks: int) -> jax.Array:
    """How many codebooks each item keeps, (B,): all, or with probability `share` 1 to all."""

    def item(key: jax.Array) -> jax.Array:
        drop_key, count_key = jax.random.split(key)
        count = jax.random.randint(count_key, (), 1, codebooks + 1)
        return jnp.where(jax.random.uniform(drop_key) < share, count, codebooks)

    return jax.vmap(item)(keys_B)


def draw_rotations(keys_B: jax.Array, share: float, lengths_B: jax.Array) -> jax.Array:
    """By how many frames each item is rotated, (B,): 0, or with probability `share` 0 to N - 1."""

    def item(key: jax.Array, length: jax.Array) -> jax.Array:
        turn_key, by_key = jax.random.split(key)
        by = jax.random.randint(by_key, (), 0, jnp.maximum(length, 1))
        return jnp.where(jax.random.uniform(turn_key) < share, by, 0)

    return jax.vmap(item)(keys_B, lengths_B)


def rotated(
    x_BTD: jax.Array, by_B: jax.Array, period_B: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Each item with its first `by_B` frames behind its others.

    Args:
      x_BTD: frames.
      by_B: how many, less than the period.
      period_B: frames that are rotated.
      lengths_B: how many of them there are; the last one stands for those that are missing.
    """
    places_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
    turned_BT = (places_BT + by_B[:, None]) % jnp.maximum(period_B, 1)[:, None]
    last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    inside_BT = places_BT < lengths_B[:, None]
    source_BT = jnp.where(inside_BT, jnp.minimum(turned_BT, last_B1), places_BT)
    return jnp.take_along_axis(x_BTD, source_BT[..., None], axis=1)


def quantized(
    model: BaichuanAudio,
    mel_BTM: jax.Array,
    lengths_B: jax.Array,
    codebooks_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Whisper mel to quantised features z_BNE and its lengths_B.

    With `codebooks_B` an item keeps its first so many codebooks alone. A method of the assembly:
    `model.apply(variables, ..., method=quantized)`.
    """
    if codebooks_B is None:
        codes_BNQ, lengths_B = model.encode(mel_BTM, lengths_B)
        return model.vq_bridge.dequantize(codes_BNQ, lengths_B), lengths_B
    x, lengths_B = model.audio_encoder(mel_BTM, lengths_B)
    z, lengths_B = model.vq_bridge.features(x, lengths_B)
    found = model.vq_bridge.quantize(z, lengths_B)
    # The residual before codebook q is what the first q left over.
    residuals = found.residuals_QBNE
    first = jnp.concatenate([residuals[:1] - residuals[1:], found.z_BNE[None]])
    return jnp.take_along_axis(first, codebooks_B[None, :, None, None] - 1, axis=0)[0], lengths_B


def decoded(model: BaichuanAudio, z_BNE: jax.Array, lengths_B: jax.Array) -> AudioDecoderOutput:
    """What the audio decoder makes of quantised features."""
    return model.audio_decoder(model.vq_bridge.project(z_BNE), lengths_B)


class FlowStage(ClipStage):
    """The flow stage; batches are `AudioBatch`es with `whisper_mel` and `flow_mel`.

    Raises:
      StageError: a model without one of the components, or whose mel is not `FLOW_MEL`'s.
    """

    name = "flow"
    settings_class = FlowSettings
    components = ("audio_encoder", "vq_bridge", "audio_decoder", "flow_prenet", "flow_unet")

    def __init__(self, config, settings, **kwargs):
        super().__init__(config, settings, **kwargs)
        for name in ("flow_prenet", "flow_unet"):
            bins = getattr(self.config, name).mel_bins
            if bins != FLOW_MEL.n_mels:
                raise StageError(f"{name}: mel_bins = {bins}, expected {FLOW_MEL.n_mels}")

    def _hidden_of_codes(self, codes_B: np.ndarray) -> np.ndarray:
        decoder = self.config.audio_decoder
        return upsampled_frames(decoder, codes_B, decoder.upsample_rates[0])

    def _codes(self, whisper_lengths_B: np.ndarray) -> np.ndarray:
        return bridge_length(encoder_length(whisper_lengths_B), self.config.vq_bridge.pooling)

    def hidden_lengths(self, whisper_lengths_B: np.ndarray) -> np.ndarray:
        """Frames of mu for frames of Whisper's mel, on the host."""
        codes_B = self._codes(whisper_lengths_B)
        ratio = np.float32(self.config.flow_prenet.length_ratio)
        hidden_B = self._hidden_of_codes(codes_B).astype(np.float32)
        return np.floor(hidden_B * ratio).astype(np.int32)

    def arrays(self, batch: AudioBatch) -> dict[str, np.ndarray]:
        """whisper_mel_BTM with its lengths, mel_BTM (the target) with the frames that count.

        Raises:
          StageError: a batch without these features, or without a frame to learn from.
        """
        wanted = ["whisper_mel", "flow_mel"] + ["hifigan_mel"] * (self.settings.decoder > 0)
        lacking = [name for name in wanted if getattr(batch, f"{name}_BTM") is None]
        if lacking:
            raise StageError(
                f"stage {self.name}: batches without {lacking}; name them in the data's `features`"
            )
        whisper_lengths_B = np.asarray(batch.whisper_lengths_B, np.int32)
        hidden_B = self.hidden_lengths(whisper_lengths_B)
        lengths_B = np.minimum(hidden_B, batch.flow_lengths_B).astype(np.int32)
        self.check_frames(lengths_B, batch)
        arrays = {
            "whisper_mel_BTM": batch.whisper_mel_BTM,
            "whisper_lengths_B": whisper_lengths_B,
            "mel_BTM": batch.flow_mel_BTM,
            "lengths_B": lengths_B,
        }
        if self.settings.decoder:
            codes_B = self._codes(whisper_lengths_B)
            frames_B = decoded_frames(self.config.audio_decoder, codes_B)
            arrays["decoder_mel_BTM"] = batch.hifigan_mel_BTM
            arrays["decoder_lengths_B"] = np.minimum(frames_B, batch.hifigan_lengths_B)
        return arrays

    def flops(self, arrays: Mapping[str, Any]) -> float:
        """Prenet and one U-Net evaluation, forward and backward; the frozen tokenizer, forward.

        Of the tokenizer, the decoder's mels count too, which nothing here reads: 0.2 % of its FLOPs
        at full size, 2.3 % at nano.
        """
        config, whisper_B = self.config, np.asarray(arrays["whisper_lengths_B"])
        codes_B = self._codes(whisper_B)
        frozen = flops.audio_encoder(config.audio_encoder, whisper_B)
        frozen += flops.vq_bridge(config.vq_bridge, int(codes_B.sum()))
        decoder = flops.audio_decoder(config.audio_decoder, codes_B)
        frozen += flops.train(decoder) if self.settings.decoder else decoder
        trained = flops.flow_prenet(config.flow_prenet, self._hidden_of_codes(codes_B))
        trained += flops.flow_unet(config.flow_unet, np.asarray(arrays["lengths_B"]))
        return float(frozen + flops.train(trained))

    def totals(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Frames of the flow's mel, and "decoder" ones of the decoder's where it trains."""
        lengths = {"frames": arrays["lengths_B"]}
        if self.settings.decoder:
            lengths["decoder"] = arrays["decoder_lengths_B"]
        return {
            name: jnp.maximum(jnp.sum(own), 1).astype(jnp.float32) for name, own in lengths.items()
        }

    def _rotated(
        self, arrays: Mapping[str, jax.Array], keys_B: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The arrays with some of their mels rotated, and by how many frames of codes, (B,)."""
        codes_B = self._codes(arrays["whisper_lengths_B"])
        by_B = draw_rotations(keys_B, self.settings.rotation, codes_B)
        found = dict(arrays)
        for name, geometry in (("", FLOW_MEL), ("decoder_", HIFIGAN_MEL)):
            if f"{name}mel_BTM" in arrays:
                ratio = round(FRAME_SECONDS * geometry.sample_rate / geometry.hop)
                found[f"{name}mel_BTM"] = rotated(
                    arrays[f"{name}mel_BTM"],
                    ratio * by_B,
                    ratio * codes_B,
                    arrays[f"{name}lengths_B"],
                )
        return found, by_B

    def _condition(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        codebooks_B: jax.Array | None = None,
        by_B: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, AudioDecoderOutput]:
        """(mu_BTM, mel_BTM) cut to the frames that both have, and what mu comes from.

        `by_B`: by how many frames codes are rotated, as the mels are already.
        """
        frozen = jax.lax.stop_gradient(variables)
        z, lengths_B = self.model.apply(
            frozen,
            arrays["whisper_mel_BTM"],
            arrays["whisper_lengths_B"],
            codebooks_B,
            method=quantized,
        )
        if by_B is not None:
            z = rotated(z, by_B, lengths_B, lengths_B)
        z = jax.lax.stop_gradient(z)
        own = variables if self.settings.decoder else frozen
        output = self.model.apply(own, z, lengths_B, method=decoded)
        mu, _ = self.model.apply(
            variables,
            output.hidden_BTD,
            output.hidden_lengths_B,
            method=lambda model, *args: model.flow_prenet(*args),
        )
        mel = layers.zero_past(arrays["mel_BTM"].astype(jnp.float32), arrays["lengths_B"])
        frames = min(mu.shape[1], mel.shape[1])
        return mu[:, :frames].astype(jnp.float32), mel[:, :frames], output

    def _decoder(
        self, arrays: Mapping[str, jax.Array], totals: Mapping[str, jax.Array], output
    ) -> dict[str, jax.Array]:
        """Metrics "decoder", the loss of the decoder's two mels, and "decoder_mae", of the refined
        one; none where it does not train."""
        if not self.settings.decoder:
            return {}
        target, lengths_B = arrays["decoder_mel_BTM"], arrays["decoder_lengths_B"]
        frames = min(output.refined_mel_BTM.shape[1], target.shape[1])
        errors = [
            [
                jnp.sum(error_B) / totals["decoder"]
                for error_B in mel_errors(mel[:, :frames], target[:, :frames], lengths_B)
            ]
            for mel in (output.refined_mel_BTM, output.coarse_mel_BTM)
        ]
        return {"decoder": sum(sum(own) for own in errors), "decoder_mae": errors[0][0]}

    def _velocity(self, variables: Variables, *args: jax.Array) -> jax.Array:
        def estimator(*args):
            return self.model.apply(
                variables, *args, method=lambda model, *args: model.flow_unet(*args)
            )

        return flow_matching.preconditioned(estimator, self.config.flow_matching)(*args)

    def loss(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        """Weighted prior, CFM and decoder losses; metrics "loss", "prior", "cfm", those of
        `_decoder`."""
        settings, flow = self.settings, self.config.flow_matching
        lengths_B = arrays["lengths_B"]
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(lengths_B)))
        noise_keys, time_keys, drop_keys, code_keys = jax.vmap(
            lambda key: jax.random.split(key, 4), out_axes=1
        )(keys_B)
        codebooks_B = None
        if settings.codebook_dropout:
            count = len(self.config.vq_bridge.codebook_sizes)
            codebooks_B = draw_codebooks(code_keys, settings.codebook_dropout, count)
        by_B = None
        if settings.rotation:
            rotation_keys = jax.vmap(jax.random.fold_in, (0, None))(code_keys, 1)
            arrays, by_B = self._rotated(arrays, rotation_keys)
        mu, mel, output = self._condition(variables, arrays, codebooks_B, by_B)
        prior = jnp.sum(losses.l1_B(mu, mel, lengths_B)) / totals["frames"]

        noise = flow_matching.draw_noise(noise_keys, mel.shape[1], mel.shape[2])
        t_B = flow_matching.warp(jax.vmap(jax.random.uniform)(time_keys), flow.schedule)
        point, target = flow_matching.training_pair(mel, noise, t_B, flow.sigma_min)
        drop_B = losses.dropped_B(drop_keys, flow.condition_dropout)
        mu = jnp.where(drop_B[:, None, None], 0, mu)
        velocity = self._velocity(variables, point, mu, t_B, lengths_B)
        cfm = jnp.sum(losses.cfm_B(velocity, target, lengths_B)) / totals["frames"]
        found = self._decoder(arrays, totals, output)
        loss = self._loss(prior, cfm, found)
        return loss, Aux({"loss": loss, "prior": prior, "cfm": cfm, **found})

    def _loss(self, prior: jax.Array, cfm: jax.Array, found: Mapping[str, jax.Array]) -> jax.Array:
        loss = self.settings.prior * prior + self.settings.cfm * cfm
        return loss + self.settings.decoder * found["decoder"] if found else loss

    def evaluate(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """The losses with every condition, at fixed times and noise, and the error of samples.

        The same for every key. Metrics "loss", "prior", "cfm", those of `_decoder`, and "mel_mae":
        mean absolute error of a mel sampled in `eval_steps` guided steps, natural-log units.
        """
        settings, flow = self.settings, self.config.flow_matching
        lengths_B = arrays["lengths_B"]
        mu, mel, output = self._condition(variables, arrays)
        found = self._decoder(arrays, totals, output)
        noise = self._eval_noise(mel)
        prior = jnp.sum(losses.l1_B(mu, mel, lengths_B)) / totals["frames"]

        def at_time(t: jax.Array) -> jax.Array:
            t_B = jnp.full(lengths_B.shape, t)
            point, target = flow_matching.training_pair(mel, noise, t_B, flow.sigma_min)
            velocity = self._velocity(variables, point, mu, t_B, lengths_B)
            return jnp.sum(losses.cfm_B(velocity, target, lengths_B)) / totals["frames"]

        middles = (jnp.arange(settings.eval_times, dtype=jnp.float32) + 0.5) / settings.eval_times
        cfm = jnp.mean(jax.lax.map(at_time, flow_matching.warp(middles, flow.schedule)))
        sampled = self._sample(variables, mu, lengths_B, noise)
        return {
            "loss": self._loss(prior, cfm, found),
            **found,
            "prior": prior,
            "cfm": cfm,
            "mel_mae": jnp.sum(losses.l1_B(sampled, mel, lengths_B)) / totals["frames"],
        }

    def _eval_noise(self, mel_BTM: jax.Array) -> jax.Array:
        batch, frames, bins = mel_BTM.shape
        key = jax.random.key(_EVAL_SEED)
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
        return flow_matching.draw_noise(keys_B, frames, bins)

    def _sample(self, variables: Variables, mu, lengths_B, noise) -> jax.Array:
        flow = self.config.flow_matching
        sampled = flow_matching.sample(
            lambda *args: self._velocity(variables, *args),
            mu,
            lengths_B,
            noise,
            steps=self.settings.eval_steps,
            guidance=flow.guidance,
            schedule=flow.schedule,
        )
        return layers.zero_past(sampled, lengths_B)

    @functools.cached_property
    def _draw(self):
        """(target, mu, sampled) mels of a batch's first items and their lengths, jitted."""

        def mels(variables, arrays):
            arrays = {name: array[:_PICTURES] for name, array in arrays.items()}
            mu, mel, _ = self._condition(variables, arrays)
            lengths_B = arrays["lengths_B"]
            sampled = self._sample(variables, mu, lengths_B, self._eval_noise(mel))
            return {"target": mel, "mu": mu, "sampled": sampled}, lengths_B

        return jax.jit(mels)

    def pictures(self, variables: Variables, arrays: Mapping[str, jax.Array]) -> dict[str, Any]:
        """ "mel/I/target", "mel/I/mu" and "mel/I/sampled" of the first 2 items."""
        mels, lengths_B = jax.device_get(self._draw(variables, dict(arrays)))
        return {
            f"mel/{i}/{name}": mel_BTM[i, :frames]
            for i, frames in enumerate(lengths_B.tolist())
            if frames
            for name, mel_BTM in mels.items()
        }
