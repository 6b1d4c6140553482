"""Examples as token sequences: ids, codes, and what each head has to predict where.

Targets are marked where they stand, not where they are predicted: `text_target_L[i]` says that the
language model predicts `ids_L[i]` from position i - 1, `audio_target_L[i]` that the audio head
predicts `codes_LQ[i]` from position i - 1. So a frame's codes are predicted from
`<audiogen_start>` or from the frame before, and the frame after the last one, at
`<audiogen_end>`, is the end of audio: codebook 0 has its extra class there, and that is how
generation stops. The other codebooks' extra class fills the row and is no target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ba_jax.types import Example, Segment
from ba_jax.vocab import AudioTokens, check_codes


class TokenizerLike(Protocol):
    """What is needed of a text tokenizer, see `ba_jax.data.text_tokenizer`."""

    audio_tokens: AudioTokens
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a special token."""
        ...

    def token_id(self, name: str) -> int:
        """Id of a special token; here those of the roles, "system", "user", "assistant"."""
        ...


class SequenceError(ValueError):
    """An example that cannot be laid out as tokens."""


@dataclasses.dataclass(frozen=True)
class AudioSpan:
    """Positions that wait for the codes of audio that is still a waveform.

    Attributes:
      segment: index of the segment in the example.
      start: its first frame's position.
      frames: how many there are.
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
      audio_target_L: the audio head learns to predict these codes; at an end of audio codebook 0
        alone.
      spans: where codes are still missing, in order.
    """

    ids_L: np.ndarray
    codes_LQ: np.ndarray
    text_target_L: np.ndarray
    audio_target_L: np.ndarray
    spans: tuple[AudioSpan, ...] = ()

    def __len__(self) -> int:
        return len(self.ids_L)


class _Builder:
    """Collects runs of positions."""

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
            raise SequenceError(f"{self.label}: text {segment.text!r} encodes to nothing")
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
            raise SequenceError(
                f"{self.label}: an audio segment with neither codes nor a number of frames"
            )
        self.run(np.full(frames, tokens.audio_pad), audio=segment.loss)
        if segment.spoken:
            self.codes.append((self.length, np.asarray([self.sizes], np.int32)))
            self.run([tokens.audiogen_end], audio=segment.loss)
        else:
            self.run([tokens.audio_end])

    def done(self) -> TokenSequence:
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
    """Lays an example out as tokens.

    Heard audio is `<audio_start> pad*n <audio_end>`, spoken audio `<audiogen_start> pad*n
    <audiogen_end>`. The model learns to begin speaking (`<audiogen_start>`) where it wrote the text
    before, or begins its own turn; not where it was given the text. Each assistant turn, and the
    end of any other example whose last segment has loss, is followed by the end-of-text token, with
    loss if what it ends has loss.

    Raises:
      SequenceError: no segments, an audio segment with neither codes nor a number of frames, or a
        text that encodes to nothing.
      CodeError: a code outside its codebook.
    """
    label = f"{example.source}:{example.id}"
    if not example.segments:
        raise SequenceError(f"{label}: no segments")
    build = _Builder(label, tokenizer, codebook_sizes)
    before: Segment | None = None
    turn = ""
    for number, segment in enumerate(example.segments):
        if segment.role:
            if turn == "assistant":
                build.run([tokenizer.eos_id], text=before.loss)
            build.begin_turn(segment)
            turn = segment.role
        if segment.is_audio:
            own_turn = segment.role == "assistant"
            wrote = before is not None and before.loss and not before.is_audio
            build.frames(number, segment, announced=own_turn or (wrote and not segment.role))
        else:
            build.words(segment)
        before = segment
    if before.loss or turn == "assistant":
        build.run([tokenizer.eos_id], text=before.loss)
    return build.done()
