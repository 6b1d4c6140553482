"""The bench that suites run on: a speech model, the data, recordings and judges.

An item that the model or a judge cannot use is a `Failure` in its place; the others are unaffected.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ba_jax.audio import AudioError
from ba_jax.audio.lengths import SAMPLE_RATE
from ba_jax.data.features import decode
from ba_jax.data.record import Part, Record
from ba_jax.evals.items import EvalItem, Line, replace_usable
from ba_jax.evals.judges.answers import AnswerJudge
from ba_jax.evals.judges.recogniser import SpeechJudge
from ba_jax.evals.prompts import make_prompts, make_prompts_in_turns
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


class Bench:
    """A model to evaluate, its data, and the judges.

    Args:
      model: the speech model; components that no suite uses may be missing.
      settings: see `EvalSettings`.
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
        """The judge of written answers.

        Raises:
          EvalError: a judge that is not set up.
        """
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
        missing = [
            (part.audio, part.seconds)
            for part in parts
            if part.codes_NQ is None and (part.audio, part.seconds) not in self._codes
        ]
        waves = {}
        for key in dict.fromkeys(missing):
            try:
                # The frames are those of training, `lengths.code_length`.
                waves[key] = decode(*key, (SAMPLE_RATE,))[0]
            except AudioError as error:
                self._codes[key] = Failure(f"recording: {error}")
        if waves:
            encoded = self.model.encoder(
                list(waves.values()), self._encoding_counter(waves.values())
            )
            for (key, wave_S), codes_NQ in zip(waves.items(), encoded, strict=True):
                seconds = len(wave_S) / SAMPLE_RATE
                too_short = Failure(f"recording of {seconds:.3f} s: no frame of codes")
                self._codes[key] = codes_NQ if len(codes_NQ) else too_short
        return [
            self._codes[part.audio, part.seconds] if part.codes_NQ is None else part.codes_NQ
            for part in parts
        ]

    def _encoding_counter(self, waves) -> Callable[[int], None]:
        """Convert the encoder's counts: it cuts a long recording into pieces."""
        longest = int(max(self.settings.encode_seconds) * SAMPLE_RATE)
        pieces = sum(-(-len(wave_S) // longest) for wave_S in waves)
        count = self._counter("encoding", len(waves))
        return lambda done: count(done * len(waves) // pieces)

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

    # Generation

    def ask(
        self, items: Sequence[EvalItem], task: str, description: str, **options
    ) -> list[Line | Failure]:
        """Generate answers: lines with `text`, `ids`, `codes` and whether each is `complete`.

        Args:
          items: items with their records.
          task, options: arguments of `ExampleMaker`.
          description: name of the work, for the progress.
        """
        prompts = self.make_prompts([item.record for item in items], task, **options)
        return self._generate_lines(items, prompts, description)

    def say(self, items: Sequence[EvalItem], description: str) -> list[Line | Failure]:
        """Generate speech of the items' texts; lines as from `ask`."""
        if not self.settings.tts_words_per_turn:
            return self.ask(items, "tts", description)
        prompts = make_prompts_in_turns(self.model, [item.record for item in items])
        return self._generate_lines(items, prompts, description)

    def make_prompts(
        self, records: Sequence[Record], task: str, **options
    ) -> list[Prompt | Failure]:
        """Make the prompts of records, see `make_prompts`."""
        return make_prompts(self.model, self.encode, records, task, **options)

    def _generate_lines(
        self, items: Sequence[EvalItem], prompts: Sequence[Any], description: str
    ) -> list[Line | Failure]:
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
        self,
        prompts: Sequence[Prompt | list[Prompt] | Failure],
        description: str,
        numbers: Sequence[int],
    ) -> list[Generated | Failure]:
        """Generate from prompts; a prompt that is too long fails.

        Args:
          prompts: prompts or failures; or lists of prompts, for texts spoken in turns.
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

    def _check_prompt(
        self, prompt: Prompt | list[Prompt] | Failure
    ) -> Prompt | list[Prompt] | Failure:
        longest = self.settings.generation.lengths[-1]
        if not isinstance(prompt, Failure):
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
        waves: list[Wave | Failure | None] = [None] * len(codes)
        spoken = []
        for i, codes_NQ in enumerate(codes):
            if isinstance(failure := self._check_length(codes_NQ), Failure):
                waves[i] = failure
            elif len(codes_NQ):
                spoken.append(i)
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
        self,
        waves: Sequence[Wave | Failure | None],
        languages: Sequence[str],
        description: str,
    ) -> list[str | Failure]:
        """Recognise the words of waves; "" for None. Errors of the judge become failures."""
        inputs = [None if isinstance(wave, Failure) else wave for wave in waves]
        try:
            texts = list(self.judge.hear(inputs, languages, self._counter(description, len(waves))))
        except (SpeechToolError, OSError) as error:
            texts = [Failure(f"judge: {error}")] * len(waves)
        if len(texts) != len(waves):
            failure = Failure(f"judge: {len(texts)} answers to {len(waves)} recordings")
            texts = [failure] * len(waves)
        results: list[str | Failure] = []
        for wave, text in zip(waves, texts, strict=True):
            if isinstance(wave, Failure):
                text = wave
            elif not isinstance(text, str | Failure):
                text = Failure(f"judge: answered {text!r:.80}, expected a text")
            results.append(text)
        return results

    def judge_answers(self, questions: Sequence[Line], description: str) -> list[Line]:
        """Judge written answers, see `ba_jax.evals.judges.answers`."""
        return self.answer_judge(questions, self._counter(description, len(questions)))
