"""Containers shared by data and models, and the legend of shape suffixes.

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
      text: text of a text segment; None for audio.
      audio: encoded file (FLAC, Ogg Opus) of an audio segment without codes.
      codes_NQ: codes of a tokenized audio segment, int.
      seconds, frames: length of an audio segment without codes, and the number of frames of codes
        that it will have.
      loss: the model is trained to produce this segment.
      spoken: an audio segment that the model speaks (`<audiogen_start>`) rather than hears
        (`<audio_start>`).
      role: "system", "user" or "assistant" if a turn of a dialogue begins here, else "".
      wants_speech: the assistant's turn that begins here is to be spoken.
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
        """Whether it is audio, encoded or as codes."""
        return self.text is None


@dataclasses.dataclass(frozen=True)
class Example:
    """An ordered list of segments to train on.

    Attributes:
      id: unique within its source.
      task: name of its task, see `ba_jax.data.tasks.TASKS`.
      segments: segments in reading order.
      language: ISO 639-1 code ("en", "zh") of the speech or text.
      speaker: name of the speaker, "" if there is none or it is unknown.
      source: name of the dataset.
    """

    id: str
    task: str
    segments: tuple[Segment, ...]
    language: str
    speaker: str = ""
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Takes the place of a result for an item that could not be used.

    Attributes:
      reason: error message.
    """

    reason: str
