"""Speak lines and check them with a recogniser: every recorded line was understood."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import json
import os
import re
from pathlib import Path

from ba_jax.corpora.encode import encode_speech
from ba_jax.data.record import Word
from ba_jax.files import write_whole
from ba_jax.speech.assets import cache_folder
from ba_jax.speech.interfaces import Recogniser, SpeechToolError, Synthesiser
from ba_jax.speech.text_norm import error_rate, for_scoring, normalise

_VERSION = 1  # of cached lines; raise it when the same call gives other speech

_MINUS = re.compile(r"(?<=\d)\s*[-–−]\s*(?=\d)")  # otherwise it is read as a range
# Whisper writes 7.6 for "seven minus six" in Mandarin, in any voice.
_POINT = re.compile(r"(?<=\d)\.(?=\d)")


@dataclasses.dataclass(frozen=True)
class SpokenLine:
    """A spoken line: fields as in `record.Part`, and what the recogniser heard."""

    audio: bytes
    seconds: float
    words: tuple[Word, ...]
    heard: str


def sound_error_rate(text: str, heard: str, language: str) -> float:
    """The error rate of a transcript, as far as it shows a mispronounced line.

    Signs equal the words for them ("3 + 4" is "three plus four"). In Mandarin the syllables are
    compared, without tones: in a sentence without context a recogniser can only guess which
    character of a syllable was meant.
    """
    heard = heard.strip()
    if not for_scoring(heard, language).strip():
        return 1.0
    if language == "en":
        forms = (heard, _spell_signs(heard, "equals"), _spell_signs(heard, "is"))
        return min(error_rate(text, form, language) for form in forms)
    import jiwer
    import pypinyin

    def syllables(form: str) -> str:
        return " ".join(pypinyin.lazy_pinyin(for_scoring(form, language)))

    heard = _MINUS.sub("减", heard)
    forms = (heard, _POINT.sub("减", heard))
    errors = [float(jiwer.wer(syllables(text), syllables(form))) for form in forms]
    return min(error_rate(text, heard, language), *errors)


def _spell_signs(heard: str, equals: str) -> str:
    """Spell signs: "6-4=2" -> "six minus four equals two"."""
    heard = _MINUS.sub(" minus ", heard)
    return normalise(heard.replace("=", f" {equals} ").replace("+", " plus "), "en")


class Studio:
    """Speaks lines, with a cache: a second run with the same lines costs next to nothing.

    By default the cache is in that of the speech tools, which are Kokoro and Whisper-base.
    """

    def __init__(
        self,
        coding: str = "opus",
        threads: int = 1,
        folder: str | os.PathLike | None = None,
        synthesiser: Synthesiser | None = None,
        recogniser: Recogniser | None = None,
    ):
        self._coding = coding
        self._threads = threads
        self._folder = Path(folder) if folder is not None else cache_folder() / "embedded-corpus"
        if synthesiser is not None:
            self.synthesiser = synthesiser
        if recogniser is not None:
            self.recogniser = recogniser

    @functools.cached_property
    def synthesiser(self) -> Synthesiser:
        """Kokoro, loaded on first use."""
        from ba_jax.speech.kokoro import Kokoro

        return Kokoro(threads=self._threads)

    @functools.cached_property
    def recogniser(self) -> Recogniser:
        """Whisper-base, loaded on first use."""
        from ba_jax.speech.whisper import Whisper

        return Whisper(threads=self._threads)

    def say(self, text: str, language: str, voice: str, speed: float) -> SpokenLine:
        """Speak a line and recognise it."""
        key = json.dumps([_VERSION, self._coding, text, language, voice, speed])
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = self._folder / name[:2] / f"{name}.json"
        if path.is_file():
            return _load(path)
        spoken = self.synthesiser.speak(text, voice, speed)
        heard = self.recogniser.recognise(spoken.wave_S, spoken.rate, language)
        audio, seconds = encode_speech(spoken.wave_S, spoken.rate, self._coding)
        utterance = SpokenLine(audio, seconds, spoken.words, heard.text)
        _save(path, utterance, key)
        return utterance

    def check(self, language: str, voice: str) -> None:
        """Speak and recognise a simple text, which fails only if a tool is missing."""
        spoken = self.synthesiser.speak({"en": "Hello.", "zh": "你好。"}[language], voice)
        self.recogniser.recognise(spoken.wave_S, spoken.rate, language)


def _save(path: Path, utterance: SpokenLine, key: str) -> None:
    fields = dataclasses.asdict(utterance) | {
        "audio": base64.b64encode(utterance.audio).decode(),
        "words": [[word.text, word.start, word.end] for word in utterance.words],
        "key": key,
    }
    try:
        write_whole(path, json.dumps(fields, ensure_ascii=False))
    except OSError as error:
        raise SpeechToolError(
            f"{path}: cannot be written ({error}); set BA_JAX_CACHE to a folder that can"
        ) from error


def _load(path: Path) -> SpokenLine:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return SpokenLine(
            audio=base64.b64decode(fields["audio"]),
            seconds=fields["seconds"],
            words=tuple(Word(*word) for word in fields["words"]),
            heard=fields["heard"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SpeechToolError(f"{path}: {error!r}, expected a cached line; delete it") from None
