"""Forced alignment: when the words of a known text are said."""

from __future__ import annotations

import functools
import os

import numpy as np

from ba_jax.data.record import LANGUAGES, Word
from ba_jax.data.speech import arpabet, english, mandarin
from ba_jax.data.speech.interfaces import SpeechToolError
from ba_jax.data.speech.text_norm import spoken_words
from ba_jax.data.speech.waves import RATE, SoundEdges, to_16k
from ba_jax.data.speech.whisper import WhisperModel, words_of

_FRAMES_A_SECOND = 100  # of pocketsphinx


def _checked(text: str, language: str) -> str:
    if language not in LANGUAGES:
        raise SpeechToolError(f"language {language!r}, expected one of {LANGUAGES}")
    text = " ".join(text.split())
    if not any(character.isalnum() for character in text):
        raise SpeechToolError(f"text {text!r} says nothing, expected words")
    return text


class WhisperAligner:
    """Aligns in both languages by Whisper's cross-attention on the tokens of the text."""

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        threads: int = 1,
        compute_type: str = "float32",
    ):
        self._whisper = WhisperModel(model, threads=threads, compute_type=compute_type)

    def align(self, wave_S: np.ndarray, rate: int, text: str, language: str) -> tuple[Word, ...]:
        """Words of up to 30 seconds of speech."""
        wave_S = to_16k(wave_S, rate)
        text = _checked(text, language)
        tokenizer = self._whisper.tokenizer(language)
        encoded, frames = self._whisper.encode(wave_S)
        tokens = tokenizer.encode(" " + text if language == "en" else text)
        pieces = self._whisper.locate(encoded, frames, tokens, language)
        return words_of(pieces, text, language, SoundEdges(wave_S, RATE))


class PocketSphinxAligner:
    """Aligns in both languages by an acoustic model of phones, in 10 ms frames."""

    def __init__(self):
        pass

    def __getstate__(self):
        return {}

    @functools.cached_property
    def _decoder(self):
        try:
            import pocketsphinx
        except ModuleNotFoundError:
            raise SpeechToolError(
                "pocketsphinx is not installed: pip install pocketsphinx"
            ) from None
        return pocketsphinx.Decoder(
            samprate=RATE,
            loglevel="FATAL",
            lm=None,
            bestpath=False,
            cmn="batch",
            beam=1e-80,
            wbeam=1e-60,
            pbeam=1e-80,
        )

    def align(self, wave_S: np.ndarray, rate: int, text: str, language: str) -> tuple[Word, ...]:
        wave_S = to_16k(wave_S, rate)
        text = _checked(text, language)
        words = spoken_words(text, language)
        decoder = self._decoder
        entries = [self._entry(p, l) for p, l in self._phonemes(words, language)]
        decoder.set_align_text(" ".join(entries))
        decoder.start_utt()
        pcm = np.clip(np.round(wave_S * 32767), -32768, 32767).astype("<i2")
        decoder.process_raw(pcm.tobytes(), full_utt=True)
        decoder.end_utt()
        heard = [s for s in decoder.seg() or () if not s.word.startswith(("<", "["))]
        if [s.word.split("(")[0] for s in heard] != entries:
            raise SpeechToolError("mismatch")
        return tuple(
            Word(w.text, s.start_frame / _FRAMES_A_SECOND, (s.end_frame + 1) / _FRAMES_A_SECOND)
            for w, s in zip(words, heard, strict=True)
        )

    def _phonemes(self, words, language):
        pauses = [bool(word.closing) for word in words]
        if language == "zh":
            return [
                (p, "en" if w.spoken.isascii() else "zh")
                for w, (p, _) in zip(
                    words, mandarin.pronounce([w.spoken for w in words], pauses), strict=True
                )
            ]
        out = []
        for w in words:
            parts = w.spoken.split()
            out.append(("".join(english.pronounce(parts, [False] * len(parts))), "en"))
        return out

    def _entry(self, phonemes: str, language: str) -> str:
        phones = arpabet.phones(phonemes, language)
        name = "_" + phones.replace(" ", "_")
        if self._decoder.lookup_word(name) is None:
            self._decoder.add_word(name, phones)
        return name
