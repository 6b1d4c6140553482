"""Language-model stages: text and audio codes predicted from packed rows (paper 3.3).

One class for stage 1, stage 2, the single-stage ablation, SFT (3.3.2) and LoRA: they differ in
their data and in the config's rules for what is trained. `TextLMStage` trains the language model
alone, on text.

Targets stand where the data marks them and are predicted from the position before: text by the
language model's output layer, codes by the audio head, which is large (1.46 B parameters in the
release) and runs on the positions that predict a frame alone.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.audio.lengths import FRAME_SECONDS, bridge_length, encoder_length
from ba_jax.checkpoints.arrays import Reader
from ba_jax.losses.lm import CrossEntropy, cross_entropy, front, sum_over_chunks
from ba_jax.metrics import flops
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig
from ba_jax.sharding import constrain
from ba_jax.stages.base import Aux, Stage, StageError, Variables
from ba_jax.stages.code_embeddings import derive_embeddings
from ba_jax.vocab import check_codes, check_token_ids

AUDIO = ("codes", "features")
GATHER = ("row", "batch")

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LMSettings:
    """Settings of the language-model stages.

    Attributes:
      text_weight: of the text loss, a mean over text targets.
      audio_weights: of each codebook's loss, a mean over its targets; () for 1 / Q each, so that a
        frame weighs as much as a token of text.
      z_loss: weight of the squared log-partition of every loss beside that loss (PaLM: 1e-4).
      label_smoothing: of the text.
      audio: "codes": the batch holds them; "features": it holds mels, and the frozen encoder and
        quantiser run inside the step, in float32.
      gather: what the audio head runs on. "row": each row's audio targets, to a fixed capacity, so
        that rows on several devices do not meet; the output layer runs on all positions. "batch":
        the targets of the whole (micro)batch side by side, those of the text too, in chunks that
        are skipped where no target is left; for one device.
      audio_capacity: with "row", the share of a row's positions that may be audio targets; the
        audio head's work is in proportion to it. A row with more is an error.
      chunk: positions whose logits are made at a time, of each row or of the batch as gathered; 0
        for all. See `losses.lm`.
      recompute: make them, and what is inside the audio head, again in the backward pass instead of
        keeping them: less memory, more work.
      full_head_every: every N-th audio target, from a random offset, is predicted with all its
        codebooks, the others with the first alone, an eighth of the audio head's work (after
        Sesame's CSM, 2025: "compute amortization"). `audio/q` from q = 1 on are then
        estimates without bias. 1: all. Training only.
      codebook_dropout: probability that an input frame shows only its first 1 to Q - 1 codebooks.
        Targets, and what the audio head is fed, are untouched. Training only.
      frame_dropout: probability that an input frame's embedding is 0. Training only.
      word_dropout: probability that the embedding of a token that was itself a text target is 0
        (Bowman et al. 2016, arXiv 1511.06349): what comes next has to be heard, not remembered.
        Training only.
      speech_dropout: probability that an input frame that was itself an audio target shows its
        first codebook alone. All codebooks of a frame tell from which recording it is: a model that
        has heard that one goes on with it, whatever the text says, and at its own frames, which are
        nearly those of some recording, with any. Training only.
    """

    text_weight: float = 1.0
    audio_weights: tuple[float, ...] = ()
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    audio: str = "codes"
    gather: str = "row"
    audio_capacity: float = 1.0
    chunk: int = 512
    recompute: bool = True
    full_head_every: int = 1
    codebook_dropout: float = 0.0
    frame_dropout: float = 0.0
    word_dropout: float = 0.0
    speech_dropout: float = 0.0

    def __post_init__(self):
        if self.audio not in AUDIO:
            raise ValueError(f"audio = {self.audio!r}, expected one of {AUDIO}")
        if self.gather not in GATHER:
            raise ValueError(f"gather = {self.gather!r}, expected one of {GATHER}")
        if self.gather == "batch" and self.audio_capacity != 1:
            raise ValueError(
                f"audio_capacity = {self.audio_capacity} with gather 'batch', expected 1"
            )
        if not 0 < self.audio_capacity <= 1:
            raise ValueError(f"audio_capacity = {self.audio_capacity}, expected 0 < it <= 1")
        if self.full_head_every < 1:
            raise ValueError(f"full_head_every = {self.full_head_every}, expected at least 1")
        for name in ("label_smoothing", "codebook_dropout", "frame_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected 0 <= it < 1")
        if not 0 <= self.speech_dropout <= 1:
            raise ValueError(f"speech_dropout = {self.speech_dropout}, expected 0 to 1")
        if min(self.text_weight, self.z_loss, self.chunk, *self.audio_weights) < 0:
            raise ValueError(
                f"text_weight {self.text_weight}, audio_weights {self.audio_weights}, z_loss "
                f"{self.z_loss}, chunk {self.chunk}: expected at least 0"
            )


class LMStage(Stage):
    """Text and audio losses; without an audio head in the model's config, text alone.

    Metrics, all means over their targets: `text`, `text_accuracy`; `text_plain_rows` and
    `text_audio_rows`, the text loss in rows without and with audio (0 if the batch has no such
    row); `audio/q`, `audio_accuracy/0`; `z_loss` if it is on.

    Attributes:
      trained: components whose matrices train, for `flops`; a loop that freezes some may set it.
    """

    name = "lm"
    settings_class = LMSettings
    divides_positions = True
    trained: Collection[str] = ("llm", "audio_head")

    def __init__(self, config: BaichuanAudioConfig, settings: LMSettings, **options: Any):
        self.with_audio = config.audio_head is not None
        self.online = self.with_audio and settings.audio == "features"
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

    @property
    def components(self) -> tuple[str, ...]:
        """The language model, what reads and writes codes, and what makes them in the step."""
        tokenizer = ("audio_encoder", "vq_bridge") if self.online else ()
        audio = ("audio_embed", "audio_head") if self.with_audio else ()
        return (*tokenizer, "llm", *audio)

    def derive(self, reader: Reader, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Audio embeddings from a tokenizer run, see `code_embeddings`."""
        return derive_embeddings(reader, shapes)

    # On the host

    def arrays(self, batch: Any) -> dict[str, Any]:
        """A `PackedBatch` as arrays, once everything in it is in range and in place.

        Raises:
          StageError: no targets at all; a target that nothing predicts; more audio targets than
            audio_capacity; audio for a model without audio; codes where mels are due or mels where
            codes are; mels that do not fill the audio positions.
          TokenIdError, CodeError: an id or a code out of range.
        """
        rows, tokens = batch.rows, self.config.tokens
        real_BL = rows.segments_BL > 0
        ids_BL = check_token_ids(
            np.where(real_BL, rows.ids_BL, 0), self.config.llm.vocab_size, "ids"
        )
        frames_BL = real_BL & (ids_BL == tokens.audio_pad)
        self._check_targets(batch, real_BL)
        arrays = {
            "ids_BL": ids_BL,
            "positions_BL": rows.positions_BL,
            "segments_BL": rows.segments_BL,
            "text_target_BL": rows.text_target_BL,
        }
        if not self.with_audio:
            targets = int(rows.audio_target_BL.sum())
            if frames_BL.any() or targets:
                raise StageError(
                    f"stage {self.name}: the batch has {int(frames_BL.sum())} frames of audio and "
                    f"{targets} audio targets, but this model has no audio head: expected text"
                )
            return arrays
        arrays["codes_BLQ"] = self._checked_codes(rows, ids_BL, frames_BL)
        arrays["audio_target_BL"] = rows.audio_target_BL
        if self.online:
            arrays["audio"] = _checked_chunks(batch.audio, frames_BL, self.config.vq_bridge.pooling)
        elif any(chunks.frames_BC.any() for chunks in batch.audio):
            raise StageError(
                f"stage {self.name}: the batch holds mels, expected codes: set data.audio to "
                "'codes', or stage.audio to 'features'"
            )
        return arrays

    def _check_targets(self, batch: Any, real_BL: np.ndarray) -> None:
        rows = batch.rows
        target_BL = rows.text_target_BL | rows.audio_target_BL
        if not target_BL.any():
            raise StageError(
                f"stage {self.name}: no loss positions: none of the {int(real_BL.sum())} tokens in "
                f"{len(real_BL)} rows is a target of text or audio ({int(batch.skipped_B.sum())} "
                "examples were skipped)"
            )
        before_BL = np.pad(rows.segments_BL, ((0, 0), (1, 0)))[:, :-1]
        bad_BL = target_BL & (~real_BL | (before_BL != rows.segments_BL))
        if bad_BL.any():
            row, place = np.argwhere(bad_BL)[0]
            raise StageError(
                f"row {row}, position {place} is a target, but it is padding or its example's "
                "first position: nothing predicts it"
            )
        most = self._capacity(real_BL.shape[1])
        counts_B = rows.audio_target_BL.sum(axis=1)
        if counts_B.max() > most:
            row = int(counts_B.argmax())
            raise StageError(
                f"audio_capacity = {self.settings.audio_capacity:g} of {real_BL.shape[1]} "
                f"positions is {most}: row {row} has {int(counts_B[row])} audio targets"
            )

    def _capacity(self, length: int) -> int:
        """Audio targets that a row of `length` positions has room for."""
        return math.ceil(self.settings.audio_capacity * length)

    def _checked_codes(self, rows: Any, ids_BL: np.ndarray, frames_BL: np.ndarray) -> np.ndarray:
        """Codes at the frames and the end class at the ends, 0 elsewhere."""
        sizes, tokens = self.codebook_sizes, self.config.tokens
        if rows.codes_BLQ.shape[-1] != len(sizes):
            raise StageError(
                f"the batch has {rows.codes_BLQ.shape[-1]} codebooks, expected {len(sizes)}"
            )
        ends_BL = rows.audio_target_BL & ~frames_BL
        wrong_BL = ends_BL & (
            (ids_BL != tokens.audiogen_end) | (rows.codes_BLQ[:, :, 0] != sizes[0])
        )
        if wrong_BL.any():
            row, place = np.argwhere(wrong_BL)[0]
            raise StageError(
                f"row {row}, position {place} is an audio target with id {ids_BL[row, place]} and "
                f"code {rows.codes_BLQ[row, place, 0]}: expected a frame (id {tokens.audio_pad}) "
                f"or an end of audio (id {tokens.audiogen_end}, code {sizes[0]})"
            )
        codes_BLQ = check_codes(np.where(frames_BL[:, :, None], rows.codes_BLQ, 0), sizes)
        return np.where(ends_BL[:, :, None], np.asarray(sizes, np.int32), codes_BLQ)

    def amounts(self, arrays: Arrays) -> dict[str, float]:
        """Real tokens, seconds of audio among them, and examples of a host's arrays."""
        segments_BL = arrays["segments_BL"]
        frames = int(np.sum(arrays["ids_BL"] == self.config.tokens.audio_pad))
        return {
            "tokens": float(np.sum(segments_BL > 0)),
            "audio_seconds": FRAME_SECONDS * frames * self.with_audio,
            "examples": float(np.sum(np.max(segments_BL, axis=1))),
        }

    def flops(self, arrays: Arrays) -> float:
        """FLOPs of a step on a host's arrays, real positions and targets alone.

        What is not in `trained` counts its backward pass through to the embeddings, but no products
        for its weights.
        """
        segments_BL, counts = arrays["segments_BL"], {}
        pairs = flops.packed_pairs(segments_BL)
        counts["llm"] = flops.llm(
            self.config.llm,
            int(np.sum(segments_BL > 0)),
            pairs,
            int(arrays["text_target_BL"].sum()),
        )
        if self.with_audio:
            targets, stride = int(arrays["audio_target_BL"].sum()), self.settings.full_head_every
            counts["audio_head"] = flops.audio_head(self.config.audio_head, round(targets / stride))
            if stride > 1:
                counts["audio_head"] += flops.audio_head(self.config.audio_head, targets, 1)
        total = sum(flops.train(count, name in self.trained) for name, count in counts.items())
        for chunks in arrays.get("audio", ()):
            total += flops.audio_encoder(self.config.audio_encoder, chunks["mel_lengths_BC"])
            total += flops.vq_bridge(self.config.vq_bridge, int(chunks["frames_BC"].sum()))
        return float(total)

    # On the device

    def totals(self, arrays: Arrays) -> dict[str, jax.Array]:
        """Numbers of targets: "text", "text_plain_rows", "text_audio_rows", "audio/q"."""
        masks = {"text": arrays["text_target_BL"]}
        if self.with_audio:
            spoken_B1 = self._has_audio(arrays)[:, None]
            masks["text_plain_rows"] = arrays["text_target_BL"] & ~spoken_B1
            masks["text_audio_rows"] = arrays["text_target_BL"] & spoken_B1
            end_BL = arrays["ids_BL"] == self.config.tokens.audiogen_end
            for q in range(len(self.codebook_sizes)):
                target_BL = arrays["audio_target_BL"]
                masks[f"audio/{q}"] = target_BL & ~end_BL if q else target_BL
        return {
            name: jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1) for name, mask in masks.items()
        }

    def loss(
        self,
        variables: Variables,
        arrays: Arrays,
        totals: Mapping[str, jax.Array],
        key: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, Aux]:
        """Weighted sum of the text loss and each codebook's; see `Stage.loss`."""
        loss, metrics = self._run(variables, arrays, totals, key)
        return loss, Aux(metrics)

    def evaluate(
        self,
        variables: Variables,
        arrays: Arrays,
        totals: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        """The same losses without dropout; nothing is random."""
        loss, metrics = self._run(variables, arrays, totals, None)
        return {"loss": loss, **metrics}

    def _run(self, variables, arrays, totals, key):
        """(loss, metrics); `key` None is evaluation."""
        settings = self.settings
        codes_BLQ = self._codes(variables, arrays) if self.with_audio else None
        hidden_BLD = self._hidden(variables, arrays, codes_BLQ, key)
        label_smoothing = settings.label_smoothing if key is not None else 0.0
        text, plain = self._text(variables, arrays, hidden_BLD, label_smoothing)
        terms = [(settings.text_weight, "text", text)]
        metrics = {"text_accuracy": jnp.sum(text.correct_BL) / totals["text"]}
        if self.with_audio:
            plain_loss, loss = jnp.sum(plain.loss_BL), jnp.sum(text.loss_BL)
            metrics["text_plain_rows"] = plain_loss / totals["text_plain_rows"]
            metrics["text_audio_rows"] = (loss - plain_loss) / totals["text_audio_rows"]
            audio = self._audio(variables, arrays, hidden_BLD, codes_BLQ, key)
            terms += [
                (weight, f"audio/{q}", sums)
                for q, (weight, sums) in enumerate(zip(self.audio_weights, audio, strict=True))
            ]
            metrics["audio_accuracy/0"] = jnp.sum(audio[0].correct_BL) / totals["audio/0"]
        loss = z_loss = jnp.zeros((), jnp.float32)
        for weight, name, sums in terms:
            metrics[name] = jnp.sum(sums.loss_BL) / totals[name]
            loss += weight * metrics[name]
            z_loss += weight * jnp.sum(sums.square_BL) / totals[name]
        if settings.z_loss:
            metrics["z_loss"] = settings.z_loss * z_loss
            loss += metrics["z_loss"]
        return loss, metrics

    def _has_audio(self, arrays: Arrays) -> jax.Array:
        """(B,): rows with at least one frame, heard or spoken."""
        return jnp.any(arrays["ids_BL"] == self.config.tokens.audio_pad, axis=1)

    def _codes(self, variables: Variables, arrays: Arrays) -> jax.Array:
        """codes_BLQ, those of the batch's mels put in their places."""
        codes_BLQ = arrays["codes_BLQ"]
        frozen = jax.lax.stop_gradient(variables)
        for chunks in arrays.get("audio", ()):
            mel_BCTM = chunks["mel_BCTM"]
            places = mel_BCTM.shape[:2]
            codes_XNQ, _ = self.tokenizer.apply(
                frozen,
                mel_BCTM.reshape(-1, *mel_BCTM.shape[2:]),
                chunks["mel_lengths_BC"].reshape(-1),
                method="encode",
            )
            codes_BCNQ = codes_XNQ.reshape(*places, *codes_XNQ.shape[1:])
            codes_BLQ = jax.vmap(_put)(
                codes_BLQ, codes_BCNQ, chunks["starts_BC"], chunks["frames_BC"]
            )
        return codes_BLQ

    def _hidden(self, variables, arrays: Arrays, codes_BLQ, key) -> jax.Array:
        """Normed hidden states (B, L, D)."""
        ids_BL, segments_BL = arrays["ids_BL"], arrays["segments_BL"]
        settings = self.settings
        kept_BL = None
        if codes_BLQ is not None and key is not None:
            if settings.codebook_dropout or settings.frame_dropout or settings.speech_dropout:
                kept_BL = _kept_codebooks(settings, len(self.codebook_sizes), key, ids_BL.shape)
            if settings.speech_dropout:
                speech_key = jax.random.fold_in(key, 2)
                first_BL = jax.random.bernoulli(speech_key, settings.speech_dropout, ids_BL.shape)
                first_BL &= arrays["audio_target_BL"]
                kept_BL = jnp.where(first_BL, jnp.minimum(kept_BL, 1), kept_BL)
        forgotten_BL = None
        if key is not None and settings.word_dropout:
            word_key = jax.random.fold_in(key, 1)
            forgotten_BL = jax.random.bernoulli(word_key, settings.word_dropout, ids_BL.shape)
            # Not what begins speech: the frames after it depend on it.
            is_word_BL = ids_BL != self.config.tokens.audiogen_start
            forgotten_BL &= arrays["text_target_BL"] & is_word_BL

        def run(model: BaichuanAudio) -> jax.Array:
            real_BL = segments_BL > 0
            if kept_BL is None:
                x_BLD = model.embed(ids_BL, codes_BLQ, real_BL)
            else:
                x_BLD = _embed_some(model, ids_BL, codes_BLQ, kept_BL, real_BL)
            if forgotten_BL is not None:
                x_BLD = jnp.where(forgotten_BL[:, :, None], 0, x_BLD)
            return model.llm(x_BLD, arrays["positions_BL"], segments_BL)[0]

        return self.model.apply(variables, method=run)

    def _text(
        self, variables, arrays: Arrays, hidden_BLD, label_smoothing: float
    ) -> tuple[CrossEntropy, CrossEntropy]:
        """Sums of the text loss over all targets, and over those in rows without audio."""
        target_BL = _next(arrays["text_target_BL"])
        plain_BL = jnp.broadcast_to(~self._has_audio(arrays)[:, None], target_BL.shape)
        values = (hidden_BLD, _next(arrays["ids_BL"]), plain_BL)
        if self.settings.gather == "batch":
            target_BL, *values = _one_row(target_BL, *values)
            target_BL, *values = front(target_BL, target_BL.shape[1], *values)

        def piece(target_BL, hidden_BLD, ids_BL, plain_BL):
            hidden_BLD = constrain(hidden_BLD, "batch", "length", None)
            logits_BLV = self.model.apply(variables, hidden_BLD, method="text_logits")
            values = cross_entropy(logits_BLV, ids_BL, label_smoothing)
            return values.sums(target_BL), values.sums(target_BL & plain_BL)

        return self._sum(piece, target_BL, *values)

    def _audio(
        self, variables, arrays: Arrays, hidden_BLD, codes_BLQ, key
    ) -> tuple[CrossEntropy, ...]:
        """Sums of each codebook's loss, the audio head run on the gathered frames alone."""
        target_BL = _next(arrays["audio_target_BL"])
        end_BL = _next(arrays["ids_BL"] == self.config.tokens.audiogen_end)
        values = (hidden_BLD, _next(codes_BLQ), end_BL)
        if self.settings.gather == "batch":
            target_BL, *values = _one_row(target_BL, *values)
        gathered = front(target_BL, self._capacity(target_BL.shape[1]), *values)

        def piece(
            depths: int, target_BN, hidden_BND, codes_BNQ, end_BN
        ) -> tuple[CrossEntropy, ...]:
            codes_BNQ = jnp.where(target_BN[:, :, None], codes_BNQ, 0)
            # Of whole rows: the audio head divides rows and positions as one.
            hidden_BND = constrain(hidden_BND, "batch", None, None)
            logits = self.model.apply(
                variables,
                hidden_BND.reshape(-1, hidden_BND.shape[-1]),
                codes_BNQ.reshape(-1, codes_BNQ.shape[-1]),
                depths,
                method="audio_logits",
            )
            values = [
                cross_entropy(logits_XV.reshape(*target_BN.shape, -1), codes_BNQ[:, :, q])
                for q, logits_XV in enumerate(logits)
            ]
            # At an end of audio the first codebook alone has something to predict.
            first, *rest = values
            return first.sums(target_BN), *(value.sums(target_BN & ~end_BN) for value in rest)

        all_depths = functools.partial(piece, len(self.codebook_sizes))
        stride = self.settings.full_head_every
        if stride == 1 or key is None:
            return self._sum(all_depths, *gathered)
        (first,) = self._sum(functools.partial(piece, 1), *gathered)
        begin = jax.random.randint(jax.random.fold_in(key, 2), (), 0, stride)
        _, *rest = self._sum(all_depths, *(_every(array, stride, begin) for array in gathered))
        return first, *(jax.tree.map(lambda x: stride * x, sums) for sums in rest)

    def _sum(self, piece, mask_BL, *arrays):
        settings = self.settings
        return sum_over_chunks(
            piece,
            settings.chunk,
            mask_BL,
            *arrays,
            recompute=settings.recompute,
            skip=settings.gather == "batch",
        )


class TextLMStage(LMStage):
    """The language model alone, on text: what the demo pretrains its nano model with."""

    name = "text_lm"

    def __init__(self, config: BaichuanAudioConfig, settings: LMSettings, **options: Any):
        super().__init__(config.only("llm"), settings, **options)


def _next(array_BL: jax.Array) -> jax.Array:
    """Each position's successor, zeros after the last: what position i predicts, at i."""
    last = jnp.zeros_like(array_BL[:, :1])
    return jnp.concatenate([array_BL[:, 1:], last], axis=1)


def _one_row(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """(B, L, ...) to (1, B L, ...)."""
    return tuple(array.reshape(1, -1, *array.shape[2:]) for array in arrays)


def _every(array_BN: jax.Array, stride: int, begin: jax.Array) -> jax.Array:
    """Every `stride`-th position of (B, N, ...) from `begin` < stride on; zeros past N."""
    count = -(-array_BN.shape[1] // stride)
    fill = [(0, 0)] * array_BN.ndim
    fill[1] = (0, count * stride - array_BN.shape[1])
    array = jnp.pad(array_BN, fill).reshape(-1, count, stride, *array_BN.shape[2:])
    return jax.lax.dynamic_index_in_dim(array, begin, axis=2, keepdims=False)


def _put(codes_LQ, codes_CNQ, starts_C, frames_C) -> jax.Array:
    """A row's codes with each chunk's written from its start on."""
    place_N = jnp.arange(codes_CNQ.shape[1])
    at_CN = starts_C[:, None] + place_N[None]
    at_CN = jnp.where(place_N[None] < frames_C[:, None], at_CN, len(codes_LQ))
    return codes_LQ.at[at_CN].set(codes_CNQ, mode="drop")


def _kept_codebooks(settings: LMSettings, depth: int, key, shape) -> jax.Array:
    """How many codebooks of an input frame are shown, (B, L)."""
    some, number, none = jax.random.split(key, 3)
    kept_BL = jnp.full(shape, depth)
    if settings.codebook_dropout and depth > 1:
        fewer_BL = jax.random.randint(number, shape, 1, depth)
        kept_BL = jnp.where(
            jax.random.bernoulli(some, settings.codebook_dropout, shape), fewer_BL, kept_BL
        )
    return jnp.where(jax.random.bernoulli(none, settings.frame_dropout, shape), 0, kept_BL)


def _embed_some(model: BaichuanAudio, ids_BL, codes_BLQ, kept_BL, real_BL) -> jax.Array:
    """`BaichuanAudio.embed` with the first `kept_BL` codebooks of each frame."""
    text_BLD = model.embed(ids_BL, None, real_BL)
    is_audio_BL = real_BL & (ids_BL == model.config.tokens.audio_pad)
    codes_BLQ = jnp.where(is_audio_BL[:, :, None], codes_BLQ, 0)
    audio_BLD = sum(
        jnp.where((q < kept_BL)[:, :, None], model.audio_embed.code(q, codes_BLQ[:, :, q]), 0)
        for q in range(codes_BLQ.shape[-1])
    )
    return jnp.where(is_audio_BL[:, :, None], audio_BLD, text_BLD)


def _checked_chunks(audio: tuple, frames_BL: np.ndarray, pooling: int) -> tuple[dict, ...]:
    """The chunks as dicts, once they fill each audio position exactly once."""
    filled_BL = np.zeros(frames_BL.shape, np.int32)
    for chunks in audio:
        due_BC = bridge_length(encoder_length(chunks.mel_lengths_BC), pooling)
        wrong_BC = due_BC != chunks.frames_BC
        if wrong_BC.any():
            row, place = np.argwhere(wrong_BC)[0]
            raise StageError(
                f"row {row}, chunk {place}: {chunks.mel_lengths_BC[row, place]} mel frames give "
                f"{due_BC[row, place]} frames of codes, the batch says "
                f"{chunks.frames_BC[row, place]}"
            )
        for row, place in np.argwhere(chunks.frames_BC > 0):
            start = chunks.starts_BC[row, place]
            filled_BL[row, start : start + chunks.frames_BC[row, place]] += 1
    wrong_BL = filled_BL != frames_BL
    if wrong_BL.any():
        row, place = np.argwhere(wrong_BL)[0]
        raise StageError(
            f"row {row}, position {place}: {filled_BL[row, place]} mels give its codes, expected "
            f"{int(frames_BL[row, place])}: set stage.audio to 'codes' if the data stores them"
        )
    names = ("mel_BCTM", "mel_lengths_BC", "starts_BC", "frames_BC")
    return tuple({name: getattr(chunks, name) for name in names} for chunks in audio)
