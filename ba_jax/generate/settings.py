"""How requests are done: the `generate` section of a config."""

from __future__ import annotations

import dataclasses
import shlex

from ba_jax.data.record import LANGUAGES
from ba_jax.sampling.alternate import FIRST_TEXT, Alternation
from ba_jax.sampling.logits import GREEDY, Sampling
from ba_jax.sampling.synthesize import SynthesisSettings

ANSWERS = ("spoken", "written")


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """How a stream goes.

    Attributes:
      chunk: steps of the language model between two looks at what came.
      blocks, norm_frames: see `SynthesisSettings`; of synthesis in pieces.
      player: command that is given the speech as it comes, raw mono samples of 16 bits on its
        standard input ("{rate}" stands for Hz): "aplay -q -t raw -f S16_LE -r {rate}". "": none.
    """

    chunk: int = 4
    blocks: tuple[int, ...] = (16, 48)
    norm_frames: int = 4
    player: str = ""

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"chunk {self.chunk}: expected at least 1")
        try:
            shlex.split(self.player)
        except ValueError as error:
            raise ValueError(f"player {self.player!r}: {error}") from None


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
    """What serves all requests of a run.

    Attributes:
      tokenizer: file or folder of the text tokenizer; "embedded": the embedded corpus's.
      language: of requests that name none.
      system: prompt of chats that have none; "": none.
      answers: of chat, "spoken" or "written".
      tts_words_per_turn: texts are read in pieces of so many words (Mandarin: characters), each said before
        the next is read (`Generator.in_turns`), for models trained so; 0: all at once.
      transcript: how ids of transcripts and translations are chosen.
      text: how ids of answers are chosen, until the first speech; after that as `alternation` says.
      audio: how codes are chosen.
      alternation: how the text and speech of spoken answers alternate.
      rows: requests side by side.
      lengths: what prompts are padded to; of chats, a longer one is read in parts.
      max_text, max_frames: the most ids and frames of speech of a turn.
      feedback_codebooks: of the frames that it says, the model reads the first so many; 0: all.
      capacity: positions of a request, all turns together.
      encode_rows, encode_seconds: of recordings, as in `ba_jax.sampling.encode.Encoder`.
      synthesis: codes to waves.
      stream: with --stream.
      seed: of everything that is drawn.
    """

    tokenizer: str
    language: str = "en"
    system: str = ""
    answers: str = "spoken"
    tts_words_per_turn: int = 0
    transcript: Sampling = GREEDY
    text: Sampling = FIRST_TEXT
    audio: Sampling = GREEDY
    alternation: Alternation = Alternation()
    rows: int = 8
    lengths: tuple[int, ...] = (64, 128, 256, 512)
    max_text: int = 256
    max_frames: int = 500
    feedback_codebooks: int = 0
    capacity: int = 2048
    encode_rows: int = 8
    encode_seconds: tuple[float, ...] = (5.0, 15.0, 30.0)
    synthesis: SynthesisSettings = SynthesisSettings(frames=(64, 128, 500))
    stream: StreamSettings = StreamSettings()
    seed: int = 0

    def __post_init__(self):
        if self.answers not in ANSWERS:
            raise ValueError(f"answers {self.answers!r}, expected one of {ANSWERS}")
        if self.language not in LANGUAGES:
            raise ValueError(f"language {self.language!r}, expected one of {LANGUAGES}")
        if self.seed < 0 or self.tts_words_per_turn < 0:
            raise ValueError(
                f"seed {self.seed}, tts_words_per_turn {self.tts_words_per_turn}: expected at least 0 of both"
            )
        if self.alternation.segment > self.synthesis.frames[-1]:
            raise ValueError(
                f"alternation.segment {self.alternation.segment}, synthesis.frames "
                f"{self.synthesis.frames}: expected room for a segment"
            )
