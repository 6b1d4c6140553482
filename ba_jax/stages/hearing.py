"""Hearing: a frozen language model reads packed rows with features in place of audio tokens (3.1).

Base of the stages that train speech features by what a language model understands of them: the
audio-understanding model, and the tokenizer that starts from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.lengths import HOP, SAMPLE_RATE, bridge_length, encoder_length
from ba_jax.data.packed import AudioChunks, PackedBatch
from ba_jax.losses.lm import cross_entropy
from ba_jax.losses.targets import Sums, TargetLoss
from ba_jax.metrics import flops
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.stages.base import Stage, StageError, Variables, count
from ba_jax.stages.outputs import output_layer, output_loss, text_logits

PROJECTION = "text_projection"
"""Entry of "params": features to the language model's width."""
_TEXT_CHUNK = 256  # targets of a device whose logits are computed at a time


def merge_axes(array: jax.Array) -> jax.Array:
    """(B, C, ...) to (B * C, ...)."""
    return array.reshape(-1, *array.shape[2:])


class HearingStage(Stage):
    """Packed rows of text and mels; the config's rules freeze the language model.

    The projection is loaded with the language model that was trained beside it.
    """

    companions: ClassVar[Mapping[str, str]] = {PROJECTION: "llm"}

    @functools.cached_property
    def _projection(self) -> nn.Dense:
        # Initialised as small as the embeddings that it replaces.
        init = nn.initializers.variance_scaling(0.02**2, "fan_in", "normal")
        return nn.Dense(self.config.llm.width, kernel_init=init, dtype=self.model.dtype)

    def init(self, key: jax.Array) -> Variables:
        """Random values of the components, and of the projection."""
        model_key, projection_key = jax.random.split(key)
        variables = super().init(model_key)
        if self.config.llm:
            frame = jnp.zeros((1, 1, self.config.vq_bridge.code_width))
            projection = self._projection.init(projection_key, frame)["params"]
            variables = {**variables, "params": {**variables["params"], PROJECTION: projection}}
        return variables

    def chunk_arrays(self, chunks: AudioChunks) -> dict[str, np.ndarray]:
        """Arrays of a bucket's chunks: mels with their lengths, frames and positions of codes."""
        lengths_BC = encoder_length(np.asarray(chunks.mel_lengths_BC))
        codes_BC = bridge_length(lengths_BC, self.config.vq_bridge.pooling)
        return {
            "mel": chunks.mel_BCTM,
            "mel_lengths": chunks.mel_lengths_BC,
            "codes": codes_BC.astype(np.int32),
            "starts": chunks.starts_BC,
        }

    def arrays(self, batch: PackedBatch) -> dict[str, Any]:
        """ "audio", a tuple by bucket of `chunk_arrays`, and "rows" of tokens.

        Raises:
          StageError: batches without mels, or a batch without anything to learn.
        """
        if not batch.audio:
            raise StageError(
                f"stage {self.name}: batches without mels; set data.audio = 'features'"
            )
        audio = tuple(map(self.chunk_arrays, batch.audio))
        rows = batch.rows
        if not self._can_learn(audio, int(rows.text_target_BL.sum()) if self.config.llm else 0):
            raise StageError(f"stage {self.name}: a batch without audio and without text to learn")
        return {
            "audio": audio,
            "rows": {
                "ids": rows.ids_BL,
                "positions": rows.positions_BL,
                "segments": rows.segments_BL,
                "text_target": rows.text_target_BL,
            },
        }

    def _can_learn(self, audio: Sequence[Mapping[str, np.ndarray]], text_targets: int) -> bool:
        """Whether a batch has something to learn."""
        return text_targets > 0

    def amounts(self, arrays: Mapping[str, Any]) -> dict[str, float]:
        segments_BL = np.asarray(arrays["rows"]["segments"])
        frames = sum(int(np.asarray(bucket["mel_lengths"]).sum()) for bucket in arrays["audio"])
        return {
            "tokens": float((segments_BL > 0).sum()),
            "audio_seconds": frames * HOP / SAMPLE_RATE,
            "examples": float(segments_BL.max(axis=1).sum()) if segments_BL.size else 0.0,
        }

    def totals(self, arrays: Mapping[str, Any]) -> dict[str, jax.Array]:
        """ "codes" frames, "items" with audio, "text" targets."""
        return {
            "codes": self.sum_over_chunks(arrays, lambda bucket: bucket["codes"]),
            "items": self.sum_over_chunks(arrays, lambda bucket: bucket["codes"] > 0),
            "text": count(arrays["rows"]["text_target"]),
        }

    @staticmethod
    def sum_over_chunks(arrays: Mapping[str, Any], values: Callable) -> jax.Array:
        """Sum of `values` of each bucket, as a denominator."""
        sums = [jnp.sum(values(bucket), dtype=jnp.int32) for bucket in arrays["audio"]]
        return count(jnp.stack(sums))

    def hearing_flops(self, arrays: Mapping[str, Any]) -> float:
        """FLOPs of the encoder, the bridge's projections and, through the projection, of the frozen
        language model, which only passes gradients on; real frames and tokens."""
        c = self.config
        mel, frames = self.chunk_lengths(arrays, "mel_lengths"), self.chunk_lengths(arrays, "codes")
        total = flops.train(flops.audio_encoder(c.audio_encoder, mel))
        total += flops.train(flops.vq_projections(c.vq_bridge, int(frames.sum())))
        if c.llm:
            segments_BL = np.asarray(arrays["rows"]["segments"])
            forward = flops.llm(
                c.llm,
                int((segments_BL > 0).sum()),
                flops.packed_pairs(segments_BL),
                int(np.asarray(arrays["rows"]["text_target"]).sum()),
            )
            total += flops.train(forward, trained=False)
            width = flops.dense(int(frames.sum()), c.vq_bridge.code_width, c.llm.width)
            total += flops.train(width)
        return float(total)

    @staticmethod
    def chunk_lengths(arrays: Mapping[str, Any], name: str) -> np.ndarray:
        """Lengths of all chunks, flat."""
        return np.concatenate([np.asarray(bucket[name]).reshape(-1) for bucket in arrays["audio"]])

    def project(self, variables: Variables, features_IND: jax.Array) -> jax.Array:
        """Features to the language model's width."""
        return self._projection.apply({"params": variables["params"][PROJECTION]}, features_IND)

    def text_metrics(
        self,
        variables: Variables,
        arrays: Mapping[str, Any],
        totals: Mapping[str, jax.Array],
        embeddings: Sequence[jax.Array],
    ) -> dict[str, jax.Array]:
        """Metrics "text", nats a target, and "text_accuracy", of the language model on the rows."""
        rows = arrays["rows"]
        batch, length = rows["ids"].shape
        audio_BLD = jnp.zeros((batch, length, self.config.llm.width), self.model.dtype)
        scatter = jax.vmap(lambda row, place, values: row.at[place].set(values, mode="drop"))
        for chunks, embeddings_IND in zip(arrays["audio"], embeddings, strict=True):
            frame_N = jnp.arange(embeddings_IND.shape[1])[None, None]
            # Positions at the row's length are dropped.
            place = jnp.where(
                frame_N < chunks["codes"][:, :, None],
                chunks["starts"][:, :, None] + frame_N,
                length,
            )
            values = embeddings_IND.reshape(batch, -1, self.config.llm.width)
            audio_BLD = scatter(audio_BLD, place.reshape(batch, -1), values.astype(audio_BLD.dtype))

        def hidden(model: BaichuanAudio) -> jax.Array:
            real = rows["segments"] > 0
            ids = jnp.where(real, rows["ids"], 0)
            is_audio = real & (ids == model.config.tokens.audio_pad)
            x = jnp.where(is_audio[:, :, None], audio_BLD, model.llm.embed(ids))
            return model.llm(x, rows["positions"], rows["segments"])[0]

        def sums(variables, mask_N, hidden_ND, ids_N) -> Sums:
            return {"text": cross_entropy(text_logits(variables, hidden_ND), ids_N).sums(mask_N)}

        loss, result = output_loss(
            TargetLoss(sums, _TEXT_CHUNK),
            self.config,
            output_layer(self.config, variables),
            self.model.apply(variables, method=hidden)[:, :-1],
            rows["text_target"][:, 1:],
            (rows["ids"][:, 1:],),
            {"text": 1 / totals["text"]},
        )
        return {"text": loss, "text_accuracy": result["text"].correct / totals["text"]}
