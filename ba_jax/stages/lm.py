"""Language-model stages: text and audio codes predicted from packed rows (paper 3.3).

One class serves stage 1, stage 2, the single-stage ablation, SFT (3.3.2) and LoRA: they differ in
their data and in the config's rules for what is trained. `TextLMStage` trains the language model
alone, on text.

The data mark the targets; each is predicted from the position before it: text by the language
model's output layer, codes by the audio head (1.46 B parameters in the release). Both run only on
positions that predict a target, see `losses.targets`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.lengths import FRAME_SECONDS
from ba_jax.checkpoints.arrays import Reader
from ba_jax.data.packed import PackedBatch
from ba_jax.losses.lm import cross_entropy
from ba_jax.losses.targets import Sums, TargetLoss
from ba_jax.metrics import flops
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, select_variables
from ba_jax.stages.base import Aux, Stage, StageError, Variables, count
from ba_jax.stages.code_embeddings import derive_embeddings
from ba_jax.stages.lm_batch import LMSettings, make_arrays
from ba_jax.stages.outputs import count_trips, output_layer, output_loss, text_logits

Arrays = Mapping[str, Any]


class LossKeys(NamedTuple):
    """Random keys of a training step, one for each draw."""

    codebooks: jax.Array
    codebook_count: jax.Array
    frames: jax.Array
    speech: jax.Array
    words: jax.Array
    head_offset: jax.Array


class LMStage(Stage):
    """Text and audio losses; without an audio head in the model's config, text alone.

    Metrics, all means over their targets: `text`, `text_accuracy`; `text_plain_rows` and
    `text_audio_rows`, the text loss in rows without and with audio (0 without such a row);
    `audio/q`, `audio_accuracy/q`; `z_loss` if it is on.
    """

    name = "lm"
    settings_class = LMSettings
    divides_positions = True

    def __init__(self, config: BaichuanAudioConfig, settings: LMSettings, **options: Any):
        self.with_audio = config.audio_head is not None
        self.online = self.with_audio and settings.audio == "features"
        self.trips: dict[str, int] = {}
        super().__init__(config, settings, **options)
        if not self.with_audio:
            self.codebook_sizes = self.audio_weights = ()
            return
        self.codebook_sizes = self.config.audio_head.codebook_sizes
        depth = len(self.codebook_sizes)
        self.audio_weights = settings.audio_weights or (1 / depth,) * depth
        if len(self.audio_weights) != depth:
            raise StageError(
                f"stage {self.name}: {len(self.audio_weights)} audio_weights, expected {depth}, "
                "one a codebook"
            )
        # float32 whatever the rest computes in: the codes must be those of the other tools.
        self.tokenizer = BaichuanAudio(self.config.only("audio_encoder", "vq_bridge"))
        # Nothing is rematerialised: gradients of a chunk are computed with its loss.
        head = self.config.only("audio_embed", "audio_head")
        options = {"dtype": self.model.dtype, "quantization": self.model.quantization}
        self.head = BaichuanAudio(head, **options)

    @property
    def components(self) -> tuple[str, ...]:
        """The language model; for audio, embeddings and head; for mels, encoder and bridge."""
        tokenizer = ("audio_encoder", "vq_bridge") if self.online else ()
        audio = ("audio_embed", "audio_head") if self.with_audio else ()
        return (*tokenizer, "llm", *audio)

    def derive(self, reader: Reader, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Audio embeddings from a tokenizer run, see `code_embeddings`."""
        return derive_embeddings(reader, shapes)

    # On the host

    def arrays(self, batch: PackedBatch) -> dict[str, Any]:
        """See `lm_batch.make_arrays`."""
        return make_arrays(batch, self.name, self.config, self.settings)

    def amounts(self, arrays: Arrays) -> dict[str, float]:
        """Real tokens, seconds of audio among them, and examples."""
        segments_BL = arrays["segments_BL"]
        frames = int(np.sum(arrays["ids_BL"] == self.config.tokens.audio_pad))
        return {
            "tokens": float(np.sum(segments_BL > 0)),
            "audio_seconds": FRAME_SECONDS * frames * self.with_audio,
            "examples": float(np.sum(np.max(segments_BL, axis=1))),
        }

    def flops(self, arrays: Arrays, trained: Collection[str]) -> float:
        """FLOPs of real positions and targets.

        A component outside `trained` passes gradients on to the embeddings, without products for
        its weights.
        """
        segments_BL = arrays["segments_BL"]
        forward = {
            "llm": flops.llm(
                self.config.llm,
                int(np.sum(segments_BL > 0)),
                flops.packed_pairs(segments_BL),
                int(arrays["text_target_BL"].sum()),
            )
        }
        if self.with_audio:
            head, stride = self.config.audio_head, self.settings.full_head_every
            targets = int(arrays["audio_target_BL"].sum())
            forward["audio_head"] = flops.audio_head(head, round(targets / stride))
            if stride > 1:
                forward["audio_head"] += flops.audio_head(head, targets, 1)
        total = sum(flops.train(value, name in trained) for name, value in forward.items())
        for chunks in arrays.get("audio", ()):
            total += flops.audio_encoder(self.config.audio_encoder, chunks["mel_lengths_BC"])
            total += flops.vq_bridge(self.config.vq_bridge, int(chunks["frames_BC"].sum()))
        return float(total)

    def fix_loops(self, arrays: Arrays, copies: float) -> None:
        """See `Stage.fix_loops`."""
        for kind in ("text", "audio")[: 1 + self.with_audio]:
            targets = copies * int(arrays[f"{kind}_target_BL"].sum())
            self.trips[kind] = count_trips(targets, self.settings.chunk)

    # On the device

    def totals(self, arrays: Arrays) -> dict[str, jax.Array]:
        """Numbers of targets: "text", "text_plain_rows", "text_audio_rows", "audio/q"."""
        text_BL = arrays["text_target_BL"]
        masks = {"text": text_BL}
        if self.with_audio:
            spoken_B1 = self._has_audio(arrays)[:, None]
            masks["text_plain_rows"], masks["text_audio_rows"] = (
                text_BL & ~spoken_B1,
                text_BL & spoken_B1,
            )
            audio_BL = arrays["audio_target_BL"]
            end_BL = arrays["ids_BL"] == self.config.tokens.audiogen_end
            for q in range(len(self.codebook_sizes)):
                masks[f"audio/{q}"] = audio_BL & ~end_BL if q else audio_BL
        return {name: count(mask) for name, mask in masks.items()}

    def loss(
        self,
        variables: Variables,
        arrays: Arrays,
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        """Weighted sum of the text loss and each codebook's; see `Stage.loss`."""
        loss, metrics = self._losses(variables, arrays, totals, split_key(key))
        return loss, Aux(metrics)

    def evaluate(
        self,
        variables: Variables,
        arrays: Arrays,
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """The same losses without dropout; nothing is random."""
        loss, metrics = self._losses(variables, arrays, totals, None)
        return {"loss": loss, **metrics}

    def _losses(
        self,
        variables: Variables,
        arrays: Arrays,
        totals: Mapping[str, jax.Array],
        keys: LossKeys | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(loss, metrics); without keys: evaluation."""
        settings = self.settings
        codes_BLQ = self._codes(variables, arrays) if self.with_audio else None
        hidden_BLD = self._hidden(variables, arrays, codes_BLQ, keys)
        label_smoothing = settings.label_smoothing if keys else 0.0
        weights = {"text": settings.text_weight / totals["text"]}
        loss, sums = self._text_loss(variables, arrays, hidden_BLD, weights, label_smoothing)
        metrics = {"text_accuracy": sums["text"].correct / totals["text"]}
        if self.with_audio:
            plain, text = sums.pop("text_plain_rows").loss, sums["text"].loss
            metrics["text_plain_rows"] = plain / totals["text_plain_rows"]
            metrics["text_audio_rows"] = (text - plain) / totals["text_audio_rows"]
            names = [f"audio/{q}" for q in range(len(self.codebook_sizes))]
            audio_weights = dict(zip(names, self.audio_weights, strict=True))
            weights |= {name: weight / totals[name] for name, weight in audio_weights.items()}
            offset_key = keys.head_offset if keys else None
            audio_loss, audio_sums = self._audio_loss(
                variables, arrays, hidden_BLD, codes_BLQ, weights, offset_key
            )
            loss, sums = loss + audio_loss, sums | audio_sums
            metrics |= {
                f"audio_accuracy/{q}": sums[name].correct / totals[name]
                for q, name in enumerate(names)
            }
        metrics |= {name: sums[name].loss / totals[name] for name in weights}
        if settings.z_loss:
            squares = (weight * sums[name].square for name, weight in weights.items())
            metrics["z_loss"] = settings.z_loss * sum(squares)
        return loss, metrics

    def _has_audio(self, arrays: Arrays) -> jax.Array:
        """(B,): rows with at least one frame, heard or spoken."""
        return jnp.any(arrays["ids_BL"] == self.config.tokens.audio_pad, axis=1)

    def _codes(self, variables: Variables, arrays: Arrays) -> jax.Array:
        """codes_BLQ, with the codes of the batch's mels at their positions."""
        codes_BLQ = arrays["codes_BLQ"]
        frozen = jax.lax.stop_gradient(variables)
        for chunks in arrays.get("audio", ()):
            mel_BCTM = chunks["mel_BCTM"]
            codes_XNQ, _ = self.tokenizer.apply(
                frozen,
                mel_BCTM.reshape(-1, *mel_BCTM.shape[2:]),
                chunks["mel_lengths_BC"].reshape(-1),
                method="encode",
            )
            codes_BCNQ = codes_XNQ.reshape(*mel_BCTM.shape[:2], *codes_XNQ.shape[1:])
            codes_BLQ = jax.vmap(scatter_codes)(
                codes_BLQ, codes_BCNQ, chunks["starts_BC"], chunks["frames_BC"]
            )
        return codes_BLQ

    def _hidden(
        self, variables: Variables, arrays: Arrays, codes_BLQ, keys: LossKeys | None
    ) -> jax.Array:
        """Normed hidden states (B, L, D)."""
        shown_BL = words_BL = None
        if keys and self.with_audio:
            depth = len(self.codebook_sizes)
            shown_BL = draw_shown_codebooks(self.settings, keys, depth, arrays["audio_target_BL"])
        if keys and self.settings.word_dropout:
            # The token that begins speech stays: the frames after it depend on it.
            is_word_BL = arrays["ids_BL"] != self.config.tokens.audiogen_start
            words_BL = jax.random.bernoulli(
                keys.words, self.settings.word_dropout, is_word_BL.shape
            )
            words_BL &= arrays["text_target_BL"] & is_word_BL

        def run(model: BaichuanAudio) -> jax.Array:
            ids_BL, segments_BL = arrays["ids_BL"], arrays["segments_BL"]
            real_BL = segments_BL > 0
            if shown_BL is None:
                x_BLD = model.embed(ids_BL, codes_BLQ, real_BL)
            else:
                x_BLD = embed_first_codebooks(model, ids_BL, codes_BLQ, shown_BL, real_BL)
            if words_BL is not None:
                x_BLD = jnp.where(words_BL[:, :, None], 0, x_BLD)
            return model.llm(x_BLD, arrays["positions_BL"], segments_BL)[0]

        return self.model.apply(variables, method=run)

    def _text_loss(
        self, variables: Variables, arrays: Arrays, hidden_BLD, weights, label_smoothing: float
    ) -> tuple[jax.Array, Sums]:
        """Loss and sums of the text, over all targets and over those in rows without audio."""

        def sums(variables, mask_N, hidden_ND, ids_N, plain_N) -> Sums:
            entropy = cross_entropy(text_logits(variables, hidden_ND), ids_N, label_smoothing)
            return {
                "text": entropy.sums(mask_N),
                "text_plain_rows": entropy.sums(mask_N & plain_N),
            }

        used = output_layer(self.config, variables)
        target_BL = shift_left(arrays["text_target_BL"])
        plain_BL = jnp.broadcast_to(~self._has_audio(arrays)[:, None], target_BL.shape)
        values = (shift_left(arrays["ids_BL"]), plain_BL)
        return self._output_loss("text", sums, used, hidden_BLD, target_BL, values, weights)

    def _audio_loss(
        self, variables: Variables, arrays: Arrays, hidden_BLD, codes_BLQ, weights, offset_key
    ) -> tuple[jax.Array, Sums]:
        """Loss and sums of each codebook."""

        def sums(first, end, times, variables, mask_N, hidden_ND, codes_NQ, ends_N) -> Sums:
            codes_NQ = jnp.where(mask_N[:, None], codes_NQ, 0)
            logits = self.head.apply(variables, hidden_ND, codes_NQ, end, method="audio_logits")
            result = {}
            for q in range(first, end):
                # An end of audio is a class of the first codebook alone.
                counted_N = mask_N & ~ends_N if q else mask_N
                entropy = cross_entropy(logits[q], codes_NQ[:, q]).sums(counted_N)
                result[f"audio/{q}"] = jax.tree.map(lambda x: times * x, entropy)
            return result

        used = select_variables(self.config, variables, ("audio_embed", "audio_head"))
        target_BL = shift_left(arrays["audio_target_BL"])
        ends_BL = shift_left(arrays["ids_BL"] == self.config.tokens.audiogen_end)
        values = (shift_left(codes_BLQ), ends_BL)
        depth, stride = len(self.codebook_sizes), self.settings.full_head_every
        parts = [(0, depth, 1, target_BL)]
        if stride > 1 and offset_key is not None:
            offset = jax.random.randint(offset_key, (), 0, stride)
            rank_BL = jnp.cumsum(target_BL).reshape(target_BL.shape) - 1
            every_BL = target_BL & (rank_BL % stride == offset)
            parts = [(0, 1, 1, target_BL), (1, depth, stride, every_BL)]
        loss, result = jnp.zeros((), jnp.float32), {}
        for *which, chosen_BL in parts:
            function = functools.partial(sums, *which)
            arguments = (used, hidden_BLD, chosen_BL, values, weights)
            more, of_part = self._output_loss("audio", function, *arguments)
            loss, result = loss + more, result | of_part
        return loss, result

    def _output_loss(self, kind: str, function, *arguments: Any) -> tuple[jax.Array, Sums]:
        settings = self.settings
        job = TargetLoss(function, settings.chunk, settings.z_loss, self.trips.get(kind))
        return output_loss(job, self.config, *arguments)


class TextLMStage(LMStage):
    """The language model alone, on text: what the demo pretrains its nano model with."""

    name = "text_lm"

    def __init__(self, config: BaichuanAudioConfig, settings: LMSettings, **options: Any):
        super().__init__(config.only("llm"), settings, **options)


def split_key(key: jax.Array) -> LossKeys:
    """Independent keys for the draws of a step."""
    return LossKeys(*jax.random.split(key, len(LossKeys._fields)))


def shift_left(array_BL: jax.Array) -> jax.Array:
    """Each position's successor, zeros at the last: at i, what position i predicts."""
    last = jnp.zeros_like(array_BL[:, :1])
    return jnp.concatenate([array_BL[:, 1:], last], axis=1)


def scatter_codes(codes_LQ, codes_CNQ, starts_C, frames_C) -> jax.Array:
    """A row's codes with each chunk's codes written from its start on."""
    place_N = jnp.arange(codes_CNQ.shape[1])
    at_CN = starts_C[:, None] + place_N[None]
    at_CN = jnp.where(place_N[None] < frames_C[:, None], at_CN, len(codes_LQ))
    return codes_LQ.at[at_CN].set(codes_CNQ, mode="drop")


def draw_shown_codebooks(
    settings: LMSettings, keys: LossKeys, depth: int, audio_target_BL: jax.Array
) -> jax.Array | None:
    """Number of codebooks that each input frame shows, (B, L); None if all show all."""
    s, shape = settings, audio_target_BL.shape
    if not (s.codebook_dropout or s.frame_dropout or s.speech_dropout):
        return None
    shown_BL = jnp.full(shape, depth)
    if s.codebook_dropout and depth > 1:
        fewer_BL = jax.random.randint(keys.codebook_count, shape, 1, depth)
        drop_BL = jax.random.bernoulli(keys.codebooks, s.codebook_dropout, shape)
        shown_BL = jnp.where(drop_BL, fewer_BL, shown_BL)
    shown_BL = jnp.where(jax.random.bernoulli(keys.frames, s.frame_dropout, shape), 0, shown_BL)
    if s.speech_dropout:
        drop_BL = jax.random.bernoulli(keys.speech, s.speech_dropout, shape) & audio_target_BL
        shown_BL = jnp.where(drop_BL, jnp.minimum(shown_BL, 1), shown_BL)
    return shown_BL


def embed_first_codebooks(model: BaichuanAudio, ids_BL, codes_BLQ, shown_BL, real_BL) -> jax.Array:
    """`BaichuanAudio.embed` with the first `shown_BL` codebooks of each frame."""
    text_BLD = model.embed(ids_BL, None, real_BL)
    is_audio_BL = real_BL & (ids_BL == model.config.tokens.audio_pad)
    codes_BLQ = jnp.where(is_audio_BL[:, :, None], codes_BLQ, 0)
    audio_BLD = sum(
        jnp.where((q < shown_BL)[:, :, None], model.audio_embed.code(q, codes_BLQ[:, :, q]), 0)
        for q in range(codes_BLQ.shape[-1])
    )
    return jnp.where(is_audio_BL[:, :, None], audio_BLD, text_BLD)
