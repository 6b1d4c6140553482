"""Containers that pass between data and models, and the legend of shape suffixes.

Shape suffixes, the same in every file:
  B batch            T frames of a mel or of 50 Hz features      N audio frames at 12.5 Hz
  Q codebooks (8)    L text / LLM positions                      S waveform samples
  D width            F feed-forward width                        V vocabulary
  H attention heads  K key/value heads                           C channels
  P cache capacity   M mel bins
So `mel_BTM` is a batch of mels, time before bins.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Segment:
    """A run of text or of audio inside an example.

    Attributes:
      text: of a text segment; None for audio.
      audio: an encoded audio file (FLAC, Ogg Opus) of an audio segment, if it is still to be
        tokenised.
      codes_NQ: codes of an audio segment, int, if they are known.
      seconds, frames: of an audio segment without codes, its length and how many frames of codes it
        will have once it is tokenised.
      loss: the model learns to produce this segment.
      spoken: an audio segment that the model speaks (`<audiogen_start>`) rather than hears
        (`<audio_start>`).
      role: "system", "user" or "assistant" where a turn of a dialogue begins, else "".
      wants_speech: an assistant's turn that is to be answered in speech; set where it begins.
    """

    text: str | None = None
    audio: bytes | None = None
    codes_NQ: np.ndarray | None = None
    seconds: float = 0.0
    frames: int = 0
    loss: bool = False
    spoken: bool = False
    role: str = ""
    wants_speech: bool = False

    @property
    def is_audio(self) -> bool:
        """Audio, encoded or as codes."""
        return self.text is None


@dataclasses.dataclass(frozen=True)
class Example:
    """An ordered list of segments to train on.

    Attributes:
      id: unique within its source.
      task: name of the task that made it, see `ba_jax.data.tasks.TASKS`.
      segments: in reading order.
      language: of the speech or text, an ISO 639-1 code ("en", "zh").
      speaker: who speaks, "" if nobody or unknown.
      source: the dataset it comes from.
    """

    id: str
    task: str
    segments: tuple[Segment, ...]
    language: str
    speaker: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Stands in the place of a result for an item that could not be used.

    Attributes:
      reason: error message.
    """

    reason: str
