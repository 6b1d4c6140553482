"""Understanding stage: speech features that a frozen language model understands (paper 3.1).

The audio-understanding model: encoder, bridge and a projection into the language model, without
quantiser and decoder. The tokenizer starts from it and is compared with it (Tables 1 and 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax

from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.stages.base import Aux, Variables, check_range
from ba_jax.stages.fit_bridge import fit_bridge
from ba_jax.stages.hearing import HearingStage, merge_axes


@dataclasses.dataclass(frozen=True)
class UnderstandingSettings:
    """Settings of the stage.

    Attributes:
      norm_init_frames: frames of the first batches that a new bridge's norm is fitted to, see
        `TokenizerSettings.kmeans_init_frames`; 0: not fitted.

    Raises:
      ValueError: a number out of range.
    """

    norm_init_frames: int = 0

    def __post_init__(self):
        check_range(self, "norm_init_frames")


class UnderstandingStage(HearingStage):
    """The understanding stage; batches are `PackedBatch`es of mels. The loss is the text's."""

    name = "understanding"
    settings_class = UnderstandingSettings
    components = ("audio_encoder", "vq_bridge", "llm")

    def from_data(
        self,
        variables: Variables,
        placed: Iterator[Mapping[str, jax.Array]],
        key: jax.Array,
        fresh: Collection[str],
    ) -> Variables:
        """The norm of a new bridge, see `norm_init_frames`."""
        frames = self.settings.norm_init_frames
        if not frames or "vq_bridge" not in fresh:
            return variables
        return fit_bridge(self.model, self.name, variables, placed, key, frames, tables=False)

    def flops(self, arrays: Mapping[str, Any], trained: Collection[str]) -> float:
        return self.hearing_flops(arrays)

    def _metrics(
        self, variables: Variables, arrays: Mapping[str, Any], totals: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Metrics "loss" and "text", both the cross-entropy in nats a target, "text_accuracy"."""

        def features(model: BaichuanAudio, mel: jax.Array, lengths: jax.Array) -> jax.Array:
            return model.vq_bridge.features(*model.audio_encoder(mel, lengths))[0]

        embeddings = []
        for bucket in arrays["audio"]:
            inputs = merge_axes(bucket["mel"]), merge_axes(bucket["mel_lengths"])
            z_INE = self.model.apply(variables, *inputs, method=features)
            embeddings.append(self.project(variables, z_INE))
        metrics = self.text_metrics(variables, arrays, totals, embeddings)
        return {"loss": metrics["text"], **metrics}

    def loss(
        self,
        variables: Variables,
        arrays: Mapping[str, Any],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        metrics = self._metrics(variables, arrays, totals)
        return metrics["loss"], Aux(metrics)

    def evaluate(
        self,
        variables: Variables,
        arrays: Mapping[str, Any],
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        return self._metrics(variables, arrays, totals)
