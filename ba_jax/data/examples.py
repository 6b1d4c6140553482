"""Training examples from records.

task                kinds of records
asr                 speech with its text
s2tt                speech with its translation
tts, audio          speech (with its text)
                    (these four: or one spoken turn or part of another kind, `ExampleMaker.turn`)
aqa                 dialogue whose first question is spoken and whose answer is written
intlv, itts, iasr   interleaved (the last two: or a part cut into pieces, `ExampleMaker.pieces`)
sft                 dialogue
text                any with text
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable

import numpy as np

from ba_jax.audio.lengths import FRAME_SECONDS
from ba_jax.config import check_choices
from ba_jax.data import tasks
from ba_jax.data.record import Part, Record
from ba_jax.types import Example, Segment

ANSWERS = ("written", "spoken")
TURNS = ("", "user", "assistant", "any")
ONE_PART_TASKS = ("asr", "s2tt", "tts", "audio")
"""Tasks that use one part of a record."""
PIECE_TASKS = ("asr", "tts", "itts", "iasr")
"""Tasks of one part cut into pieces."""
SHUFFLED_TASKS = ("asr", "tts")
"""Piece tasks that join the pieces again in another order."""
TRANSCRIPT_END = "\n"
"""Ends the transcript at the beginning of an answer (`ExampleMaker.transcribe_first`)."""


class NotForTask(ValueError):  # noqa: N818 (a record that another task may use)
    """A record that a task cannot use; the message is the reason to count it under."""


def stable_hash(text: str) -> int:
    """Hash a string to 32 bits, the same in every process."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


def word_bounds(part: Part) -> tuple[list[int], list[int]]:
    """Bounds of a part's words: first letters in its text, first frames in its codes.

    The first word begins at 0; one more entry is the end of both. A part without codes or without
    times of the words of its text is NotForTask.
    """
    if part.codes_NQ is None:
        raise NotForTask("no codes")
    if not part.words:
        raise NotForTask("no word times")
    if not all(math.isfinite(word.start) for word in part.words):
        raise NotForTask("word times that are no numbers")
    text, letters, at = _text(part), [], 0
    for word in part.words:
        first = "".join(word.text.split()[:1])
        at = text.find(first, at) if first else -1
        if at < 0:
            raise NotForTask("words that are not those of the text")
        letters.append(at)
        at += len(first)
    frames = [round(word.start / FRAME_SECONDS) for word in part.words]
    return [0, *letters[1:], len(text)], [0, *frames[1:], len(part.codes_NQ)]


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Makes examples of one task from records.

    Attributes:
      task: one of `tasks.TASKS`.
      frames: the number of frames of codes that a part's recording gives; None: codes are stored,
        and a part without them is not used.
      questions, answers: in `sft`, "spoken" or "written" turns of the user and the assistant;
        spoken answers are text, then speech. In asr, aqa and s2tt, questions = "written" replaces
        the speech by its text: the part of the task that a language model can learn without ears.
        In aqa, "mixed" speaks random pieces of the question and writes the others, so that heard
        words get the meaning of read words (as in Spirit LM, arXiv 2402.05755).
      turn: the part that tasks of one part use: "" that of speech records; "user", "assistant" the
        first turn of that role in a dialogue that has what the task needs; "any" that of speech
        records or the first suitable part of dialogues and interleaved records.
      pieces: for asr, tts, itts and iasr: one part (chosen by `turn`) with codes and word times is
        cut between words into pieces of `pieces` words. 0: itts and iasr use the parts of
        interleaved records. asr and tts join the pieces again in a random order of the record, so
        that the next words can only be heard (or read), not guessed from the words before. aqa
        takes pieces with questions = "mixed" only.
      order: for asr and tts with pieces, and for mixed questions: another number gives another
        order, or another choice of spoken pieces, of every record.
      speakers: tasks that choose a turn use speech by these speakers only; () by anyone.
      transcribe_first: for aqa, and sft with spoken questions: a written answer begins with the
        question's transcript on a line of its own, so that a model which answers questions that it
        reads answers those that it hears (chain of modality: SpeechGPT, arXiv 2305.11000).
      fully_conditioned: for itts: all text is read and none written, see `tasks.itts`.
    """

    task: str
    frames: Callable[[Part, Record], int] | None = None
    questions: str = "spoken"
    answers: str = "written"
    turn: str = ""
    pieces: int = 0
    order: int = 0
    speakers: tuple[str, ...] = ()
    transcribe_first: bool = False
    fully_conditioned: bool = False

    def __post_init__(self):
        mixed = self.questions == "mixed" and self.task == "aqa"
        questions = (*ANSWERS, "mixed") if mixed else ANSWERS
        check_choices(self, task=tasks.TASKS, questions=questions, answers=ANSWERS, turn=TURNS)
        if mixed and self.pieces < 1:
            raise ValueError(f"mixed questions with pieces = {self.pieces}: expected at least 1")
        if self.pieces < 0 or (self.pieces and not mixed and self.task not in PIECE_TASKS):
            raise ValueError(
                f"task {self.task!r} with pieces = {self.pieces}: expected 0, or at least 1 with "
                f"one of {PIECE_TASKS}"
            )
        ordered = mixed or (self.task in SHUFFLED_TASKS and self.pieces)
        if self.order < 0 or (self.order and not ordered):
            raise ValueError(
                f"task {self.task!r} with pieces = {self.pieces}, order = {self.order}: expected "
                "0, or at least 1 with pieces of asr, of tts or of mixed questions"
            )
        chooses = self.task in ONE_PART_TASKS or (self.pieces and not mixed)
        if (self.turn or self.speakers) and not chooses:
            raise ValueError(
                f"task {self.task!r} with turn = {self.turn!r}, speakers = {self.speakers}: only "
                f"{ONE_PART_TASKS} choose a turn"
            )

        heard = self.questions != "written" and self.task in ("aqa", "sft")
        if self.transcribe_first and not heard:
            raise ValueError(
                f"task {self.task!r} with questions = {self.questions!r}: transcribe_first, "
                "expected aqa or sft with questions that are heard"
            )
        if self.fully_conditioned and self.task != "itts":
            raise ValueError(f"task {self.task!r} with fully_conditioned: expected itts")

    def name_parts(self) -> list[str]:
        """The task, then each option that is not the default, for a member's name."""
        parts = [self.task]
        if self.task == "sft":
            parts.append(f"{self.questions}-{self.answers}")
        elif self.questions != "spoken":
            parts.append(self.questions)
        parts += [self.turn] if self.turn else []
        parts += [f"{self.pieces}-words"] if self.pieces else []
        parts += [f"order-{self.order}"] if self.order else []
        parts += ["transcribe-first"] if self.transcribe_first else []
        parts += ["fully-conditioned"] if self.fully_conditioned else []
        parts += [f"by-{'+'.join(self.speakers)}"] if self.speakers else []
        return parts

    def __call__(self, record: Record) -> Example:
        """Make the example, or raise NotForTask; the prompt depends on the record's id only."""
        values, owners = getattr(self, f"_{self.task}")(record)
        options = {}
        if self.task in tasks.PROMPTS:
            options["variant"] = stable_hash(record.id)
        if self.fully_conditioned:
            options["fully_conditioned"] = True
        example = tasks.make_example(
            self.task,
            *values,
            id=record.id,
            language=record.language,
            speaker=owners[0].speaker,
            source=record.source,
            **options,
        )
        if all(owner.loss for owner in owners):
            return example
        if self.task not in ("intlv", "itts", "sft") or self.pieces:
            raise NotForTask("a part without loss")
        # These three make one segment of each value, in order.
        segments = tuple(
            segment if owner.loss else dataclasses.replace(segment, loss=False)
            for segment, owner in zip(example.segments, owners, strict=True)
        )
        if not any(segment.loss for segment in segments):
            raise NotForTask("a part without loss")
        return dataclasses.replace(example, segments=segments)

    # A method a task: returns the task's arguments and the parts that they come from.

    def _asr(self, record: Record):
        if self.pieces:
            return self._first(record, lambda part: self._shuffled(part, record)[::-1])
        return self._first(record, lambda part: (self._question(part, record), _text(part)))

    def _s2tt(self, record: Record):
        return self._first(
            record, lambda part: (self._question(part, record), _text(part, "translation"))
        )

    def _tts(self, record: Record):
        if self.pieces:
            return self._first(record, lambda part: self._shuffled(part, record))
        return self._first(record, lambda part: (_text(part), self._heard(part, record)))

    def _audio(self, record: Record):
        return self._first(record, lambda part: (self._heard(part, record),))

    def _first(self, record: Record, values: Callable[[Part], tuple]):
        """Values of the first part that has them; else raise the first part's reason."""
        reason = NotForTask(f"no {self.turn} turn")
        for number, part in enumerate(self._candidates(record)):
            try:
                arguments = values(part)
                if not part.loss:
                    raise NotForTask("a part without loss")
                return arguments, [part]
            except NotForTask as error:
                reason = error if number == 0 else reason
        raise reason

    def _candidates(self, record: Record) -> tuple[Part, ...]:
        """The parts that a task of one part may use."""
        parts = record.parts
        if self.turn in ("user", "assistant"):
            _check_kind(record, "dialogue")
            parts = tuple(part for part in parts if part.role == self.turn)
        elif self.turn != "any" or record.kind == "text":
            _check_kind(record, "speech")
        if not self.speakers:
            return parts
        by_speakers = tuple(part for part in parts if part.speaker in self.speakers)
        if parts and not by_speakers:
            raise NotForTask("another speaker")
        return by_speakers

    def _text(self, record: Record):
        texts = [part.text for part in record.parts if part.text.strip()]
        if not texts:
            raise NotForTask("no text")
        return ("\n".join(texts),), list(record.parts)

    def _aqa(self, record: Record):
        _check_kind(record, "dialogue")
        turns = [part for part in record.parts if part.role != "system"]
        if len(turns) < 2 or (turns[0].role, turns[1].role) != ("user", "assistant"):
            raise NotForTask("no question and answer")
        question = self._mixed if self.questions == "mixed" else self._question
        return (question(turns[0], record), self._answer(turns[1], turns[0])), turns[:2]

    def _intlv(self, record: Record):
        _check_kind(record, "interleaved")
        # Half of the records begin with speech, half with text.
        first = stable_hash(record.id) % 2
        parts = [
            _text(part) if (number + first) % 2 else self._heard(part, record)
            for number, part in enumerate(record.parts)
        ]
        return (parts,), list(record.parts)

    def _iasr(self, record: Record):
        pairs, owners = self._pairs(record)
        return ([value for text, speech in pairs for value in (speech, text)],), owners

    def _itts(self, record: Record):
        pairs, owners = self._pairs(record)
        return ([value for pair in pairs for value in pair],), owners

    def _pairs(self, record: Record):
        """(text, speech) of each piece or part, and the part of each value."""
        if self.pieces:
            return self._first(record, self._cut)
        _check_kind(record, "interleaved")
        pairs = [(_text(part), self._heard(part, record)) for part in record.parts]
        return pairs, [part for part in record.parts for _ in range(2)]

    def _cut(self, part: Part) -> list[tuple[str, np.ndarray]]:
        if self.frames is not None:
            raise NotForTask("no codes")
        text, codes_NQ = _text(part), part.codes_NQ
        letters, frames = word_bounds(part)
        firsts = [*range(0, len(letters) - 1, self.pieces), len(letters) - 1]
        pieces = []
        for first, end in itertools.pairwise(firsts):
            piece = text[letters[first] : letters[end]].strip()
            piece_NQ = codes_NQ[frames[first] : frames[end]]
            if not piece or not len(piece_NQ):
                raise NotForTask("a piece shorter than a frame")
            pieces.append((piece, piece_NQ))
        return pieces

    def _shuffled(self, part: Part, record: Record) -> tuple[str, np.ndarray]:
        """(text, codes) of a part's pieces joined in another order."""
        pieces = self._cut(part)
        rng = self._draws(record)
        chosen = [pieces[number] for number in rng.permutation(len(pieces))]
        text = space_between(record.language).join(text for text, _ in chosen)
        return text, np.concatenate([codes_NQ for _, codes_NQ in chosen])

    def _mixed(self, part: Part, record: Record) -> list[tasks.Speech | str]:
        """A part's pieces in their order, at least one of them spoken; neighbours are joined."""
        pieces, rng = self._cut(part), self._draws(record)
        spoken = rng.random(len(pieces)) < 0.5
        spoken[rng.integers(len(pieces))] = True
        runs: list[tasks.Speech | str] = []
        for is_spoken, group in itertools.groupby(zip(spoken, pieces, strict=True), lambda x: x[0]):
            texts, codes = zip(*(piece for _, piece in group), strict=True)
            joined = space_between(record.language).join(texts)
            runs.append(np.concatenate(codes) if is_spoken else joined)
        return runs

    def _draws(self, record: Record) -> np.random.Generator:
        name = f"{record.id}/{self.order}" if self.order else record.id
        return np.random.default_rng(stable_hash(name))

    def _sft(self, record: Record):
        _check_kind(record, "dialogue")
        turns: list[tuple[str, list]] = []
        owners = []
        question = None  # the part before, if it is the user's
        for part in record.parts:
            if part.role == "assistant":
                values = [self._answer(part, question)]
                if self.answers == "spoken":
                    values.append(self._heard(part, record))
            elif part.role == "user" and self.questions == "spoken":
                values = [self._heard(part, record)]
            else:
                values = [_text(part)]
            question = part if part.role == "user" else None
            if turns and turns[-1][0] == part.role:
                turns[-1][1].extend(values)
            else:
                turns.append((part.role, values))
            owners += [part] * len(values)
        roles = [role for role, _ in turns if role != "system"]
        if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
            raise NotForTask("turns that are not user, assistant, user, assistant, ...")
        if any(role == "system" for role, _ in turns[1:]):
            raise NotForTask("a system turn that is not the first")
        return (turns,), owners

    def _answer(self, part: Part, question: Part | None) -> str:
        """An answer's text, below the transcript of its question if that is wanted."""
        if not self.transcribe_first or question is None:
            return _text(part)
        return f"{_text(question)}{TRANSCRIPT_END}{_text(part)}"

    def _question(self, part: Part, record: Record) -> tasks.Speech | str:
        return self._heard(part, record) if self.questions == "spoken" else _text(part)

    def _heard(self, part: Part, record: Record) -> tasks.Speech:
        if self.frames is None:
            if part.codes_NQ is None:
                raise NotForTask("no codes")
            return part.codes_NQ
        if not part.audio:
            raise NotForTask("no audio")
        frames = self.frames(part, record)
        if frames < 1:
            raise NotForTask("audio too short for a frame of codes")
        return tasks.Recording(part.audio, part.seconds, frames)


def _check_kind(record: Record, kind: str) -> None:
    if record.kind != kind:
        raise NotForTask(f"a record of kind {record.kind}")


def _text(part: Part, field: str = "text") -> str:
    text = getattr(part, field)
    if not text.strip():
        raise NotForTask(f"no {field}")
    return text


def audio_segments(example: Example) -> list[Segment]:
    """Audio segments of an example, in order."""
    return [segment for segment in example.segments if segment.is_audio]


def space_between(language: str) -> str:
    """The separator of words in a language."""
    return " " if language == "en" else ""
