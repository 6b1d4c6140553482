"""Turns of requests: from a recording or text to a prompt, and from what was generated to a line.

Batches (`batched`) and streams (`streamed`) read the same prompts and write the same lines. A
request that cannot be done is a `Failure` in the place of its prompt, and a line with "error".
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ba_jax.audio import AudioError, read_audio
from ba_jax.audio.lengths import SAMPLE_RATE
from ba_jax.data.record import RecordError
from ba_jax.data.tasks import make_example
from ba_jax.generate.requests import Request, UserTurn
from ba_jax.generate.settings import GenerateSettings
from ba_jax.sampling.prompt import Prompt
from ba_jax.sampling.session import Generated, Session
from ba_jax.sampling.speech_model import SpeechModel
from ba_jax.types import Failure

Line = dict[str, Any]
"""A request's result as JSON."""

_EXAMPLE_TASKS = {"asr": "asr", "translate": "s2tt", "tts": "tts"}
_ANSWER = "x"
"""Stands for an answer in an example, whose prompt ends before it."""


class TaskModel:
    """A speech model at work on one task.

    Args:
      task: one of `requests.TASKS`.
      model: with the components that `GenerateSettings.components` names, built with `settings`.
      settings: as `GenerateSettings.for_task` returns them.
    """

    def __init__(self, task: str, model: SpeechModel, settings: GenerateSettings):
        self.task, self.model, self.settings = task, model, settings
        self.chats = task == "chat"
        self.speaks = settings.speaks(task)

    @property
    def in_turns(self) -> bool:
        """Whether texts are read in pieces, each spoken before the next is read."""
        return self.task == "tts" and self.settings.tts_words_per_turn > 0

    @property
    def frame_limit(self) -> int:
        """Most frames of a turn."""
        longest = self.settings.generation.max_frames
        return min(longest, self.settings.synthesis.frames[-1]) if self.task == "tts" else longest

    def seed(self, request: Request) -> int:
        """Seed of a request, independent of the other requests in the batch."""
        return zlib.crc32(f"{self.settings.seed}/{request.id}".encode("utf-8", "surrogatepass"))

    # Prompts

    def encode(self, turns: Sequence[UserTurn]) -> list[np.ndarray | Failure | None]:
        """Codes (N, Q) of the turns that are recordings; None for texts."""
        results: list[np.ndarray | Failure | None] = [None] * len(turns)
        waves = {}
        for number, turn in enumerate(turns):
            if turn.audio:
                try:
                    waves[number] = read_audio(turn.audio, sample_rate=SAMPLE_RATE)[0]
                except AudioError as error:
                    results[number] = Failure(str(error))
        if not waves:
            return results
        codes = self.model.encoder(list(waves.values()))
        for (number, wave_S), codes_NQ in zip(waves.items(), codes, strict=True):
            results[number] = codes_NQ
            if not len(codes_NQ):
                results[number] = Failure(
                    f"{turns[number].audio}: {len(wave_S)} samples at 16 kHz are too few for a "
                    "frame of codes"
                )
        return results

    def prompt(
        self, request: Request, number: int, codes_NQ: np.ndarray | Failure | None
    ) -> Prompt | list[Prompt] | Failure:
        """The prompt of a turn; its pieces where texts are spoken in turns.

        Args:
          request: the request; its system prompt comes before the first turn.
          number: number of the turn.
          codes_NQ: codes of the turn's recording, or why there are none; None for a text.
        """
        if isinstance(codes_NQ, Failure):
            return codes_NQ
        try:
            if self.in_turns:
                return self._check_pieces(
                    self.model.prompts_in_turns(
                        request.turns[0].text, id=request.id, language=request.language
                    )
                )
            prompt = self.model.prompt(self._example(request, number, codes_NQ))
        except RecordError as error:
            return Failure(str(error))
        longest = self.model.capacity if self.chats else max(self.settings.generation.lengths)
        if len(prompt) > longest:
            return Failure(f"prompt of {len(prompt)} positions, expected at most {longest}")
        return prompt

    def _example(self, request: Request, number: int, codes_NQ: np.ndarray | None):
        """A training example that begins with the turn."""
        turn = request.turns[number]
        question = turn.text if codes_NQ is None else codes_NQ
        speech = np.zeros((1, len(self.model.codebook_sizes)), np.int32)
        if not self.chats:
            name = _EXAMPLE_TASKS[self.task]
            values = (question, speech if self.task == "tts" else _ANSWER)
        else:
            name = "sft"
            turns = [
                ("user", [question]),
                ("assistant", [_ANSWER, speech] if self.speaks else [_ANSWER]),
            ]
            if request.system and number == 0:
                turns.insert(0, ("system", [request.system]))
            values = (turns,)
        return make_example(name, *values, id=request.id, language=request.language)

    def _check_pieces(self, prompts: list[Prompt]) -> list[Prompt] | Failure:
        limit = max(self.settings.generation.lengths)
        longest = max(len(prompt) for prompt in prompts)
        if longest > limit:
            return Failure(
                f"a piece of the text takes {longest} positions, expected at most {limit}"
            )
        # Each piece with at least one frame and the end of its segment.
        positions = sum(len(prompt) + 2 for prompt in prompts)
        if positions > self.model.capacity:
            return Failure(
                f"the text takes {positions} positions, expected at most {self.model.capacity}"
            )
        return prompts

    def check_room(self, session: Session, row: int, prompt: Prompt | Failure) -> Prompt | Failure:
        """The prompt, or a failure if a conversation has no room for it."""
        # The end of a turn that was cut is read first: up to two positions.
        room = session.capacity - session.used[row] - 2
        if isinstance(prompt, Failure) or len(prompt) < room:
            return prompt
        return Failure(
            f"prompt of {len(prompt)} positions, but the conversation has {max(room, 0)} left of "
            f"its capacity of {session.capacity}"
        )

    # Lines of results

    def begin_line(self, request: Request) -> Line:
        """A request's line before anything is generated, with "error" if it was refused."""
        line: Line = {"id": request.id, "task": self.task, "language": request.language}
        if request.meta is not None:
            line["meta"] = request.meta
        if self.chats:
            line["turns"] = []
        elif request.turns:
            line["input"] = request.turns[0].audio or request.turns[0].text
        if request.refusal:
            fail(line, f"{request.where}: {request.refusal}")
        return line

    def fail_turn(self, line: Line, number: int, failure: Failure) -> None:
        """Mark a request as failed at a turn."""
        fail(line, f"turn {number + 1}: {failure.reason}" if self.chats else failure.reason)

    def add_turn(self, line: Line, request: Request, number: int, generated: Generated) -> Line:
        """Add a turn to a request's line; return the mapping that its audio belongs to."""
        values: Line = {}
        if self.task != "tts":
            values["text"] = self.model.text_of(generated)
        if self.chats:
            turn = request.turns[number]
            values = {"user": turn.audio or turn.text} | values
            if self.speaks:
                values["frames"] = len(generated.codes_NQ)
        values["complete"] = generated.complete
        if not self.chats:
            line |= values
            return line
        line["turns"].append(values)
        return values

    def finish_line(self, line: Line) -> None:
        """Complete the line of a request whose turns are done."""
        if "error" in line:
            return
        if self.chats:
            line["complete"] = all(turn["complete"] for turn in line["turns"])
        elif self.task == "tts" and "audio" not in line:
            fail(line, "the model spoke no frame")


def fail(line: Line, reason: str) -> None:
    """Mark a request as failed."""
    line |= {"error": reason, "complete": False}


def segments_of(generated: Generated) -> list[np.ndarray]:
    """Codes of a turn's segments of speech, in order."""
    return [piece.codes_NQ for piece in generated.pieces if piece.is_audio]
