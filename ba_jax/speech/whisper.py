"""Whisper on CTranslate2: recognition, and times of the tokens of a text.

Short audio gets a window of 10 seconds instead of 30, at a quarter of the cost. (Much shorter
windows make the model repeat itself.)
"""

from __future__ import annotations

import dataclasses
import functools
import os
import zlib
from pathlib import Path

import numpy as np

from ba_jax.data.record import Word
from ba_jax.speech import assets
from ba_jax.speech.interfaces import Heard, SpeechToolError, import_tool
from ba_jax.speech.text_norm import spoken_words, to_simplified
from ba_jax.speech.vad import Silero
from ba_jax.speech.waves import RATE, SoundEdges, to_16k

MAX_SECONDS = 30.0
_WINDOWS = (10.0, 15.0, 20.0, 30.0)
_MARGIN = 0.5  # seconds of silence at the end of a shorter window
_FRAMES_A_SECOND = 100  # of the mel spectrogram
_STEPS_A_SECOND = 50  # of the alignment
# The attention is early: by 62 ms in the median against Kokoro's exact times in both languages, by
# 45 to 60 ms against pocketsphinx on recordings.
_AHEAD = 0.06
# From faster-whisper: text that compresses better than this repeats itself.
_MAX_COMPRESSION = 2.4


@dataclasses.dataclass(frozen=True)
class TimedPiece:
    """Characters of one or several tokens, with their times and mean probability."""

    text: str
    start: float
    end: float
    probability: float


@dataclasses.dataclass(eq=False)
class WhisperModel:
    """A Whisper model in CTranslate2's format, picklable because it is opened on first use.

    Args:
      model: folder with model.bin, config.json and tokenizer.json; by default Whisper-base.
      threads: threads of CTranslate2.
      compute_type: CTranslate2's; "int8" takes 0.6 of the time of "float32" and cut one of 28
        sentences short.
    """

    model: str | os.PathLike | None = None
    threads: int = 1
    compute_type: str = "float32"

    def __getstate__(self):
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def opened(self):
        """The `faster_whisper.WhisperModel`."""
        faster_whisper = import_tool("faster_whisper", "faster-whisper")
        folder = Path(self.model or assets.ensure("whisper-base"))
        for name in ("model.bin", "config.json", "tokenizer.json"):
            # Checked here because faster-whisper would try to download missing files.
            if not (folder / name).is_file():
                raise SpeechToolError(f"{folder / name}: no such file, expected a Whisper model")
        try:
            return faster_whisper.WhisperModel(
                str(folder),
                device="cpu",
                compute_type=self.compute_type,
                cpu_threads=self.threads,
                local_files_only=True,
            )
        except (RuntimeError, ValueError) as error:
            raise SpeechToolError(f"{folder}: cannot be loaded ({error})") from error

    def tokenizer(self, language: str):
        """The tokenizer with the prompt of a language that the model has."""
        from faster_whisper.tokenizer import Tokenizer

        multilingual = self.opened.model.is_multilingual
        if not multilingual and language != "en":
            raise SpeechToolError(f"language {language!r}, expected 'en'")
        try:
            return Tokenizer(
                self.opened.hf_tokenizer, multilingual, task="transcribe", language=language
            )
        except ValueError as error:
            raise SpeechToolError(f"language {language!r}, expected one of Whisper's") from error

    def encode(self, wave_S: np.ndarray):
        """Encode up to 30 s at 16 kHz; returns the encoder's output and the number of frames."""
        seconds = len(wave_S) / RATE
        if seconds > MAX_SECONDS:
            raise SpeechToolError(f"{seconds:.1f} s of speech, expected at most {MAX_SECONDS} s")
        window = next((w for w in _WINDOWS if seconds + _MARGIN <= w), _WINDOWS[-1])
        mel_MT = self.opened.feature_extractor(wave_S)
        frames = min(mel_MT.shape[1], round(window * _FRAMES_A_SECOND))
        padded_MT = np.zeros((mel_MT.shape[0], round(window * _FRAMES_A_SECOND)), np.float32)
        padded_MT[:, :frames] = mel_MT[:, :frames]
        return self.opened.encode(padded_MT), frames

    def locate(self, encoded, frames: int, tokens: list[int], language: str) -> list[TimedPiece]:
        """Times of the tokens of a text: a path through the cross-attention."""
        tokenizer = self.tokenizer(language)
        (result,) = self.opened.model.align(encoded, tokenizer.sot_sequence, [tokens], frames)
        path_P2 = np.array(result.alignments)
        is_first_P = np.diff(path_P2[:, 0], prepend=-1) > 0
        starts = path_P2[is_first_P, 1] / _STEPS_A_SECOND + _AHEAD  # of the tokens and of the end
        starts = np.minimum(starts, frames / _FRAMES_A_SECOND)
        texts, groups = tokenizer.split_tokens_on_unicode(tokens)
        pieces, first = [], 0
        for text, group in zip(texts, groups, strict=True):
            last = first + len(group)
            probability = float(np.mean(result.text_token_probs[first:last]))
            pieces.append(TimedPiece(text, float(starts[first]), float(starts[last]), probability))
            first = last
        return pieces


def words_of(
    pieces: list[TimedPiece], text: str, language: str, sound: SoundEdges
) -> tuple[Word, ...]:
    """The words of a text, timed by its pieces.

    A piece's characters share its time evenly; punctuation and spaces belong to no word. Beside
    pauses a word begins and ends with its sound.
    """
    starts: list[float] = []
    ends: list[float] = []
    for piece in pieces:
        # Spaces before a word take no time.
        marks = [character.isalnum() for character in piece.text]
        count, done = sum(marks), 0
        for mark in marks:
            step = (piece.end - piece.start) / max(count, 1)
            starts.append(piece.start + done * step)
            done += mark
            ends.append(piece.start + done * step)
    whole = "".join(piece.text for piece in pieces)
    words: list[Word] = []
    place = 0
    spoken = spoken_words(text, language)
    after_pause = True
    for number, word in enumerate(spoken):
        places = []
        for character in word.text:
            if not character.isspace():
                place = whole.index(character, place) + 1
                places.append(place - 1)
        voiced = [i for i in places if whole[i].isalnum()] or places
        start, end = starts[voiced[0]], ends[voiced[-1]]
        before_pause = bool(word.closing) or number == len(spoken) - 1
        start, end = sound.fit(start, end, after_pause, before_pause)
        words.append(Word(word.text, start, end))
        after_pause = before_pause
    return tuple(words)


class Whisper:
    """The recogniser Whisper, by default the multilingual base, see `WhisperModel`.

    `beam` hypotheses are kept. Audio without speech by `vad` has an empty transcript (Whisper hears
    "you" in silence).
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        beam: int = 5,
        vad=None,
        **options,
    ):
        self._whisper = WhisperModel(model, **options)
        self._beam = beam
        self._vad = vad if vad is not None else Silero()

    def recognise(self, wave_S: np.ndarray, rate: int, language: str) -> Heard:
        """Recognise up to 30 seconds of speech in a language."""
        wave_S = to_16k(wave_S, rate)
        tokenizer = self._whisper.tokenizer(language)
        if not self._vad.speech(wave_S, RATE):
            return Heard("", (), 0.0, 1.0)
        encoded, frames = self._whisper.encode(wave_S)
        tokens, no_speech = self._generate(tokenizer, encoded, frames, repeats=True)
        if _is_repetitive(tokenizer.decode(tokens)):
            tokens, no_speech = self._generate(tokenizer, encoded, frames, repeats=False)
        text = " ".join(tokenizer.decode(tokens).split())
        if not text:
            return Heard("", (), 0.0, no_speech)
        pieces = self._whisper.locate(encoded, frames, tokens, language)
        if language == "zh":
            pieces = [dataclasses.replace(piece, text=_simplify(piece.text)) for piece in pieces]
            text = " ".join("".join(piece.text for piece in pieces).split())
        sound = SoundEdges(wave_S, RATE)
        confidence = float(np.mean([piece.probability for piece in pieces]))
        return Heard(text, words_of(pieces, text, language, sound), confidence, no_speech)

    def _generate(self, tokenizer, encoded, frames: int, *, repeats: bool):
        (result,) = self._whisper.opened.model.generate(
            encoded,
            [[*tokenizer.sot_sequence, tokenizer.no_timestamps]],
            beam_size=self._beam,
            # Nobody speaks 12 tokens a second.
            max_length=min(448, 16 + 12 * -(-frames // _FRAMES_A_SECOND)),
            no_repeat_ngram_size=0 if repeats else 3,
            suppress_tokens=[-1],
            return_no_speech_prob=True,
        )
        tokens = [token for token in result.sequences_ids[0] if token < tokenizer.eot]
        return tokens, float(result.no_speech_prob)


def _is_repetitive(text: str) -> bool:
    data = text.encode()
    return len(data) > _MAX_COMPRESSION * len(zlib.compress(data))


def _simplify(text: str) -> str:
    """Convert to simplified characters, keeping the length."""
    whole = to_simplified(text)
    return whole if len(whole) == len(text) else "".join(to_simplified(c)[:1] for c in text)
