"""What evaluations share: data, prompts, generation, synthesis, judge, and how results look.

An evaluation is a function `run(bench) -> Outcome`. The bench holds the model and makes each of its
parts when first needed: one generator, one encoder and one synthesizer serve all evaluations, so
that each shape compiles once.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ba_jax.audio.io import read_audio, write_audio
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.features import decode
from ba_jax.data.record import Part, Record, RecordSource, dataset_directory
from ba_jax.data.text_tokenizer import TextTokenizer, load_text_tokenizer
from ba_jax.evals.judge import Judge, JudgeSettings
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.sampling.encode import Encoder
from ba_jax.sampling.logits import Sampling
from ba_jax.sampling.loop import Generated, Generator
from ba_jax.sampling.prompt import Prompt, prompt_of
from ba_jax.sampling.synthesize import SynthesisSettings, Synthesizer, Wave
from ba_jax.types import Example

RATE = 16000
"""Hz of the waves that the audio encoder reads."""


class EvalError(ValueError):
    """An evaluation without items, or without what it needs."""


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """The generator's, see `ba_jax.sampling.loop.Generator`.

    Attributes:
      text, audio: how ids and codes are chosen.
      rows: batch size.
      lengths: what prompts are padded to.
      max_text, max_frames: of an answer.
    """

    text: Sampling = Sampling()
    audio: Sampling = Sampling()
    rows: int = 32
    lengths: tuple[int, ...] = (64, 128)
    max_text: int = 32
    max_frames: int = 64


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What is evaluated on, and how.

    Attributes:
      dataset: folder, or "embedded".
      split: of the dataset.
      sources: records of these sources alone (`Record.source`); () takes all.
      tokenizer: file or folder of the text tokenizer; "embedded": the corpus's.
      limit: at most so many records of each kind and language; 0: all.
      generation, synthesis, judge: see there.
      encode_rows, encode_seconds: batch size and padded lengths of the encoder.
      seed: of everything that is drawn.
    """

    dataset: str
    split: str
    sources: tuple[str, ...]
    tokenizer: str
    limit: int = 0
    generation: GenerationSettings = GenerationSettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    judge: JudgeSettings = JudgeSettings()
    encode_rows: int = 16
    encode_seconds: tuple[float, ...] = (4.0,)
    seed: int = 0

    def __post_init__(self):
        if self.limit < 0 or self.seed < 0:
            raise ValueError(f"limit {self.limit}, seed {self.seed}: expected at least 0")


@dataclasses.dataclass
class Outcome:
    """What an evaluation gives.

    Attributes:
      figures: name -> number, or a text that says how a number was made.
      items: one a generation: id, language, reference, hypothesis, errors, units, correct, audio
        (what -> path of the file, under the bench's folder), and what else there is to know.
    """

    figures: dict[str, Any]
    items: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A recording with its text; `record` is a record of kind "speech" that holds it alone."""

    record: Record

    @property
    def part(self) -> Part:
        return self.record.parts[0]

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def language(self) -> str:
        return self.record.language


Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it, of how much)."""


class Bench:
    """A model to evaluate, its data, and the tools.

    Args:
      config, variables: the model; what an evaluation does not use may be missing.
      settings: see `EvalSettings`.
      out: folder for audio.
      judge: the recogniser.
      progress: told what goes on.
    """

    def __init__(
        self,
        config: BaichuanAudioConfig,
        variables: Mapping[str, Any],
        settings: EvalSettings,
        out: pathlib.Path,
        judge: Judge,
        progress: Progress = lambda what, done, of: None,
    ):
        self.config, self.variables, self.settings = config, variables, settings
        self.out, self.judge, self.progress = pathlib.Path(out), judge, progress
        self._codes: dict[bytes, np.ndarray] = {}

    # The tools

    @functools.cached_property
    def tokenizer(self) -> TextTokenizer:
        """Of the model's text.

        Raises:
          TokenizerError: one that does not fit the model.
        """
        given = self.settings.tokenizer
        path = dataset_directory(given)
        tokenizer = load_text_tokenizer(path / "tokenizer.model" if given == "embedded" else path)
        tokenizer.check_against(self.config.tokens, self.config.llm.vocab_size)
        return tokenizer

    @functools.cached_property
    def generator(self) -> Generator:
        """Text and frames; text alone for a model whose variables hold no more."""
        tokenizer, generation = self.tokenizer, self.settings.generation
        parts = ("llm", "audio_embed", "audio_head")
        config = self.config.only(*(part for part in parts if part in self.variables["params"]))
        return Generator.of(
            config,
            self.variables,
            tokenizer,
            text=generation.text,
            audio=generation.audio,
            rows=generation.rows,
            lengths=generation.lengths,
            max_text=generation.max_text,
            max_frames=generation.max_frames,
        )

    @functools.cached_property
    def synthesizer(self) -> Synthesizer:
        """Codes to waves; Griffin-Lim runs in the judge's processes."""
        return Synthesizer(self.config, self.variables, self.settings.synthesis, run=self.judge.map)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Waves to codes."""
        return Encoder(
            self.config,
            self.variables,
            rows=self.settings.encode_rows,
            seconds=self.settings.encode_seconds,
        )

    # The data

    @functools.cached_property
    def records(self) -> list[Record]:
        """Those of the split that are evaluated on, in order.

        Raises:
          EvalError: none.
          RecordError: no such dataset or split.
        """
        s = self.settings
        source = RecordSource(s.dataset, s.split)
        found, counts = [], {}
        for i in range(len(source)):
            record = source[i]
            if s.sources and record.source not in s.sources:
                continue
            group = (record.kind, record.language)
            counts[group] = counts.get(group, 0) + 1
            if not s.limit or counts[group] <= s.limit:
                found.append(record)
        if not found:
            raise EvalError(f"{s.dataset}, split {s.split}: no record of {s.sources or 'any'}")
        return found

    @functools.cached_property
    def statements(self) -> list[Utterance]:
        """Utterances on their own."""
        return [Utterance(record) for record in self.records if record.kind == "speech"]

    @functools.cached_property
    def dialogues(self) -> list[Record]:
        """One spoken question and its answer each."""
        return [
            record
            for record in self.records
            if record.kind == "dialogue"
            and [part.role for part in record.parts] == ["user", "assistant"]
            and record.parts[0].is_spoken
        ]

    @functools.cached_property
    def questions(self) -> list[Utterance]:
        """The questions of `dialogues`, as utterances on their own."""
        return [
            Utterance(
                dataclasses.replace(
                    record,
                    id=f"{record.id}-question",
                    kind="speech",
                    parts=(dataclasses.replace(record.parts[0], role=""),),
                )
            )
            for record in self.dialogues
        ]

    def wave(self, part: Part) -> Wave:
        """A part's recording."""
        wave_S, rate = read_audio(part.audio)
        return Wave(wave_S, rate)

    # From records to what the model makes of them

    def codes(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Codes (N, Q) of spoken parts, encoded where they are not stored; N is 0 for under 60 ms.

        Each recording is encoded once.
        """
        missing = {
            part.audio: part
            for part in parts
            if part.codes_NQ is None and part.audio not in self._codes
        }
        if missing:
            # As in training, so that the frames are those of `features.code_frames`.
            waves = [decode(p.audio, p.seconds, (RATE,))[0] for p in missing.values()]
            tell = functools.partial(self._tell, "encoding", len(waves))
            self._codes.update(zip(missing, self.encoder(waves, tell), strict=True))
        return [
            self._codes[part.audio] if part.codes_NQ is None else part.codes_NQ for part in parts
        ]

    def prompts(self, records: Sequence[Record], task: str, **options) -> list[Prompt]:
        """The prompt of each record's example of a task; `options` are `ExampleMaker`'s.

        Raises:
          NotForTask: a record that the task cannot use.
          TaskError: audio too short for a frame of codes.
        """
        maker = ExampleMaker(task, **options)
        sizes = self.config.audio_embed.codebook_sizes
        filled = [_with_stand_ins(record, len(sizes)) for record in records]
        # What lies in a prompt is encoded, what the model is to say is not.
        heard: list[tuple[int, int]] = []
        for number, record in enumerate(filled):
            inside = _heard(maker(record))
            for place, part in enumerate(records[number].parts):
                stands_in = record.parts[place].codes_NQ
                if part.codes_NQ is None and any(stands_in is own for own in inside):
                    heard.append((number, place))
        codes = self.codes([records[number].parts[place] for number, place in heard])
        parts = [list(record.parts) for record in filled]
        for (number, place), own in zip(heard, codes, strict=True):
            parts[number][place] = dataclasses.replace(parts[number][place], codes_NQ=own)
        made = []
        for record, own in zip(filled, parts, strict=True):
            example = maker(dataclasses.replace(record, parts=tuple(own)))
            made.append(prompt_of(example, self.tokenizer, sizes))
        return made

    def generate(self, prompts: Sequence[Prompt], what: str) -> list[Generated | None]:
        """What the model makes of prompts; None for one that is too long for the generator."""
        longest = self.settings.generation.lengths[-1]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) <= longest]
        tell = functools.partial(self._tell, what, len(fitting))
        seeds = [self.settings.seed * 1_000_003 + i for i in fitting]
        made = self.generator([prompts[i] for i in fitting], seeds=seeds, progress=tell)
        found: list[Generated | None] = [None] * len(prompts)
        for i, one in zip(fitting, made, strict=True):
            found[i] = one
        return found

    def text_of(self, generated: Generated | None) -> str:
        """The text that was written."""
        return "" if generated is None else self.tokenizer.decode(generated.ids).strip()

    def speech_of(self, codes: Sequence[np.ndarray | None]) -> list[Wave | None]:
        """Waves of segments of codes; None where there are no frames."""
        spoken = [i for i, own in enumerate(codes) if own is not None and len(own)]
        seeds = [self.settings.seed * 1_000_003 + i for i in spoken]
        waves = self.synthesizer.waves([codes[i] for i in spoken], seeds) if spoken else []
        found: list[Wave | None] = [None] * len(codes)
        for i, wave in zip(spoken, waves, strict=True):
            found[i] = wave
        return found

    def hear(self, waves: Sequence[Wave | None], languages: Sequence[str], what: str) -> list[str]:
        """What the judge hears."""
        return self.judge.hear(waves, languages, functools.partial(self._tell, what, len(waves)))

    def save(self, suite: str, name: str, wave: Wave | None) -> str:
        """Writes a wave, returns its path under the bench's folder; "" for none."""
        if wave is None:
            return ""
        path = pathlib.Path("audio") / suite / f"{name}.wav"
        (self.out / path).parent.mkdir(parents=True, exist_ok=True)
        write_audio(self.out / path, wave.wave_S, wave.rate)
        return path.as_posix()

    def _tell(self, what: str, of: int, done: int) -> None:
        self.progress(what, done, of)


def _with_stand_ins(record: Record, codebooks: int) -> Record:
    """A record whose recordings have one frame of codes, for what the model is to say itself.

    They lie past a prompt's end. Each is an array of its own, to be known again. Stored codes stay.
    """
    parts = tuple(
        dataclasses.replace(part, codes_NQ=np.zeros((1, codebooks), np.int32))
        if part.audio and part.codes_NQ is None
        else part
        for part in record.parts
    )
    return dataclasses.replace(record, parts=parts)


def _heard(example: Example) -> list[np.ndarray]:
    """The codes in the example's prompt: before the first thing with loss."""
    prompt = itertools.takewhile(lambda segment: not segment.loss, example.segments)
    return [segment.codes_NQ for segment in prompt if segment.is_audio]
