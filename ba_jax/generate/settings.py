"""The `generate` section of a config, and what each task needs of it."""

from __future__ import annotations

import dataclasses
import shlex

from ba_jax.config import expected
from ba_jax.data.record import LANGUAGES
from ba_jax.data.text_tokenizer import check_unicode
from ba_jax.sampling.alternate import FIRST_TEXT, Alternation
from ba_jax.sampling.logits import GREEDY, Sampling
from ba_jax.sampling.settings import GenerationSettings, SpeechModelSettings
from ba_jax.sampling.synthesize import SynthesisSettings
from ba_jax.vocab import LANGUAGE_MODEL, SPEECH_DECODER, SPEECH_ENCODER

ANSWERS = ("spoken", "written")


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """Settings of --stream.

    Attributes:
      chunk: steps of the language model between two looks at its output.
      blocks, norm_frames: settings of streaming synthesis, see `SynthesisSettings`.
      player: command that plays raw mono samples of 16 bits from its standard input, "{rate}"
        stands for Hz: "aplay -q -t raw -f S16_LE -r {rate}". "": none.
    """

    chunk: int = 4
    blocks: tuple[int, ...] = (16, 48)
    norm_frames: int = 4
    player: str = ""

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"chunk {self.chunk}: expected at least 1")
        try:
            words = shlex.split(self.player)
        except ValueError as error:
            raise ValueError(f"player {self.player!r}: {error}") from None
        if self.player and not words:
            raise ValueError(f"player {self.player!r}: expected a command")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateSettings(SpeechModelSettings):
    """Settings shared by all requests of a run.

    Attributes:
      language: language of requests that name none.
      system: system prompt of chats that have none; "": none.
      answers: answers of chats, "spoken" or "written".
      transcript: sampling of transcripts and translations. `generation.text` is that of answers,
        until the first segment of speech; from then on `alternation.later_text`.
      alternation: how text and speech of spoken answers alternate.
      stream: settings of --stream.
    """

    language: str = "en"
    system: str = ""
    answers: str = "spoken"
    transcript: Sampling = GREEDY
    generation: GenerationSettings = GenerationSettings(
        text=FIRST_TEXT,
        rows=8,
        lengths=(64, 128, 256, 512),
        max_text=256,
        max_frames=500,
        capacity=2048,
    )
    alternation: Alternation = Alternation()
    synthesis: SynthesisSettings = SynthesisSettings(frames=(64, 128, 500))
    stream: StreamSettings = StreamSettings()

    def __post_init__(self):
        super().__post_init__()
        check_unicode(self.system, "system")
        if self.answers not in ANSWERS:
            raise ValueError(f"answers {expected(self.answers, ANSWERS)}")
        if self.language not in LANGUAGES:
            raise ValueError(f"language {expected(self.language, LANGUAGES)}")
        if self.alternation.segment > self.synthesis.frames[-1]:
            raise ValueError(
                f"alternation.segment {self.alternation.segment}, synthesis.frames "
                f"{self.synthesis.frames}: expected room for a segment"
            )

    def speaks(self, task: str) -> bool:
        """Whether a task gives speech."""
        return task in ("tts", "reconstruct") or (task == "chat" and self.answers == "spoken")

    def components(self, task: str, hears: bool) -> tuple[str, ...]:
        """Components of the model that a task needs; `hears`: a request holds a recording."""
        needed = () if task == "reconstruct" else LANGUAGE_MODEL
        needed += SPEECH_ENCODER if hears else ()
        if self.speaks(task):
            flow = self.synthesis.mel == "flow"
            needed += SPEECH_DECODER if flow else ("vq_bridge", "audio_decoder")
            needed += ("vocoder",) if self.synthesis.vocoder == "vocoder" else ()
        return tuple(dict.fromkeys(needed))

    def for_task(self, task: str, stream: bool) -> GenerateSettings:
        """These settings with the task's sampling of text, and with one row for a stream."""
        generation = self.generation
        if task != "chat":
            generation = dataclasses.replace(generation, text=self.transcript)
        if stream:
            generation = dataclasses.replace(generation, rows=1)
        encode_rows = min(generation.rows, self.encode_rows)
        return dataclasses.replace(self, generation=generation, encode_rows=encode_rows)

    def alternation_of(self, task: str) -> Alternation | None:
        """The alternation of a task's output; None: text, then at most one segment of speech."""
        return self.alternation if task == "chat" and self.speaks(task) else None
