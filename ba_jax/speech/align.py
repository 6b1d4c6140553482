"""Forced alignment: the times of the words of a known text.

Median and 90th percentile of the distance to Kokoro's exact times, over 52 utterances in eight
voices (526 words), starts and ends of words, in ms:

                         English          Mandarin
    PocketSphinxAligner  13, 11 (37, 38)  15, 15 (45, 45)
    WhisperAligner       40, 50 (80, 125) 28, 30 (70, 73)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import numpy as np

from ba_jax.data.record import LANGUAGES, Word
from ba_jax.speech import arpabet, english, mandarin
from ba_jax.speech.interfaces import SpeechToolError, import_tool
from ba_jax.speech.languages import language_pack
from ba_jax.speech.text_norm import SpokenWord, spoken_words
from ba_jax.speech.waves import RATE, SoundEdges, to_16k
from ba_jax.speech.whisper import WhisperModel, words_of

_FRAMES_A_SECOND = 100  # of pocketsphinx
_MIN_SECONDS = 0.1


def _check_text(text: str) -> str:
    text = " ".join(text.split())
    if not any(character.isalnum() for character in text):
        raise SpeechToolError(f"text {text!r} says nothing, expected words")
    return text


class PocketSphinxAligner:
    """Aligns by pocketsphinx's American English phones, in frames of 10 ms.

    Words have the phones of Kokoro's pronunciation, Mandarin characters included; English words of
    pocketsphinx's dictionary may have any of its pronunciations. Takes 0.02 to 0.05 CPU-seconds for
    a second of speech, of any length.
    """

    def __getstate__(self):
        return {}  # the decoder is reopened on first use

    @functools.cached_property
    def _decoder(self):
        return import_tool("pocketsphinx", "pocketsphinx").Decoder(
            samprate=RATE,
            lm=None,
            bestpath=False,
            # Normalised over the utterance: no state is carried to the next one.
            cmn="batch",
            # Wide beams: the text allows a single path.
            beam=1e-80,
            pbeam=1e-80,
            wbeam=1e-60,
            loglevel="FATAL",
        )

    def align(self, wave_S: np.ndarray, rate: int, text: str, language: str) -> tuple[Word, ...]:
        """Align the words (in Mandarin characters) of the text, in order."""
        wave_S = to_16k(wave_S, rate, min_seconds=_MIN_SECONDS)
        if language not in LANGUAGES:
            raise SpeechToolError(f"language {language!r}, expected one of {LANGUAGES}")
        text = _check_text(text)
        words = spoken_words(text, language)
        entries = self._entries(words, language)
        decoder = self._decoder
        pcm = np.clip(np.round(wave_S * 32767.0), -32768, 32767).astype("<i2").tobytes()
        try:
            decoder.set_align_text(" ".join(entry for entry, _ in entries))
            decoder.start_utt()
            decoder.process_raw(pcm, full_utt=True)
            decoder.end_utt()
            heard = [
                (segment.word.split("(")[0], segment.start_frame, segment.end_frame + 1)
                for segment in decoder.seg() or ()
                if not segment.word.startswith(("<", "["))
            ]
        except RuntimeError as error:
            del self.__dict__["_decoder"]  # its utterance may be unfinished
            raise SpeechToolError(f"text {text[:60]!r} cannot be aligned ({error})") from error
        if [entry for entry, *_ in heard] != [entry for entry, _ in entries]:
            raise SpeechToolError(
                f"{len(wave_S) / RATE:.1f} s of speech do not say {text[:60]!r}: "
                f"{len(heard)} of {len(entries)} words were found"
            )
        times: dict[int, list[float]] = {}
        for (_, number), (_, start, end) in zip(entries, heard, strict=True):
            times.setdefault(number, []).extend((start / _FRAMES_A_SECOND, end / _FRAMES_A_SECOND))
        sound = SoundEdges(wave_S, RATE)
        aligned = []
        after_pause = True
        for number, word in enumerate(words):
            start, end = times[number][0], times[number][-1]
            before_pause = bool(word.closing) or number == len(words) - 1
            start, end = sound.fit(start, end, after_pause, before_pause)
            aligned.append(Word(word.text, start, end))
            after_pause = before_pause
        return tuple(aligned)

    def _entries(self, words: Sequence[SpokenWord], language: str) -> list[tuple[str, int]]:
        """Dictionary entries of the text in order, each with the number of its word."""
        spoken = [word.spoken for word in words]
        if language == "zh":
            pauses = [bool(word.closing) for word in words]
            return [
                (self._add_entry(phonemes, "en" if piece.isascii() else "zh"), number)
                for number, (piece, (phonemes, _)) in enumerate(
                    zip(spoken, mandarin.pronounce(spoken, pauses), strict=True)
                )
            ]
        entries = []
        for number, piece in enumerate(spoken):
            for part in piece.split():
                name = part.lower().replace("’", "'")
                if self._decoder.lookup_word(name) is None:
                    (phonemes,) = english.pronounce([part], [False])
                    name = self._add_entry(phonemes, "en")
                entries.append((name, number))
        return entries

    def _add_entry(self, phonemes: str, language: str) -> str:
        """The dictionary entry of a pronunciation, added if it is new."""
        phones = arpabet.phones(phonemes, language)
        name = "_" + phones.replace(" ", "_")  # no English word begins so
        if self._decoder.lookup_word(name) is None:
            self._decoder.add_word(name, phones)
        return name


class WhisperAligner:
    """Aligns by the cross-attention of Whisper on the tokens of the text, in steps of 20 ms.

    Less exact than phones, but it needs no pronunciations and tolerates a text that differs a
    little from the speech. Arguments: see `ba_jax.speech.whisper.WhisperModel`.
    """

    def __init__(self, model: str | os.PathLike | None = None, **options):
        self._whisper = WhisperModel(model, **options)

    def align(self, wave_S: np.ndarray, rate: int, text: str, language: str) -> tuple[Word, ...]:
        """Align the words (in Mandarin characters) of the text, in order; up to 30 seconds."""
        wave_S = to_16k(wave_S, rate, min_seconds=_MIN_SECONDS)
        text = _check_text(text)
        tokenizer = self._whisper.tokenizer(language)
        encoded, frames = self._whisper.encode(wave_S)
        tokens = tokenizer.encode(language_pack(language).space + text)
        pieces = self._whisper.locate(encoded, frames, tokens, language)
        return words_of(pieces, text, language, SoundEdges(wave_S, RATE))
