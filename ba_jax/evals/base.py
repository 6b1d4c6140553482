"""What evaluations share: data, prompts, generation, synthesis, and the judge.

The bench holds the model and makes each of its parts when first needed: one generator, one encoder
and one synthesizer serve all evaluations, so that each shape compiles once. What it cannot do for
one item is a `Failure` in that item's place; the others are not touched.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import AudioError, read_audio, write_audio
from ba_jax.data.examples import ExampleMaker, NotForTask, stable_hash
from ba_jax.data.features import decode
from ba_jax.data.record import Part, Record, RecordError, RecordSource
from ba_jax.data.tasks import TaskError
from ba_jax.evals.benchmarks.folders import Benchmarks
from ba_jax.evals.judges.answers import VerdictJudge, VerdictSettings
from ba_jax.evals.judges.recogniser import Judge, JudgeSettings
from ba_jax.evals.suite import EvalError, Item, Line
from ba_jax.sampling.likelihood import Likelihood, Scored
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Generated
from ba_jax.sampling.settings import SpeechModelSettings
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.sampling.synthesize import SynthesisSettings, Wave
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.types import Example, Failure

RATE = 16000
"""Hz of the waves that the audio encoder reads."""
_LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSettings(SpeechModelSettings):
    """The `eval` section of a config.

    Attributes:
      dataset: folder, or "embedded".
      split: of the dataset.
      sources: sources (`Record.source`) to evaluate on; () takes all.
      limit: most records of each kind and language; 0: all.
      transcribe_first: the model writes a transcript of what it hears before its answer
        (`ExampleMaker.transcribe_first`); likelihoods of endings are then those below the
        transcript that it writes.
      judge: settings of the recogniser.
      save_every: number of items between two writes of lines.
      benchmarks: folders of benchmarks that are no datasets of records.
      verdict: settings of the judge of open answers.
    """

    dataset: str
    split: str
    sources: tuple[str, ...]
    limit: int = 0
    transcribe_first: bool = False
    judge: JudgeSettings = JudgeSettings()
    save_every: int = 64
    benchmarks: Benchmarks = Benchmarks()
    verdict: VerdictSettings = VerdictSettings()

    def __post_init__(self):
        super().__post_init__()
        if self.limit < 0 or self.save_every < 1:
            raise ValueError(
                f"limit {self.limit}, save_every {self.save_every}: expected at least 0 and 1"
            )


Progress = Callable[[str, int, int], None]
"""(what is being done, how much of it, of how much)."""


class Bench:
    """A model to evaluate, its data, and the judges.

    Args:
      model: the speech model; components that an evaluation does not use may be missing.
      settings: see `EvalSettings`.
      out: folder for audio.
      judge: the recogniser.
      progress: called with what is being done, how much of it is done, and of how much.
      writes: whether recordings are saved; False on hosts that repeat the work of one that does.
    """

    def __init__(
        self,
        model: SpeechModel,
        settings: EvalSettings,
        out: pathlib.Path,
        judge: Judge,
        progress: Progress = lambda what, done, of: None,
        writes: bool = True,
    ):
        self._writes = writes
        self.model, self.settings = model, settings
        self.out, self.judge, self.progress = pathlib.Path(out), judge, progress
        self.damaged: dict[int, str] = {}
        self._codes: dict[tuple[bytes, float], np.ndarray | Failure] = {}
        self._total = self._before = 0

    def begin(self, total: int) -> None:
        """Begin a stage of `total` items; progress counts up to that."""
        self._total, self._before = total, 0

    def advance(self, count: int) -> None:
        """Advance the progress counter by `count`."""
        self._before += count

    @functools.cached_property
    def verdicts(self) -> VerdictJudge:
        """The judge of open answers; what it said is kept under the bench's folder.

        Raises:
          VerdictError: a judge that is not set up.
        """
        return VerdictJudge(self.settings.verdict, self.out / "verdicts")

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
            try:
                record = source[i]
            except RecordError as error:
                self.damaged[i] = str(error)
                continue
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
    def statements(self) -> list[Record]:
        """Utterances on their own."""
        return [record for record in self.records if record.kind == "speech"]

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
    def questions(self) -> list[Record]:
        """The questions of `dialogues`, as utterances on their own."""
        return [
            dataclasses.replace(
                record,
                id=f"{record.id}-question",
                kind="speech",
                parts=(dataclasses.replace(record.parts[0], role=""),),
            )
            for record in self.dialogues
        ]

    def recording(self, part: Part, name: str) -> str:
        """Writes a part's recording as it is heard; the file's path, "" if it cannot be read."""
        path = _path("reference", name)
        if not (self.out / path).is_file():
            try:
                wave_S, rate = read_audio(part.audio)
            except AudioError:
                return ""
            return self.save("reference", name, Wave(wave_S, rate))
        return path.as_posix()

    def load(self, path: str) -> Wave | Failure | None:
        """A wave that was saved; None for "", which stands for no speech."""
        if not path:
            return None
        try:
            return Wave(*read_audio(self.out / path))
        except AudioError as error:
            return Failure(str(error))

    # From records to what the model makes of them

    def codes(self, parts: Sequence[Part]) -> list[np.ndarray | Failure]:
        """Codes (N >= 1, Q) of spoken parts, encoded where they are not stored.

        Each recording is encoded once. One that is damaged, or too short for a frame, fails.
        """
        missing = [
            (part.audio, part.seconds)
            for part in parts
            if part.codes_NQ is None and (part.audio, part.seconds) not in self._codes
        ]
        waves = {}
        for key in dict.fromkeys(missing):
            try:
                # As in training, so that the frames are those of `lengths.code_length`.
                waves[key] = decode(*key, (RATE,))[0]
            except AudioError as error:
                self._codes[key] = Failure(f"recording: {error}")
        if waves:
            made = self.model.encoder(list(waves.values()), self._encoding(list(waves.values())))
            for key, own_NQ in zip(waves, made, strict=True):
                short = Failure(f"recording of {len(waves[key]) / RATE:.3f} s: no frame of codes")
                self._codes[key] = own_NQ if len(own_NQ) else short
        return [
            self._codes[part.audio, part.seconds] if part.codes_NQ is None else part.codes_NQ
            for part in parts
        ]

    def segments(self, parts: Sequence[Part]) -> list[Any]:
        """`codes`, of which one that is longer than `synthesis.frames` allows fails too."""
        return [_too_long(own, self.settings.synthesis) or own for own in self.codes(parts)]

    def prompts(self, records: Sequence[Record], task: str, **options) -> list[Prompt | Failure]:
        """The prompt of each record's example of a task; `options` are `ExampleMaker`'s.

        A record that the task cannot use, or whose recording cannot be encoded, fails.
        """
        maker = ExampleMaker(task, **options)
        codebooks = len(self.model.codebook_sizes)
        filled = [_with_stand_ins(record, codebooks) for record in records]
        failed: dict[int, Failure] = {}
        # What lies in a prompt is encoded, what the model is to say is not.
        heard: list[tuple[int, int]] = []
        for number, record in enumerate(filled):
            try:
                inside = _heard(maker(record))
            except (NotForTask, TaskError) as error:
                failed[number] = Failure(f"task {task}: {error}")
                continue
            for place, part in enumerate(records[number].parts):
                stands_in = record.parts[place].codes_NQ
                if part.codes_NQ is None and any(stands_in is own for own in inside):
                    heard.append((number, place))
        codes = self.codes([records[number].parts[place] for number, place in heard])
        parts = [list(record.parts) for record in filled]
        for (number, place), own in zip(heard, codes, strict=True):
            if isinstance(own, Failure):
                failed[number] = own
            else:
                parts[number][place] = dataclasses.replace(parts[number][place], codes_NQ=own)
        made: list[Prompt | Failure] = []
        for number, record in enumerate(filled):
            if number in failed:
                made.append(failed[number])
                continue
            try:
                example = maker(dataclasses.replace(record, parts=tuple(parts[number])))
                made.append(self.model.prompt(example))
            except ValueError as error:  # of tasks, sequences, codes and prompts
                made.append(Failure(f"task {task}: {error}"))
        return made

    def prompts_in_turns(self, records: Sequence[Record]) -> list[list[Prompt] | Failure]:
        """Prompts of each record's first text, `tts_words_per_turn` words each."""
        prompts: list[list[Prompt] | Failure] = []
        for record in records:
            text, names = record.parts[0].text, {"id": record.id, "language": record.language}
            try:
                prompts.append(self.model.prompts_in_turns(text, **names))
            except ValueError as error:  # of tasks and sequences
                prompts.append(Failure(f"task tts: {error}"))
        return prompts

    def generate(
        self,
        prompts: Sequence[Prompt | list[Prompt] | Failure],
        what: str,
        numbers: Sequence[int] | None = None,
    ) -> list[Generated | Failure]:
        """What the model makes of prompts; one that is too long for the generator fails.

        Args:
          prompts: some of which may have failed; all of texts in turns, or none.
          what: is being done, for the progress.
          numbers: of the items, which decide what is drawn for them; default their places.
        """
        numbers = range(len(prompts)) if numbers is None else numbers
        longest = self.settings.generation.lengths[-1]
        found: list[Any] = list(prompts)
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, Failure):
                continue
            for one in prompt if isinstance(prompt, list) else [prompt]:
                if not 1 <= len(one) <= longest:
                    found[i] = Failure(
                        f"a prompt of {len(one)} positions, expected at most {longest} "
                        "(generation.lengths)"
                    )
        fitting = [i for i, one in enumerate(found) if not isinstance(one, Failure)]
        if not fitting:
            return found
        tell = functools.partial(self._tell, what, len(fitting))
        seeds = [self._seed(numbers[i]) for i in fitting]
        made = self.model.generate([prompts[i] for i in fitting], seeds=seeds, progress=tell)
        for i, one in zip(fitting, made, strict=True):
            found[i] = one
        return found

    def score(self, scored: Sequence[Scored], what: str) -> list[Likelihood]:
        """How likely the model finds given answers."""
        return self.model.scorer(scored, functools.partial(self._tell, what, len(scored)))

    def grade(self, inputs: Sequence[Line], what: str) -> list[Line]:
        """What the judge of open answers says, see `ba_jax.evals.judges.answers`."""
        return self.verdicts(inputs, functools.partial(self._tell, what, len(inputs)))

    def ask(self, items: Sequence[Item], task: str, what: str, **options) -> list[Line | Failure]:
        """What the model makes of items, as `generated` writes it down."""
        prompts = self.prompts([item.record for item in items], task, **options)
        return self._answers(items, prompts, what)

    def say(self, items: Sequence[Item], what: str) -> list[Line | Failure]:
        """The same of what the items' texts are in speech."""
        if not self.settings.tts_words_per_turn:
            return self.ask(items, "tts", what)
        return self._answers(items, self.prompts_in_turns([item.record for item in items]), what)

    def _answers(self, items: Sequence[Item], prompts, what: str) -> list[Line | Failure]:
        made = self.generate(prompts, what, [item.number for item in items])
        return [one if isinstance(one, Failure) else self.generated(one) for one in made]

    def generated(self, one: Generated) -> Line:
        """A generation as JSON: `text`, `ids`, `codes` of frames, and whether it is `complete`."""
        return {
            "text": self.text_of(one),
            "ids": one.ids,
            "codes": one.codes_NQ.tolist(),
            "complete": bool(one.complete),
        }

    def text_of(self, generated: Generated | Failure) -> str:
        """The text that was written."""
        return "" if isinstance(generated, Failure) else self.model.text_of(generated)

    def speech_of(
        self, codes: Sequence[np.ndarray], numbers: Sequence[int] | None = None
    ) -> list[Wave | Failure | None]:
        """Waves of segments of codes (N, Q); None where there are no frames.

        Args:
          codes: one that is longer than `synthesis.frames` allows fails.
          numbers: as in `generate`.
        """
        numbers = range(len(codes)) if numbers is None else numbers
        found: list[Wave | Failure | None] = [
            _too_long(own, self.settings.synthesis) for own in codes
        ]
        spoken = [i for i, own in enumerate(codes) if len(own) and found[i] is None]
        seeds = [self._seed(numbers[i]) for i in spoken]
        waves = self.model.synthesizer.waves([codes[i] for i in spoken], seeds) if spoken else []
        for i, wave in zip(spoken, waves, strict=True):
            found[i] = wave
        return found

    def hear(
        self, waves: Sequence[Wave | Failure | None], languages: Sequence[str], what: str
    ) -> list[str | Failure]:
        """What the judge hears; "" where there is no speech."""
        given = [None if isinstance(wave, Failure) else wave for wave in waves]
        tell = functools.partial(self._tell, what, len(waves))
        try:
            heard = list(self.judge.hear(given, languages, tell))
        except (SpeechToolError, OSError) as error:
            heard = [Failure(f"judge: {error}")] * len(waves)
        if len(heard) != len(waves):
            wrong = f"judge: {len(heard)} answers to {len(waves)} recordings"
            heard = [Failure(wrong)] * len(waves)
        found: list[str | Failure] = []
        for wave, said in zip(waves, heard, strict=True):
            if not isinstance(said, str | Failure):
                said = Failure(f"judge: answered {said!r:.80}, expected a text")
            found.append(wave if isinstance(wave, Failure) else said)
        return found

    def save(self, suite: str, name: str, wave: Wave | None) -> str:
        """Writes a wave, returns its path under the bench's folder; "" for none."""
        if wave is None:
            return ""
        path = _path(suite, name)
        if self._writes:
            (self.out / path).parent.mkdir(parents=True, exist_ok=True)
            write_audio(self.out / path, wave.wave_S, wave.rate)
        return path.as_posix()

    def _encoding(self, waves: Sequence[np.ndarray]) -> Callable[[int], None]:
        """The encoder counts pieces, of which a long recording has several."""
        longest = int(max(self.settings.encode_seconds) * RATE)
        pieces = sum(-(-len(wave_S) // longest) for wave_S in waves)
        return lambda done: self._tell("encoding", len(waves), done * len(waves) // pieces)

    def _seed(self, number: int) -> int:
        return self.settings.seed * 1_000_003 + number

    def _tell(self, what: str, of: int, done: int) -> None:
        self.progress(what, self._before + done, self._total or of)


def _too_long(codes_NQ: np.ndarray | Failure, settings: SynthesisSettings) -> Failure | None:
    longest = max(settings.frames)
    if isinstance(codes_NQ, Failure) or len(codes_NQ) <= longest:
        return None
    return Failure(
        f"{len(codes_NQ)} frames of speech, expected at most {longest} (synthesis.frames)"
    )


def _path(suite: str, name: str) -> pathlib.Path:
    """Of a recording; names are ids, which may be anything."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    if plain != name or not name or name.startswith(".") or len(name) > _LONGEST_NAME:
        plain = f"{plain.strip('.')[:_LONGEST_NAME]}-{stable_hash(name):08x}"
    return pathlib.Path("audio") / suite / f"{plain}.wav"


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
