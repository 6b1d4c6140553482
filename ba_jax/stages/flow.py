"""Flow stage: the flow-matching decoder learns mels from the frozen tokenizer's codes (paper 3.2).

Frozen components encode the audio to codes, unless the data store them, and decode these to the
audio decoder's 50 Hz features.
The prenet turns the features into mu (prior loss: L1 against the mel). The U-Net learns the
velocity of the flow from noise to the mel, given mu (CFM loss; mu is zeroed for a share of the
items, so that sampling can be guided). The CFM loss reaches the prenet through mu, too. The audio
decoder is frozen unless it is to follow into the voices of the data (`FlowSettings.decoder`).

N frames of codes give 4 N - 1 frames of features, the mel has one every 480 samples: an item counts
with the fewer of the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.lengths import FRAME_SECONDS, bridge_length, encoder_length
from ba_jax.audio.mel import COARSE_MEL, FLOW_MEL, HIFIGAN_MEL
from ba_jax.config import check_choices
from ba_jax.data.audio_batches import AudioBatch
from ba_jax.losses import flow as losses
from ba_jax.losses.codec import mel_errors
from ba_jax.metrics import flops
from ba_jax.models import flow_matching, layers
from ba_jax.models.audio_decoder import AudioDecoderOutput
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.stages.base import (
    Aux,
    ClipStage,
    StageError,
    Variables,
    check_range,
    count,
    item_keys,
)

AUDIO = ("features", "codes")
_EVAL_SEED = 0  # of the noise of evaluations, the same in each


@dataclasses.dataclass(frozen=True)
class FlowSettings:
    """Settings of the stage; condition dropout and schedule are in the model's `flow_matching`.

    Attributes:
      audio: "features": the frozen encoder makes the codes in each step, from `whisper_mel`;
        "codes": batches hold them (data.features).
      prior, cfm: weights of the losses.
      codebook_dropout: share of items decoded from their first 1 to Q codebooks alone, the number
        drawn uniformly, so that truncated codes can be decoded.
      rotation: share of items whose frames are rotated in time, codes and mels alike, by a uniform
        number of frames. From a few minutes of speech a decoder otherwise learns when each sound
        occurs, and the same codes become unintelligible at another position.
      decoder: weight of L1 + L2 of the audio decoder's coarse and refined mel, each at its own
        scale. Above 0, the decoder and the projection before it train on this loss and the prior's;
        the config's rules must train them, and batches hold `hifigan_mel` and `coarse_mel`. Codes
        do not change.
      eval_times: flow times at which an evaluation takes the CFM loss: the schedule at the middles
        of as many equal parts of [0, 1].
      eval_steps: Euler steps of the mels sampled in evaluations.

    Raises:
      ValueError: a number out of range.
    """

    audio: str = "features"
    prior: float = 1.0
    cfm: float = 1.0
    codebook_dropout: float = 0.0
    rotation: float = 0.0
    decoder: float = 0.0
    eval_times: int = 4
    eval_steps: int = 4

    def __post_init__(self):
        check_choices(self, audio=AUDIO)
        check_range(self, "codebook_dropout", "rotation", high=1)
        check_range(self, "prior", "cfm", "decoder")
        check_range(self, "eval_times", "eval_steps", low=1)


class ItemKeys(NamedTuple):
    """Random keys of a training step, (B,) each, one for each draw."""

    noise: jax.Array
    time: jax.Array
    condition: jax.Array
    codebooks: jax.Array
    rotation: jax.Array


def split_keys(key: jax.Array, items: int) -> ItemKeys:
    """Independent keys for the draws of a step."""
    split = jax.vmap(lambda key: jax.random.split(key, len(ItemKeys._fields)), out_axes=1)
    return ItemKeys(*split(item_keys(key, items)))


def draw_codebooks(keys_B: jax.Array, share: float, codebooks: int) -> jax.Array:
    """Number of codebooks each item keeps, (B,): all, or with probability `share` 1 to all."""

    def item(key: jax.Array) -> jax.Array:
        drop_key, count_key = jax.random.split(key)
        fewer = jax.random.randint(count_key, (), 1, codebooks + 1)
        return jnp.where(jax.random.uniform(drop_key) < share, fewer, codebooks)

    return jax.vmap(item)(keys_B)


def draw_rotations(keys_B: jax.Array, share: float, lengths_B: jax.Array) -> jax.Array:
    """Frames each item is rotated by, (B,): 0, or with probability `share` 0 to N - 1."""

    def item(key: jax.Array, length: jax.Array) -> jax.Array:
        turn_key, by_key = jax.random.split(key)
        by = jax.random.randint(by_key, (), 0, jnp.maximum(length, 1))
        return jnp.where(jax.random.uniform(turn_key) < share, by, 0)

    return jax.vmap(item)(keys_B, lengths_B)


def rotate(
    x_BTD: jax.Array, by_B: jax.Array, period_B: jax.Array, lengths_B: jax.Array
) -> jax.Array:
    """Move the first `by_B` frames of each item behind its others.

    Args:
      x_BTD: frames.
      by_B: number of frames, less than the period.
      period_B: frames that are rotated.
      lengths_B: frames that exist; the last one stands in for missing ones.
    """
    places_BT = jnp.broadcast_to(jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
    turned_BT = (places_BT + by_B[:, None]) % jnp.maximum(period_B, 1)[:, None]
    last_B1 = jnp.maximum(lengths_B - 1, 0)[:, None]
    inside_BT = places_BT < lengths_B[:, None]
    source_BT = jnp.where(inside_BT, jnp.minimum(turned_BT, last_B1), places_BT)
    return jnp.take_along_axis(x_BTD, source_BT[..., None], axis=1)


def decode(model: BaichuanAudio, z_BNE: jax.Array, lengths_B: jax.Array) -> AudioDecoderOutput:
    """The audio decoder's output for quantised features."""
    return model.audio_decoder(model.vq_bridge.project(z_BNE), lengths_B)


class FlowStage(ClipStage):
    """The flow stage; batches are `AudioBatch`es with `flow_mel`, and `whisper_mel` or `codes`.

    Raises:
      StageError: a model without one of the components, or whose mel is not `FLOW_MEL`'s.
    """

    name = "flow"
    settings_class = FlowSettings

    @property
    def components(self) -> tuple[str, ...]:
        encoder = ("audio_encoder",) if self.settings.audio == "features" else ()
        return (*encoder, "vq_bridge", "audio_decoder", "flow_prenet", "flow_unet")

    def __init__(self, config, settings, **kwargs):
        super().__init__(config, settings, **kwargs)
        for name in ("flow_prenet", "flow_unet"):
            bins = getattr(self.config, name).mel_bins
            if bins != FLOW_MEL.n_mels:
                raise StageError(f"{name}: mel_bins = {bins}, expected {FLOW_MEL.n_mels}")

    def _code_lengths(self, arrays: Mapping[str, Any]) -> Any:
        """Frames of codes of each item."""
        if "code_lengths_B" in arrays:
            return arrays["code_lengths_B"]
        lengths_B = encoder_length(arrays["whisper_lengths_B"])
        return bridge_length(lengths_B, self.config.vq_bridge.pooling)

    def mu_lengths(self, codes_B: np.ndarray) -> np.ndarray:
        """Frames of mu for frames of codes, on the host."""
        hidden_B = self.config.audio_decoder.hidden_length(codes_B).astype(np.float32)
        ratio = np.float32(self.config.flow_prenet.length_ratio)
        return np.floor(hidden_B * ratio).astype(np.int32)

    def arrays(self, batch: AudioBatch) -> dict[str, np.ndarray]:
        """The input (whisper_mel_BTM, or codes_BNQ, with its lengths), and mel_BTM, the target,
        with the frames that count.

        Raises:
          StageError: a batch without these features, or without a frame to learn from.
        """
        stored = self.settings.audio == "codes"
        features = ["codes" if stored else "whisper_mel", "flow_mel"]
        features += ["hifigan_mel", "coarse_mel"] if self.settings.decoder else []
        self.check_features(batch, features)
        if stored:
            arrays = {"codes_BNQ": batch.codes_BNQ, "code_lengths_B": batch.code_lengths_B}
        else:
            arrays = {
                "whisper_mel_BTM": batch.whisper_mel_BTM,
                "whisper_lengths_B": np.asarray(batch.whisper_lengths_B, np.int32),
            }
        codes_B = self._code_lengths(arrays)
        mu_B = self.mu_lengths(codes_B)
        lengths_B = np.minimum(mu_B, batch.flow_lengths_B).astype(np.int32)
        self.check_frames(lengths_B, batch)
        arrays |= {"mel_BTM": batch.flow_mel_BTM, "lengths_B": lengths_B}
        if self.settings.decoder:
            decoder = self.config.audio_decoder
            refined_B, coarse_B = decoder.decoded_frames(codes_B), decoder.coarse_length(codes_B)
            arrays |= {
                "refined_mel_BTM": batch.hifigan_mel_BTM,
                "refined_lengths_B": np.minimum(refined_B, batch.hifigan_lengths_B),
                "coarse_mel_BTM": batch.coarse_mel_BTM,
                "coarse_lengths_B": np.minimum(coarse_B, batch.coarse_lengths_B),
            }
        return arrays

    def flops(self, arrays: Mapping[str, Any], trained: Collection[str]) -> float:
        """Prenet and one U-Net evaluation, forward and backward; the frozen tokenizer, forward.

        The decoder's mels count too, though only `FlowSettings.decoder` reads them: 0.2 % of the
        tokenizer's FLOPs at full size, 2.3 % at nano.
        """
        config, codes_B = self.config, np.asarray(self._code_lengths(arrays))
        frozen = 0.0
        if self.settings.audio == "features":
            whisper_B = np.asarray(arrays["whisper_lengths_B"])
            frozen += flops.audio_encoder(config.audio_encoder, whisper_B)
            frozen += flops.vq_bridge(config.vq_bridge, int(codes_B.sum()))
        decoder = flops.audio_decoder(config.audio_decoder, codes_B)
        frozen += flops.train(decoder) if self.settings.decoder else decoder
        forward = flops.flow_prenet(config.flow_prenet, config.audio_decoder.hidden_length(codes_B))
        forward += flops.flow_unet(config.flow_unet, np.asarray(arrays["lengths_B"]))
        return float(frozen + flops.train(forward))

    def totals(self, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """ "frames" of the flow's mel; "refined" and "coarse" ones where the decoder trains."""
        totals = super().totals(arrays)
        if self.settings.decoder:
            totals["refined"] = count(arrays["refined_lengths_B"])
            totals["coarse"] = count(arrays["coarse_lengths_B"])
        return totals

    def _rotate(
        self, arrays: Mapping[str, jax.Array], keys_B: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The arrays with a share of their mels rotated, and by how many frames of codes, (B,)."""
        codes_B = self._code_lengths(arrays)
        by_B = draw_rotations(keys_B, self.settings.rotation, codes_B)
        result = dict(arrays)
        for name, geometry in (("", FLOW_MEL), ("refined_", HIFIGAN_MEL), ("coarse_", COARSE_MEL)):
            if f"{name}mel_BTM" in arrays:
                ratio = round(FRAME_SECONDS * geometry.sample_rate / geometry.hop)
                result[f"{name}mel_BTM"] = rotate(
                    arrays[f"{name}mel_BTM"],
                    ratio * by_B,
                    ratio * codes_B,
                    arrays[f"{name}lengths_B"],
                )
        return result, by_B

    def _condition(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        codebooks_B: jax.Array | None = None,
        by_B: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, AudioDecoderOutput]:
        """(mu_BTM, mel_BTM) cut to their common frames, and the decoder's output.

        Args:
          variables, arrays: the step's.
          codebooks_B: codebooks that each item keeps; None: all.
          by_B: frames that codes are rotated by, as the mels are already.
        """
        frozen = jax.lax.stop_gradient(variables)
        if self.settings.audio == "codes":
            codes_BNQ, lengths_B = arrays["codes_BNQ"], arrays["code_lengths_B"]
        else:
            codes_BNQ, lengths_B = self.model.apply(
                frozen, arrays["whisper_mel_BTM"], arrays["whisper_lengths_B"], method="encode"
            )
        z = self.model.apply(
            frozen,
            codes_BNQ,
            lengths_B,
            codebooks_B,
            method=lambda model, *args: model.vq_bridge.dequantize(*args),
        )
        if by_B is not None:
            z = rotate(z, by_B, lengths_B, lengths_B)
        z = jax.lax.stop_gradient(z)
        decoder_variables = variables if self.settings.decoder else frozen
        output = self.model.apply(decoder_variables, z, lengths_B, method=decode)
        mu, _ = self.model.apply(
            variables,
            output.hidden_BTD,
            output.hidden_lengths_B,
            method=lambda model, *args: model.flow_prenet(*args),
        )
        mel = layers.zero_past(arrays["mel_BTM"].astype(jnp.float32), arrays["lengths_B"])
        frames = min(mu.shape[1], mel.shape[1])
        return mu[:, :frames].astype(jnp.float32), mel[:, :frames], output

    def _decoder_metrics(
        self, arrays: Mapping[str, jax.Array], totals: Mapping[str, jax.Array], output
    ) -> dict[str, jax.Array]:
        """ "decoder", the loss of the decoder's two mels, and "decoder_mae" of the refined one;
        {} where the decoder does not train."""
        if not self.settings.decoder:
            return {}
        errors = {}
        for name, mel in (
            ("refined", output.refined_mel_BTM),
            ("coarse", output.unresized_mel_BTM),
        ):
            both = mel_errors(mel, arrays[f"{name}_mel_BTM"], arrays[f"{name}_lengths_B"])
            errors[name] = [jnp.sum(error_B) / totals[name] for error_B in both]
        return {"decoder": sum(map(sum, errors.values())), "decoder_mae": errors["refined"][0]}

    def _velocity(self, variables: Variables, *args: jax.Array) -> jax.Array:
        def estimator(*args):
            return self.model.apply(
                variables, *args, method=lambda model, *args: model.flow_unet(*args)
            )

        return flow_matching.precondition(estimator, self.config.flow_matching)(*args)

    def loss(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        """Weighted prior, CFM and decoder losses; metrics "loss", "prior", "cfm", and "decoder",
        "decoder_mae" where the decoder trains."""
        settings, flow = self.settings, self.config.flow_matching
        lengths_B = arrays["lengths_B"]
        keys = split_keys(key, len(lengths_B))
        codebooks_B = by_B = None
        if settings.codebook_dropout:
            codebooks = len(self.config.vq_bridge.codebook_sizes)
            codebooks_B = draw_codebooks(keys.codebooks, settings.codebook_dropout, codebooks)
        if settings.rotation:
            arrays, by_B = self._rotate(arrays, keys.rotation)
        mu, mel, output = self._condition(variables, arrays, codebooks_B, by_B)
        prior = jnp.sum(losses.l1_B(mu, mel, lengths_B)) / totals["frames"]

        noise = flow_matching.draw_noise(keys.noise, mel.shape[1], mel.shape[2])
        t_B = flow_matching.warp(jax.vmap(jax.random.uniform)(keys.time), flow.schedule)
        dropped_B = losses.dropped_B(keys.condition, flow.condition_dropout)
        condition = jnp.where(dropped_B[:, None, None], 0, mu)
        cfm = self._cfm(variables, mel, noise, condition, t_B, lengths_B, totals)
        metrics = {"prior": prior, "cfm": cfm, **self._decoder_metrics(arrays, totals, output)}
        metrics["loss"] = self._weigh(metrics)
        return metrics["loss"], Aux(metrics)

    def _cfm(self, variables, mel, noise, mu, t_B, lengths_B, totals) -> jax.Array:
        """Conditional flow-matching loss at times t_B."""
        sigma_min = self.config.flow_matching.sigma_min
        point, target = flow_matching.training_pair(mel, noise, t_B, sigma_min)
        velocity = self._velocity(variables, point, mu, t_B, lengths_B)
        return jnp.sum(losses.cfm_B(velocity, target, lengths_B)) / totals["frames"]

    def _weigh(self, metrics: Mapping[str, jax.Array]) -> jax.Array:
        loss = self.settings.prior * metrics["prior"] + self.settings.cfm * metrics["cfm"]
        if self.settings.decoder:
            loss += self.settings.decoder * metrics["decoder"]
        return loss

    def evaluate(
        self,
        variables: Variables,
        arrays: Mapping[str, jax.Array],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """The losses with every condition, at fixed times and noise, and the error of samples.

        The same for every key. Metrics as of `loss`, and "mel_mae": mean absolute error of a mel
        sampled in `eval_steps` guided steps, natural-log units.
        """
        settings, flow = self.settings, self.config.flow_matching
        lengths_B = arrays["lengths_B"]
        mu, mel, output = self._condition(variables, arrays)
        noise = self._eval_noise(mel)

        def at_time(t: jax.Array) -> jax.Array:
            t_B = jnp.full(lengths_B.shape, t)
            return self._cfm(variables, mel, noise, mu, t_B, lengths_B, totals)

        middles = (jnp.arange(settings.eval_times, dtype=jnp.float32) + 0.5) / settings.eval_times
        sampled = self._sample(variables, mu, lengths_B, noise)
        metrics = {
            "prior": jnp.sum(losses.l1_B(mu, mel, lengths_B)) / totals["frames"],
            "cfm": jnp.mean(jax.lax.map(at_time, flow_matching.warp(middles, flow.schedule))),
            "mel_mae": jnp.sum(losses.l1_B(sampled, mel, lengths_B)) / totals["frames"],
            **self._decoder_metrics(arrays, totals, output),
        }
        return {"loss": self._weigh(metrics), **metrics}

    def _eval_noise(self, mel_BTM: jax.Array) -> jax.Array:
        batch, frames, bins = mel_BTM.shape
        keys_B = item_keys(jax.random.key(_EVAL_SEED), batch)
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

    def draw(self, variables: Variables, arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Mels "target", "mu" and "sampled"."""
        mu, mel, _ = self._condition(variables, arrays)
        sampled = self._sample(variables, mu, arrays["lengths_B"], self._eval_noise(mel))
        return {"target": mel, "mu": mu, "sampled": sampled}
