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
from collections.abc import Sequence as Ordered
from typing import Protocol

import numpy as np

from ba_jax.types import Example, Segment
from ba_jax.vocab import AudioTokens, check_codes


class Tokenizer(Protocol):
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
class Sequence:
    """One example as tokens.

    Attributes:
      ids_L: int32.
      codes_LQ: int32; codes at `audio_pad`, the end class at an `<audiogen_end>`, 0 elsewhere.
      text_target_L: the text head learns to predict this token.
      audio_target_L: the audio head learns to predict these codes; at an end of audio codebook 0
        alone.
    """

    ids_L: np.ndarray
    codes_LQ: np.ndarray
    text_target_L: np.ndarray
    audio_target_L: np.ndarray

    def __len__(self) -> int:
        return len(self.ids_L)


class _Builder:
    def __init__(self, label: str, tokenizer: Tokenizer, codebook_sizes: Ordered[int]):
        self.label, self.tokenizer, self.sizes = label, tokenizer, tuple(codebook_sizes)
        self.ids: list[int] = []
        self.codes: list[np.ndarray] = []
        self.text: list[bool] = []
        self.audio: list[bool] = []

    def token(self, token: int, text: bool = False, audio: bool = False, codes=None) -> None:
        self.ids.append(token)
        self.codes.append(np.zeros(len(self.sizes), np.int32) if codes is None else codes)
        self.text.append(text)
        self.audio.append(audio)

    def begin_turn(self, segment: Segment) -> None:
        tokens = self.tokenizer.audio_tokens
        if segment.wants_speech:
            self.token(tokens.audiotext_start)
        self.token(self.tokenizer.token_id(segment.role))

    def words(self, segment: Segment) -> None:
        ids = self.tokenizer.encode(segment.text)
        if not ids:
            raise SequenceError(f"{self.label}: text {segment.text!r} encodes to nothing")
        for token in ids:
            self.token(token, text=segment.loss)

    def frames(self, segment: Segment, announced: bool) -> None:
        """`announced`: the model itself has to begin speaking here."""
        tokens = self.tokenizer.audio_tokens
        if segment.codes_NQ is None:
            raise SequenceError(f"{self.label}: an audio segment without codes: tokenise it first")
        codes_NQ = check_codes(segment.codes_NQ, self.sizes, name=f"{self.label}: codes")
        if segment.spoken:
            self.token(tokens.audiogen_start, text=announced and segment.loss)
        else:
            self.token(tokens.audio_start)
        for codes_Q in codes_NQ:
            self.token(tokens.audio_pad, audio=segment.loss, codes=codes_Q)
        if segment.spoken:
            end = np.asarray(self.sizes, np.int32)
            self.token(tokens.audiogen_end, audio=segment.loss, codes=end)
        else:
            self.token(tokens.audio_end)


def to_sequence(example: Example, tokenizer: Tokenizer, codebook_sizes: Ordered[int]) -> Sequence:
    """Lays an example out as tokens.

    Heard audio is `<audio_start> pad*n <audio_end>`, spoken audio `<audiogen_start> pad*n
    <audiogen_end>`. The model learns to begin speaking (`<audiogen_start>`) where it wrote the text
    before, or begins its own turn; not where it was given the text. Each assistant turn, and the
    end of any other example whose last segment has loss, is followed by the end-of-text token, with
    loss.

    Raises:
      SequenceError: no segments, an audio segment that has no codes yet, or a text that encodes to
        nothing.
      CodeError: a code outside its codebook.
    """
    label = f"{example.source}:{example.id}"
    if not example.segments:
        raise SequenceError(f"{label}: no segments")
    build = _Builder(label, tokenizer, codebook_sizes)
    before: Segment | None = None
    for segment in example.segments:
        if segment.role:
            if before is not None and before.loss:
                build.token(tokenizer.eos_id, text=True)
            build.begin_turn(segment)
        if segment.is_audio:
            own_turn = segment.role == "assistant"
            wrote = before is not None and before.loss and not before.is_audio
            build.frames(segment, announced=own_turn or (wrote and not segment.role))
        else:
            build.words(segment)
        before = segment
    if before.loss:
        build.token(tokenizer.eos_id, text=True)
    return Sequence(
        np.asarray(build.ids, np.int32),
        np.stack(build.codes).astype(np.int32),
        np.asarray(build.text, bool),
        np.asarray(build.audio, bool),
    )
