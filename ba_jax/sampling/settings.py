"""Settings of generation and of a speech model, for the commands that generate and evaluate."""

from __future__ import annotations

import dataclasses

from ba_jax.config import LocalPath
from ba_jax.sampling.alternate import Alternation
from ba_jax.sampling.logits import GREEDY, Sampling
from ba_jax.sampling.synthesize import SynthesisSettings


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Sampling of text and codes, and the array sizes of a `Generator`.

    Attributes:
      text, audio: sampling of text ids and of codes.
      rows: batch size.
      lengths: lengths that prompts are padded to.
      max_text, max_frames: most ids and frames of a turn.
      capacity: cache slots of a row; None: enough for the longest prompt and one turn.
        Conversations of several turns need more.
      feedback_codebooks: number of codebooks of a spoken frame that the model reads back; 0: all.
        Models trained with `LMSettings.speech_dropout` read the first one only.
    """

    text: Sampling = GREEDY
    audio: Sampling = GREEDY
    rows: int = 32
    lengths: tuple[int, ...] = (64, 128, 256)
    max_text: int = 64
    max_frames: int = 128
    capacity: int | None = None
    feedback_codebooks: int = 0

    def __post_init__(self):
        sizes = (self.rows, *self.lengths, self.max_text, self.max_frames)
        if not self.lengths or min(sizes) < 1:
            raise ValueError(
                f"rows {self.rows}, lengths {self.lengths}, max_text {self.max_text}, max_frames "
                f"{self.max_frames}: expected at least 1 of each"
            )
        if self.capacity is not None and self.capacity <= max(self.lengths):
            raise ValueError(
                f"capacity {self.capacity}, expected over {max(self.lengths)}, the longest prompt"
            )

    def cache_slots(self, alternation: Alternation | None = None) -> int:
        """Cache slots of a row: `capacity` or, if that is None, its default."""
        if self.capacity is not None:
            return self.capacity
        # Two delimiters surround each segment of speech; the end of text closes the turn.
        segments = 1 if alternation is None else min(alternation.segments, self.max_text + 1)
        return max(self.lengths) + self.max_text + self.max_frames + 2 * segments + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechModelSettings:
    """Settings of a `SpeechModel`.

    Attributes:
      tokenizer: file or folder of the text tokenizer; "embedded" is that of the embedded corpus.
      generation, synthesis: sampling of text and codes; codes to waves.
      encode_rows, encode_seconds: batch size of the audio encoder, and the lengths that recordings
        are padded to.
      tts_words_per_turn: words (Mandarin: characters) of a text to be spoken that the model reads
        before it speaks them (`Generator.in_turns`); 0: the whole text at once.
      seed: seed of all random draws.
    """

    tokenizer: LocalPath
    generation: GenerationSettings = GenerationSettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    encode_rows: int = 16
    encode_seconds: tuple[float, ...] = (5.0, 15.0, 30.0)
    tts_words_per_turn: int = 0
    seed: int = 0

    def __post_init__(self):
        if self.seed < 0 or self.tts_words_per_turn < 0:
            raise ValueError(
                f"seed {self.seed}, tts_words_per_turn {self.tts_words_per_turn}: expected at least"
                " 0 of both"
            )
