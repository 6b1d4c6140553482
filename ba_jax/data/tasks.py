"""Training tasks (paper Table 4, and SFT) and their prompts: a pure function per task.

    task    reads                          learns to produce
    asr     prompt, speech                 its transcript
    aqa     prompt, spoken question        the written answer
    s2tt    prompt, speech                 its translation
    intlv   text and speech interleaved    the text; no loss on audio
    tts     text                           the speech
    itts    text and speech interleaved    text and speech except the first text
    iasr    prompt, speech and text        the text: recognition piece by piece
    audio   -                              speech alone
    text    -                              text alone
    sft     dialogue turns                 the assistant's turns, written or spoken

A task decides segments, prompts and loss; `ba_jax.data.sequence` turns segments into tokens. Values
that are missing, empty or of the wrong kind raise RecordError.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ba_jax.config import expected
from ba_jax.data.record import HAN, RecordError, check_language
from ba_jax.types import Example, Segment

# The first prompt of each list is the release's where it published one.
_TRANSCRIBE = {
    "zh": ("将语音转录为文本:", "请把这段语音写成文字:"),
    "en": ("Transcribe the speech into text:", "Write down what is said:"),
}
PROMPTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "asr": _TRANSCRIBE,
    "iasr": _TRANSCRIBE,
    "aqa": {
        "zh": ("请回答语音中的问题:", "听录音并作答:"),
        "en": ("Answer the spoken question:", "Listen and answer:"),
    },
    "s2tt": {
        "zh": ("将语音翻译成英文:", "请把这段语音译为英语:"),
        "en": ("Translate the speech into Chinese:", "Write in Chinese what is said:"),
    },
}


_WORD_BEGIN = re.compile(rf"^\s*\S|[{HAN}]|(?<=\s)\S|(?<=[{HAN}，。！？；：、])\w")


def prompt(task: str, language: str, variant: int = 0) -> str:
    """Prompt of a task in the language of the speech; `variant` counts modulo their number.

    A language without prompts of its own has the English ones, unless they name a language.
    """
    if task not in PROMPTS:
        raise RecordError(f"task {task!r} has no prompts, expected one of {sorted(PROMPTS)}")
    if language not in PROMPTS[task] and task != "s2tt":
        language = "en"
    if language not in PROMPTS[task]:
        raise RecordError(f"language {language!r}: {task} has prompts in {sorted(PROMPTS[task])}")
    variants = PROMPTS[task][language]
    return variants[variant % len(variants)]


@dataclasses.dataclass(frozen=True)
class Recording:
    """An encoded audio file, its length, and its number of frames of codes."""

    audio: bytes
    seconds: float
    frames: int


Speech = Recording | bytes | np.ndarray
"""A recording, an encoded file of unknown length, or codes (N, Q)."""


def speech(value: Speech, **flags) -> Segment:
    """Make an audio segment."""
    if isinstance(value, Recording):
        if not value.audio or value.frames < 1:
            raise RecordError(f"audio: {len(value.audio)} bytes, {value.frames} frames of codes")
        return Segment(audio=value.audio, seconds=value.seconds, frames=value.frames, **flags)
    if isinstance(value, bytes):
        if not value:
            raise RecordError("audio: an empty file")
        return Segment(audio=value, **flags)
    if isinstance(value, np.ndarray):
        if value.ndim != 2 or not len(value) or value.dtype.kind not in "iu":
            raise RecordError(
                f"codes: {value.dtype}{value.shape}, expected integers (N >= 1, codebooks)"
            )
        return Segment(codes_NQ=value, **flags)
    raise RecordError(f"audio: {type(value).__name__}, expected encoded bytes or an array of codes")


def words(value: str, name: str = "text", **flags) -> Segment:
    """Make a text segment."""
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{name}: {value!r}, expected text")
    return Segment(text=value, **flags)


def _answer_heard(task: str, answer: str) -> Callable[..., tuple[Segment, ...]]:
    """The task that writes text (named `answer` in messages) below a prompt and speech.

    Its speech may be text in its place, or a list of spoken and written pieces.
    """

    def make(audio, text: str, *, language: str, variant: int = 0) -> tuple[Segment, ...]:
        pieces = audio if isinstance(audio, list) else [audio]
        return (
            words(prompt(task, language, variant)),
            *(words(piece) if isinstance(piece, str) else speech(piece) for piece in pieces),
            words(text, answer, loss=True),
        )

    return make


def intlv(parts: Sequence[str | Speech]) -> tuple[Segment, ...]:
    """Text and speech that continue each other; speech is heard, only text carries loss."""
    return tuple(
        words(part, loss=True) if isinstance(part, str) else speech(part)
        for part in _interleaved(parts)
    )


def tts(text: str, audio) -> tuple[Segment, ...]:
    """Speech synthesis: text, then its speech."""
    return words(text), speech(audio, loss=True, spoken=True)


def itts(parts: Sequence[str | Speech], *, fully_conditioned: bool = False) -> tuple[Segment, ...]:
    """Text and its speech in turns; loss on everything but the first text.

    `fully_conditioned`: no loss on any text: the model reads it piece by piece and writes none.
    """
    segments = []
    for part in _interleaved(parts):
        if isinstance(part, str):
            segments.append(words(part, loss=bool(segments) and not fully_conditioned))
        else:
            segments.append(speech(part, loss=True, spoken=True))
    return tuple(segments)


def in_pieces(text: str, count: int) -> list[str]:
    """Cut a text into pieces of `count` words; the last may be shorter, a Han character is a word.

    The cuts are those of `ExampleMaker.pieces` in the embedded corpus.
    """
    if count < 1:
        raise ValueError(f"pieces of {count} words, expected at least 1")
    words(text)
    begins = [match.start() for match in _WORD_BEGIN.finditer(text)]
    edges = [0, *begins[count::count], len(text)]
    return [text[first:end].strip() for first, end in itertools.pairwise(edges)]


def iasr(parts: Sequence[str | Speech], *, language: str, variant: int = 0) -> tuple[Segment, ...]:
    """Recognition piece by piece: speech and its transcript in turns, which aligns the two."""
    segments = [words(prompt("iasr", language, variant))]
    for part in _interleaved(parts):
        if isinstance(part, str):
            segments.append(words(part, "transcript", loss=True))
        else:
            segments.append(speech(part))
    return tuple(segments)


def audio_only(audio) -> tuple[Segment, ...]:
    """Speech without any text."""
    return (speech(audio, loss=True, spoken=True),)


def text_only(text: str) -> tuple[Segment, ...]:
    """Text without any speech, to keep the language ability."""
    return (words(text, loss=True),)


def sft(turns: Sequence[tuple[str, Sequence[str | Speech]]]) -> tuple[Segment, ...]:
    """A dialogue; the assistant's turns carry loss.

    Roles of the (role, parts) turns are "system" (first, at most once), then "user" and "assistant"
    in turns, ending with the assistant. A part is text, an encoded file or codes. In an assistant's
    turn with speech (a spoken answer) text and speech alternate.
    """
    roles = [role for role, _ in turns]
    body = roles[1:] if roles[:1] == ["system"] else roles
    if not body or body != ["user", "assistant"] * (len(body) // 2):
        raise RecordError(
            f"roles {roles}: expected an optional system, then user and assistant in turns"
        )
    segments = []
    for number, (role, parts) in enumerate(turns):
        if not parts:
            raise RecordError(f"turn {number} ({role}) is empty")
        answers = role == "assistant"
        wants_speech = answers and any(not isinstance(part, str) for part in parts)
        for i, part in enumerate(parts):
            flags = {"loss": answers, "role": role if i == 0 else ""}
            if i == 0:
                flags["wants_speech"] = wants_speech
            if isinstance(part, str):
                segments.append(words(part, f"turn {number}", **flags))
            else:
                segments.append(speech(part, spoken=answers, **flags))
    return tuple(segments)


def _interleaved(parts: Sequence) -> Sequence:
    kinds = [isinstance(part, str) for part in parts]
    if len(set(kinds)) < 2:
        raise RecordError(f"{len(parts)} parts, all of one kind: expected text and speech")
    for i in range(1, len(kinds)):
        if kinds[i] == kinds[i - 1]:
            kind = "texts" if kinds[i] else "audios"
            raise RecordError(f"parts {i - 1} and {i} are both {kind}: expected them in turns")
    return parts


TASKS: Mapping[str, Callable[..., tuple[Segment, ...]]] = {
    "asr": _answer_heard("asr", "transcript"),
    "aqa": _answer_heard("aqa", "answer"),
    "s2tt": _answer_heard("s2tt", "translation"),
    "intlv": intlv,
    "tts": tts,
    "itts": itts,
    "iasr": iasr,
    "audio": audio_only,
    "text": text_only,
    "sft": sft,
}
"""Name -> function that makes the segments."""


def make_example(
    task: str, *args, id: str, language: str, speaker: str = "", source: str = "", **options
) -> Example:
    """Run a task; errors name the example."""
    if task not in TASKS:
        raise RecordError(f"{source}:{id}: task {expected(task, sorted(TASKS))}")
    if task in PROMPTS:
        options["language"] = language
    try:
        check_language(language)
        segments = TASKS[task](*args, **options)
    except RecordError as error:
        raise RecordError(f"{source}:{id}: {error}") from None
    return Example(id, task, segments, language, speaker, source)
