"""Settings of the language-model stages, and packed rows checked and converted to arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ba_jax.audio.lengths import bridge_length, encoder_length
from ba_jax.config import expected
from ba_jax.data.packed import PackedBatch
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.stages.base import StageError, check_range
from ba_jax.vocab import check_codes, check_token_ids

AUDIO = ("codes", "features")


@dataclasses.dataclass(frozen=True)
class LMSettings:
    """Settings of the language-model stages.

    Attributes:
      text_weight: weight of the text loss, a mean over text targets.
      audio_weights: weight of each codebook's loss, a mean over its targets; () for 1 / Q each, so
        that a frame weighs as much as a token of text.
      z_loss: weight of the squared log-partition relative to the loss it goes with (PaLM: 1e-4).
      label_smoothing: label smoothing of the text.
      audio: "codes": the batch holds codes; "features": it holds mels, and the frozen encoder and
        quantiser run inside the step, in float32.
      chunk: targets of a device whose logits and gradients are computed at a time, which is what
        they take of its memory; 0: all positions of the device, targets or not. See
        `losses.targets`.
      full_head_every: every N-th audio target, from a random offset, is predicted with all its
        codebooks, the others with the first alone, an eighth of the audio head's work (after
        Sesame's CSM, 2025: "compute amortization"). `audio/q` for q >= 1 are then unbiased
        estimates. 1: all. Training only.
      codebook_dropout: probability that an input frame shows only its first 1 to Q - 1 codebooks.
        Targets, and what the audio head is fed, are unchanged. Training only.
      frame_dropout: probability that an input frame's embedding is 0. Training only.
      word_dropout: probability that the embedding of a text target is 0 where it is read again
        (Bowman et al. 2016, arXiv 1511.06349): the next word has to be heard, not remembered.
        Training only.
      speech_dropout: probability that an input frame that was an audio target shows its first
        codebook alone. All codebooks together identify the recording: a model that knows it
        continues the recording, whatever the text says. Training only.
    """

    text_weight: float = 1.0
    audio_weights: tuple[float, ...] = ()
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    audio: str = "codes"
    chunk: int = 1024
    full_head_every: int = 1
    codebook_dropout: float = 0.0
    frame_dropout: float = 0.0
    word_dropout: float = 0.0
    speech_dropout: float = 0.0

    def __post_init__(self):
        if self.audio not in AUDIO:
            raise ValueError(f"audio = {expected(self.audio, AUDIO)}")
        check_range(self, "full_head_every", low=1)
        check_range(self, "text_weight", "z_loss", "chunk")
        check_range(self, "speech_dropout", high=1)
        for name in ("label_smoothing", "codebook_dropout", "frame_dropout", "word_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, expected at least 0, below 1")
        if min(self.audio_weights, default=0) < 0:
            raise ValueError(f"audio_weights = {self.audio_weights}, expected at least 0")


def make_arrays(
    batch: PackedBatch, stage: str, config: BaichuanAudioConfig, settings: LMSettings
) -> dict[str, Any]:
    """Check a `PackedBatch` and convert it to the arrays of a step.

    Args:
      batch: a host's rows.
      stage: its name, for messages.
      config: the stage's model; without an audio head only text is allowed.
      settings: settings of the stage.

    Raises:
      StageError: no targets; a target that nothing predicts; audio for a model without audio; mels
        where codes are expected or codes where mels are; mels that do not fill the audio positions.
      TokenIdError, CodeError: an id or a code out of range.
    """
    rows = batch.rows
    real_BL = rows.segments_BL > 0
    ids_BL = check_token_ids(np.where(real_BL, rows.ids_BL, 0), config.llm.vocab_size, "ids")
    frames_BL = real_BL & (ids_BL == config.tokens.audio_pad)
    _check_targets(batch, stage, real_BL)
    arrays = {
        "ids_BL": ids_BL,
        "positions_BL": rows.positions_BL,
        "segments_BL": rows.segments_BL,
        "text_target_BL": rows.text_target_BL,
    }
    if config.audio_head is None:
        targets = int(rows.audio_target_BL.sum())
        if frames_BL.any() or targets:
            raise StageError(
                f"stage {stage}: the batch has {int(frames_BL.sum())} frames of audio and "
                f"{targets} audio targets, but this model has no audio head: expected text"
            )
        return arrays
    arrays["codes_BLQ"] = _check_codes(rows, config, ids_BL, frames_BL)
    arrays["audio_target_BL"] = rows.audio_target_BL
    if settings.audio == "features":
        arrays["audio"] = _check_chunks(batch.audio, frames_BL, config.vq_bridge.pooling)
    elif any(chunks.frames_BC.any() for chunks in batch.audio):
        raise StageError(
            f"stage {stage}: the batch holds mels, expected codes: set data.audio to 'codes', or "
            "stage.audio to 'features'"
        )
    return arrays


def _check_targets(batch: PackedBatch, stage: str, real_BL: np.ndarray) -> None:
    rows = batch.rows
    target_BL = rows.text_target_BL | rows.audio_target_BL
    if not target_BL.any():
        raise StageError(
            f"stage {stage}: no loss positions: none of the {int(real_BL.sum())} tokens in "
            f"{len(real_BL)} rows is a target of text or audio ({int(batch.skipped_B.sum())} "
            "examples were skipped)"
        )
    before_BL = np.pad(rows.segments_BL, ((0, 0), (1, 0)))[:, :-1]
    bad_BL = target_BL & (~real_BL | (before_BL != rows.segments_BL))
    if bad_BL.any():
        row, place = np.argwhere(bad_BL)[0]
        raise StageError(
            f"row {row}, position {place} is a target, but it is padding or its example's first "
            "position: nothing predicts it"
        )


def _check_codes(
    rows: Any, config: BaichuanAudioConfig, ids_BL: np.ndarray, frames_BL: np.ndarray
) -> np.ndarray:
    """Codes at the frames and the end class at the ends, 0 elsewhere."""
    sizes, tokens = config.audio_head.codebook_sizes, config.tokens
    if rows.codes_BLQ.shape[-1] != len(sizes):
        raise StageError(
            f"the batch has {rows.codes_BLQ.shape[-1]} codebooks, expected {len(sizes)}"
        )
    ends_BL = rows.audio_target_BL & ~frames_BL
    wrong_BL = ends_BL & ((ids_BL != tokens.audiogen_end) | (rows.codes_BLQ[:, :, 0] != sizes[0]))
    if wrong_BL.any():
        row, place = np.argwhere(wrong_BL)[0]
        raise StageError(
            f"row {row}, position {place} is an audio target with id {ids_BL[row, place]} and "
            f"code {rows.codes_BLQ[row, place, 0]}: expected a frame (id {tokens.audio_pad}) "
            f"or an end of audio (id {tokens.audiogen_end}, code {sizes[0]})"
        )
    codes_BLQ = check_codes(np.where(frames_BL[:, :, None], rows.codes_BLQ, 0), sizes)
    return np.where(ends_BL[:, :, None], np.asarray(sizes, np.int32), codes_BLQ)


def _check_chunks(audio: tuple, frames_BL: np.ndarray, pooling: int) -> tuple[dict, ...]:
    """The chunks of mels as dicts; together they fill each audio position exactly once."""
    filled_BL = np.zeros(frames_BL.shape, np.int32)
    for chunks in audio:
        expected_BC = bridge_length(encoder_length(chunks.mel_lengths_BC), pooling)
        wrong_BC = expected_BC != chunks.frames_BC
        if wrong_BC.any():
            row, place = np.argwhere(wrong_BC)[0]
            raise StageError(
                f"row {row}, chunk {place}: {chunks.mel_lengths_BC[row, place]} mel frames give "
                f"{expected_BC[row, place]} frames of codes, the batch says "
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
