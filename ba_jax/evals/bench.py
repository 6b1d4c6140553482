"""The bench that suites run on: a speech model, the data, recordings and judges.

An item that the model or a judge cannot use is a `Failure` in its place; the others are unaffected.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from ba_jax.audio import AudioError
from ba_jax.audio.lengths import SAMPLE_RATE
from ba_jax.data.examples import ExampleMaker, NotForTask
from ba_jax.data.features import decode
from ba_jax.data.record import Part, Record, RecordError
from ba_jax.evals.items import EvalItem, Items, Line, Results, replace_usable
from ba_jax.evals.judges.answers import AnswerJudge
from ba_jax.evals.judges.recogniser import SpeechJudge
from ba_jax.evals.recordings import Recordings
from ba_jax.evals.records import EvalRecords
from ba_jax.evals.settings import EvalSettings
from ba_jax.sampling.likelihood import Likelihood, Scored
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Generated
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.sampling.synthesize import Wave
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.types import Failure

Progress = Callable[[str, int, int], None]
"""Called with a task, the number of items done, and the total."""
AnyPrompt = Prompt | list[Prompt] | Failure
"""A prompt, or those of a text spoken in turns."""


class Bench:
    """A model to evaluate, its data, and the judges.

    Args:
      model: the speech model; components that no suite uses may be missing.
      out: folder for recordings and the answer judge's replies.
      judge: the recogniser.
      progress: called as work is done.
      writes: recordings are saved; False on hosts that repeat the work of one that saves them.
    """

    def __init__(
        self,
        model: SpeechModel,
        settings: EvalSettings,
        out: pathlib.Path,
        judge: SpeechJudge,
        progress: Progress = lambda task, done, total: None,
        writes: bool = True,
    ):
        self.model, self.settings, self.judge, self.progress = model, settings, judge, progress
        self.out = pathlib.Path(out)
        self.records, self.recordings = EvalRecords(settings), Recordings(self.out, writes)
        self._codes: dict[tuple[bytes, float], np.ndarray | Failure] = {}
        self._total = self._done = 0

    @functools.cached_property
    def answer_judge(self) -> AnswerJudge:
        """The judge of written answers; raises EvalError if it is not set up."""
        return AnswerJudge(self.settings.verdict, self.out / "verdicts")

    # Progress

    def begin(self, total: int) -> None:
        """Begin a phase of `total` items; progress counts up to that."""
        self._total, self._done = total, 0

    def advance(self, count: int) -> None:
        """Advance the progress counter by `count`."""
        self._done += count

    def _counter(self, task: str, total: int) -> Callable[[int], None]:
        return lambda done: self.progress(task, self._done + done, self._total or total)

    # Encoding

    def encode(self, parts: Sequence[Part]) -> list[np.ndarray | Failure]:
        """Return codes (N >= 1, Q) of spoken parts, encoded unless they are stored.

        Each recording is encoded once. A recording that is damaged or too short for a frame fails.
        """
        waves = {}
        for part in parts:
            key = part.audio, part.seconds
            if part.codes_NQ is not None or key in self._codes or key in waves:
                continue
            try:
                # The frames are those of training, `lengths.code_length`.
                waves[key] = decode(*key, (SAMPLE_RATE,))[0]
            except AudioError as error:
                self._codes[key] = Failure(f"recording: {error}")
        if waves:
            # The encoder cuts a long recording into pieces, and counts these.
            longest = int(max(self.settings.encode_seconds) * SAMPLE_RATE)
            pieces = sum(-(-len(wave_S) // longest) for wave_S in waves.values())
            count = self._counter("encoding", len(waves))
            encoded = self.model.encoder(
                list(waves.values()), lambda done: count(done * len(waves) // pieces)
            )
            for (key, wave_S), codes_NQ in zip(waves.items(), encoded, strict=True):
                seconds = len(wave_S) / SAMPLE_RATE
                too_short = Failure(f"recording of {seconds:.3f} s: no frame of codes")
                self._codes[key] = codes_NQ if len(codes_NQ) else too_short
        return [
            self._codes[part.audio, part.seconds] if part.codes_NQ is None else part.codes_NQ
            for part in parts
        ]

    def encode_segments(self, parts: Sequence[Part]) -> list[np.ndarray | Failure]:
        """Return `encode`'s codes; those longer than `synthesis.frames` allows fail."""
        return [self._check_length(codes_NQ) for codes_NQ in self.encode(parts)]

    def _check_length(self, codes_NQ: np.ndarray | Failure) -> np.ndarray | Failure:
        longest = max(self.settings.synthesis.frames)
        if isinstance(codes_NQ, Failure) or len(codes_NQ) <= longest:
            return codes_NQ
        return Failure(
            f"{len(codes_NQ)} frames of speech, expected at most {longest} (synthesis.frames)"
        )

    # Prompts

    def make_prompts(
        self, records: Sequence[Record], task: str, **options
    ) -> list[Prompt | Failure]:
        """Make prompts: the beginning of a task's training example, up to the model's answer.

        A record that the task cannot use, or whose recording cannot be encoded, fails. Recordings
        in the prompt are encoded; those of the answer are not.
        """
        maker, model = ExampleMaker(task, **options), self.model
        drafts = [_add_placeholder_codes(r, len(model.codebook_sizes)) for r in records]
        failed: dict[int, Failure] = {}
        in_prompt: list[tuple[int, int]] = []  # (record, part)
        for number, (record, draft) in enumerate(zip(records, drafts, strict=True)):
            try:
                segments = maker(draft).segments
            except (NotForTask, RecordError) as error:
                failed[number] = Failure(f"task {task}: {error}")
                continue
            prompt = list(itertools.takewhile(lambda segment: not segment.loss, segments))
            for place, (part, draft_part) in enumerate(zip(record.parts, draft.parts, strict=True)):
                is_used = any(draft_part.codes_NQ is s.codes_NQ for s in prompt if s.is_audio)
                if part.codes_NQ is None and is_used:
                    in_prompt.append((number, place))
        encoded = self.encode([records[number].parts[place] for number, place in in_prompt])
        parts = [list(draft.parts) for draft in drafts]
        for (number, place), codes_NQ in zip(in_prompt, encoded, strict=True):
            if isinstance(codes_NQ, Failure):
                failed[number] = codes_NQ
            else:
                parts[number][place] = dataclasses.replace(parts[number][place], codes_NQ=codes_NQ)
        prompts: list[Prompt | Failure] = []
        for number, draft in enumerate(drafts):
            if number in failed:
                prompts.append(failed[number])
                continue
            try:
                example = maker(dataclasses.replace(draft, parts=tuple(parts[number])))
                prompts.append(model.prompt(example))
            except ValueError as error:  # of tasks, sequences, codes and prompts
                prompts.append(Failure(f"task {task}: {error}"))
        return prompts

    # Generation

    def ask(self, items: Items, task: str, description: str, **options) -> Results:
        """Generate answers: lines with `text`, `ids`, `codes` and whether each is `complete`.

        Args:
          items: items with their records.
          task, options: arguments of `ExampleMaker`.
          description: name of the work, for the progress.
        """
        prompts = self.make_prompts([item.record for item in items], task, **options)
        return self._generate_lines(items, prompts, description)

    def say(self, items: Items, description: str) -> Results:
        """Generate speech of the items' first texts, all at once or in turns; lines as of `ask`."""
        if not self.settings.tts_words_per_turn:
            return self.ask(items, "tts", description)
        prompts: list[AnyPrompt] = []
        for record in (item.record for item in items):
            names = {"id": record.id, "language": record.language}
            try:
                prompts.append(self.model.prompts_in_turns(record.parts[0].text, **names))
            except ValueError as error:  # of tasks and sequences
                prompts.append(Failure(f"task tts: {error}"))
        return self._generate_lines(items, prompts, description)

    def _generate_lines(
        self, items: Sequence[EvalItem], prompts: Sequence[AnyPrompt], description: str
    ) -> Results:
        outputs = self.generate(prompts, description, [item.number for item in items])
        return [
            output
            if isinstance(output, Failure)
            else {
                "text": self.model.text_of(output),
                "ids": output.ids,
                "codes": output.codes_NQ.tolist(),
                "complete": bool(output.complete),
            }
            for output in outputs
        ]

    def generate(
        self, prompts: Sequence[AnyPrompt], description: str, numbers: Sequence[int]
    ) -> list[Generated | Failure]:
        """Generate from prompts; one that is too long fails.

        Args:
          prompts: prompts or failures.
          description: name of the work, for the progress.
          numbers: numbers of the items, which seed their random draws.
        """
        checked = [self._check_prompt(prompt) for prompt in prompts]

        def generate(usable: list[int]) -> list[Generated]:
            return self.model.generate(
                [prompts[i] for i in usable],
                seeds=[self._seed(numbers[i]) for i in usable],
                progress=self._counter(description, len(usable)),
            )

        return replace_usable(checked, generate)

    def _check_prompt(self, prompt: AnyPrompt) -> AnyPrompt:
        longest = self.settings.generation.lengths[-1]
        if isinstance(prompt, Failure):
            return prompt
        for piece in prompt if isinstance(prompt, list) else [prompt]:
            if not 1 <= len(piece) <= longest:
                return Failure(
                    f"a prompt of {len(piece)} positions, expected at most {longest} "
                    "(generation.lengths)"
                )
        return prompt

    def log_likelihoods(self, answers: Sequence[Scored], description: str) -> list[Likelihood]:
        """Return the log-likelihoods of answers."""
        return self.model.scorer(answers, self._counter(description, len(answers)))

    def synthesize(
        self, codes: Sequence[np.ndarray], numbers: Sequence[int]
    ) -> list[Wave | Failure | None]:
        """Turn segments of codes (N, Q) into waves; None for a segment without frames.

        Args:
          codes: segments; those longer than `synthesis.frames` allows fail.
          numbers: numbers of the items, which seed their random draws.
        """
        checked = [self._check_length(codes_NQ) for codes_NQ in codes]
        waves = [codes_NQ if isinstance(codes_NQ, Failure) else None for codes_NQ in checked]
        spoken = [i for i, wave in enumerate(waves) if wave is None and len(codes[i])]
        if spoken:
            seeds = [self._seed(numbers[i]) for i in spoken]
            outputs = self.model.synthesizer.waves([codes[i] for i in spoken], seeds)
            for i, wave in zip(spoken, outputs, strict=True):
                waves[i] = wave
        return waves

    def _seed(self, number: int) -> int:
        return self.settings.seed * 1_000_003 + number

    # Judges

    def hear(
        self, waves: Sequence[Wave | Failure | None], languages: Sequence[str], description: str
    ) -> list[str | Failure]:
        """Recognise the words of waves; "" for None. Errors of the judge become failures."""
        inputs = [None if isinstance(wave, Failure) else wave for wave in waves]
        try:
            texts = self.judge.hear(inputs, languages, self._counter(description, len(waves)))
        except (SpeechToolError, OSError) as error:
            texts = [Failure(f"judge: {error}")] * len(waves)
        if len(texts) != len(waves):
            texts = [Failure(f"judge: {len(texts)} answers to {len(waves)} recordings")] * len(
                waves
            )
        results: list[str | Failure] = []
        for wave, text in zip(waves, texts, strict=True):
            if not isinstance(text, str | Failure):
                text = Failure(f"judge: answered {text!r:.80}, expected a text")
            results.append(wave if isinstance(wave, Failure) else text)
        return results

    def judge_answers(self, questions: Sequence[Line], description: str) -> list[Line]:
        """Judge written answers, see `ba_jax.evals.judges.answers`."""
        return self.answer_judge(questions, self._counter(description, len(questions)))


def _add_placeholder_codes(record: Record, codebooks: int) -> Record:
    """Give each recording without codes a frame of its own, told apart by identity.

    Placeholders that stay lie past the prompt's end, in the answer.
    """
    parts = []
    for part in record.parts:
        if part.audio and part.codes_NQ is None:
            part = dataclasses.replace(part, codes_NQ=np.zeros((1, codebooks), np.int32))
        parts.append(part)
    return dataclasses.replace(record, parts=tuple(parts))
