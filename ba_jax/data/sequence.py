"""Examples as token sequences: ids, codes, and the targets of each head.

A target is marked at its own position, one after the position that predicts it: with
`text_target_L[i]` the language model predicts `ids_L[i]` from position i - 1, with
`audio_target_L[i]` the audio head predicts `codes_LQ[i]` from position i - 1. So a frame's codes
are predicted from `<audiogen_start>` or from the frame before. The frame after the last one, at
`<audiogen_end>`, is the end of audio: codebook 0 has its extra class there, which stops generation.
The extra classes of the other codebooks fill the row and are no targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ba_jax.data.record import RecordError
from ba_jax.types import Example, Segment
from ba_jax.vocab import AudioTokens, check_codes


class TokenizerLike(Protocol):
    """Text tokenizer as far as sequences need one, see `ba_jax.data.text_tokenizer`."""

    audio_tokens: AudioTokens
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special token."""
        ...

    def token_id(self, name: str) -> int:
        """Id of a special token; here of the roles "system", "user", "assistant"."""
        ...


@dataclasses.dataclass(frozen=True)
class AudioSpan:
    """Positions that wait for the codes of audio that is not tokenized yet.

    `segment` is the segment's index in the example, `start` the position of its first frame.
    """

    segment: int
    start: int
    frames: int


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """One example as tokens.

    Attributes:
      ids_L: int32.
      codes_LQ: int32; codes at `audio_pad`, the end class at an `<audiogen_end>`, 0 elsewhere and
        in `spans`.
      text_target_L: the text head learns to predict this token.
      audio_target_L: the audio head learns to predict these codes; at an end of audio only
        codebook 0.
      spans: positions without codes yet, in order.
    """

    ids_L: np.ndarray
    codes_LQ: np.ndarray
    text_target_L: np.ndarray
    audio_target_L: np.ndarray
    spans: tuple[AudioSpan, ...] = ()

    def __len__(self) -> int:
        return len(self.ids_L)


class _SequenceBuilder:
    """Collects the runs of positions of one sequence."""

    def __init__(self, label: str, tokenizer: TokenizerLike, codebook_sizes: Sequence[int]):
        self.label, self.tokenizer, self.sizes = label, tokenizer, tuple(codebook_sizes)
        self.length = 0
        self.ids: list[np.ndarray] = []
        self.text: list[bool] = []
        self.audio: list[bool] = []
        self.codes: list[tuple[int, np.ndarray]] = []
        self.spans: list[AudioSpan] = []

    def run(self, ids, text: bool = False, audio: bool = False) -> None:
        self.ids.append(np.asarray(ids, np.int32))
        self.text.append(text)
        self.audio.append(audio)
        self.length += len(ids)

    def begin_turn(self, segment: Segment) -> None:
        tokens = self.tokenizer.audio_tokens
        if segment.wants_speech:
            self.run([tokens.audiotext_start])
        self.run([self.tokenizer.token_id(segment.role)])

    def words(self, segment: Segment) -> None:
        ids = self.tokenizer.encode(segment.text)
        if not ids:
            raise RecordError(f"{self.label}: text {segment.text!r} encodes to nothing")
        self.run(ids, text=segment.loss)

    def frames(self, number: int, segment: Segment, announced: bool) -> None:
        """`announced`: the model itself has to begin speaking here."""
        tokens = self.tokenizer.audio_tokens
        if segment.spoken:
            self.run([tokens.audiogen_start], text=announced and segment.loss)
        else:
            self.run([tokens.audio_start])
        if segment.codes_NQ is not None:
            codes_NQ = check_codes(segment.codes_NQ, self.sizes, name=f"{self.label}: codes")
            self.codes.append((self.length, codes_NQ))
            frames = len(codes_NQ)
        elif segment.frames > 0:
            frames = segment.frames
            self.spans.append(AudioSpan(number, self.length, frames))
        else:
            raise RecordError(
                f"{self.label}: an audio segment with neither codes nor a number of frames"
            )
        self.run(np.full(frames, tokens.audio_pad), audio=segment.loss)
        if segment.spoken:
            self.codes.append((self.length, np.asarray([self.sizes], np.int32)))
            self.run([tokens.audiogen_end], audio=segment.loss)
        else:
            self.run([tokens.audio_end])

    def finish(self) -> TokenSequence:
        lengths = [len(ids) for ids in self.ids]
        codes_LQ = np.zeros((self.length, len(self.sizes)), np.int32)
        for start, codes_NQ in self.codes:
            codes_LQ[start : start + len(codes_NQ)] = codes_NQ
        return TokenSequence(
            np.concatenate(self.ids),
            codes_LQ,
            np.repeat(np.asarray(self.text, bool), lengths),
            np.repeat(np.asarray(self.audio, bool), lengths),
            tuple(self.spans),
        )


def to_sequence(
    example: Example, tokenizer: TokenizerLike, codebook_sizes: Sequence[int]
) -> TokenSequence:
    """Lay an example out as tokens.

    Heard audio is `<audio_start> pad*n <audio_end>`, spoken audio `<audiogen_start> pad*n
    <audiogen_end>`. The model learns to begin speaking (`<audiogen_start>`) after text that it
    wrote and at the beginning of its turn, not after text that it reads. The end-of-text token
    follows each assistant turn, and the end of any other example whose last segment has loss; it
    has loss if the segment before it has.
    """
    label = f"{example.source}:{example.id}"
    if not example.segments:
        raise RecordError(f"{label}: no segments")
    build = _SequenceBuilder(label, tokenizer, codebook_sizes)
    before: Segment | None = None
    turn = ""
    for number, segment in enumerate(example.segments):
        if segment.role:
            if turn == "assistant":
                build.run([tokenizer.eos_id], text=before.loss)
            build.begin_turn(segment)
            turn = segment.role
        if segment.is_audio:
            begins_turn = segment.role == "assistant"
            wrote = before is not None and before.loss and not before.is_audio
            build.frames(number, segment, announced=begins_turn or (wrote and not segment.role))
        else:
            build.words(segment)
        before = segment
    if before.loss or turn == "assistant":
        build.run([tokenizer.eos_id], text=before.loss)
    return build.finish()
