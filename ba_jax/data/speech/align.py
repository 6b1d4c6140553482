"""Forced alignment: when the words of a known text are said."""

from __future__ import annotations

import os

import numpy as np

from ba_jax.data.record import Word
from ba_jax.data.speech.interfaces import SpeechToolError
from ba_jax.data.speech.waves import to_16k
from ba_jax.data.speech.whisper import WhisperModel, words_of


class WhisperAligner:
    """Aligns in both languages by Whisper's cross-attention on the tokens of the text."""

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        *,
        threads: int = 1,
        compute_type: str = "int8",
    ):
        self._whisper = WhisperModel(model, threads=threads, compute_type=compute_type)

    def align(self, wave_S: np.ndarray, rate: int, text: str, language: str) -> tuple[Word, ...]:
        wave_S = to_16k(wave_S, rate)
        tokenizer = self._whisper.tokenizer(language)
        text = " ".join(text.split())
        encoded, frames = self._whisper.encode(wave_S)
        tokens = tokenizer.encode(" " + text if language == "en" else text)
        pieces = self._whisper.locate(encoded, frames, tokens, language)
        return words_of(pieces, text, language)
