"""Kokoro, English and Mandarin speech with exact word timings, on onnxruntime.

The model outputs the duration of each phoneme, so the times of words are exact rather than
estimated from the wave.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ba_jax.data.record import Word
from ba_jax.speech import assets, english, mandarin
from ba_jax.speech.interfaces import SpeechToolError, Spoken, import_tool
from ba_jax.speech.text_norm import SpokenWord, spoken_words
from ba_jax.speech.waves import SoundEdges

RATE = 24000
_UNIT = 600  # samples in one unit of duration
# The sounds come this much earlier than the durations state: the median over words inside
# sentences is 64 ms against pocketsphinx and 55 ms against the onset of energy after pauses.
_LEAD = 0.06
_MAX_PHONEMES = 510
_STYLE_WIDTH = 256
_DURATIONS = "/encoder/Clip_output_0"
_LANGUAGES = {"a": "en", "b": "en", "z": "zh"}
"""First letter of a voice -> its language; Kokoro's other languages have no phonemes here."""
_SPEEDS = (0.5, 2.0)


def _with_output(model: bytes, name: str) -> bytes:
    """An ONNX file with an additional output.

    Protobuf merges repeated messages and joins their lists, so that it suffices to append a
    ModelProto.graph (field 7) with a single GraphProto.output (12) with its name (1).
    """

    def field(number: int, data: bytes) -> bytes:
        assert len(data) < 128, "one byte of length"
        return bytes([number << 3 | 2, len(data)]) + data

    return model + field(7, field(12, field(1, name.encode())))


class Kokoro:
    """The synthesiser Kokoro-82M. Deterministic; 0.37 CPU-seconds for a second of speech.

    Whisper-base hears 52 sentences in eight voices with a word error rate of 0.8 % in English and a
    character error rate of 2.4 % in Mandarin.

    A voice is one of `voices`, or several of one language and accent joined by "+"
    ("zf_xiaoxiao+zm_yunjian"), whose average sounds like another speaker. zf_xiaoni is hard to
    understand.

    Args:
      model: folder with kokoro.onnx and vocab.json; by default the cached asset.
      voices: folder of the voices' .bin files; by default the cached asset.
      threads: threads of onnxruntime.
      silence: seconds kept before the first and after the last sound.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        voices: str | os.PathLike | None = None,
        *,
        threads: int = 1,
        silence: float = 0.1,
    ):
        self._model = model
        self._voices = voices
        self._threads = threads
        self._silence = silence

    def __getstate__(self):
        kept = ("_model", "_voices", "_threads", "_silence")
        return {name: self.__dict__[name] for name in kept}

    @functools.cached_property
    def _session(self):
        onnxruntime = import_tool("onnxruntime", "onnxruntime")
        path = self._model_folder / "kokoro.onnx"
        if not path.is_file():
            raise SpeechToolError(f"{path}: no such file, expected Kokoro's ONNX model")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns of its own int8 kernels
        model = _with_output(path.read_bytes(), _DURATIONS)
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds
            raise SpeechToolError(f"{path}: cannot be loaded ({error})") from error

    @functools.cached_property
    def _model_folder(self) -> Path:
        return Path(self._model) if self._model is not None else assets.ensure("kokoro")

    @functools.cached_property
    def _ids(self) -> Mapping[str, int]:
        """Phoneme -> id."""
        path = self._model_folder / "vocab.json"
        if not path.is_file():
            raise SpeechToolError(f"{path}: no such file, expected Kokoro's phonemes")
        return json.loads(path.read_text(encoding="utf-8"))["vocab"]

    @functools.cached_property
    def _voice_files(self) -> Mapping[str, Path]:
        if self._voices is not None:
            folder = Path(self._voices)
        else:
            folder = assets.ensure("kokoro-voices") / "voices"
        files = {path.stem: path for path in sorted(folder.glob("*.bin"))}
        known = {name: path for name, path in files.items() if name[:1] in _LANGUAGES}
        if not known:
            raise SpeechToolError(f"{folder}: no English or Mandarin voices (*.bin)")
        return known

    @property
    def voices(self) -> Mapping[str, str]:
        """Voice -> its language; averages are not listed."""
        return {name: _LANGUAGES[name[0]] for name in self._voice_files}

    def language(self, voice: str) -> str:
        """The language of a voice, or of an average of voices of one language and accent."""
        names = voice.split("+")
        for name in names:
            if name not in self._voice_files:
                raise SpeechToolError(
                    f"voice {name!r}, expected one of {', '.join(self._voice_files)}"
                )
        if len({name[0] for name in names}) > 1:
            raise SpeechToolError(f"voice {voice!r}: expected voices of one language and accent")
        return _LANGUAGES[voice[0]]

    def _style(self, voice: str) -> np.ndarray:
        """float32 (L, 256): a row for each number of phonemes."""
        styles = []
        for name in voice.split("+"):
            flat = np.fromfile(self._voice_files[name], "<f4")
            if flat.size % _STYLE_WIDTH or not flat.size:
                raise SpeechToolError(
                    f"{self._voice_files[name]}: {flat.size} numbers, expected rows of 256"
                )
            styles.append(flat.reshape(-1, _STYLE_WIDTH))
        return np.mean([style[: min(map(len, styles))] for style in styles], 0, dtype=np.float32)

    def phonemes(self, text: str, voice: str) -> list[tuple[SpokenWord, str, str, str]]:
        """Each word of a text with the marks before it, its phonemes, and the marks after it."""
        language = self.language(voice)
        words = spoken_words(text, language)
        if not any(word.spoken for word in words):
            raise SpeechToolError(f"text {text!r} says nothing, expected words")
        if language == "en":
            spoken = self._pronounce_english(words, british=voice[0] == "b")
        else:
            pauses = [bool(word.closing) for word in words]
            spoken = [
                (p, " " if end or word.closing else "")
                for word, (p, end) in zip(
                    words, mandarin.pronounce([word.spoken for word in words], pauses), strict=True
                )
            ]
        return [
            (word, word.opening, phonemes, word.closing + space)
            for word, (phonemes, space) in zip(words, spoken, strict=True)
        ]

    @staticmethod
    def _pronounce_english(words: list[SpokenWord], british: bool) -> list[tuple[str, str]]:
        parts = [word.spoken.split() for word in words]
        pauses = [
            bool(word.closing) and i == len(part) - 1
            for word, part in zip(words, parts, strict=True)
            for i in range(len(part))
        ]
        pauses[-1] = True
        phonemes = iter(english.pronounce([w for part in parts for w in part], pauses, british))
        return [(" ".join(next(phonemes) for _ in part), " ") for part in parts]

    def speak(self, text: str, voice: str, speed: float = 1.0) -> Spoken:
        """Speak a text of up to 510 phonemes, some 30 seconds, in the voice's language.

        `voice` is one of `voices` or an average of them, `speed` 0.5 to 2.
        """
        if not _SPEEDS[0] <= speed <= _SPEEDS[1]:
            raise SpeechToolError(f"speed {speed}, expected {_SPEEDS[0]} to {_SPEEDS[1]}")
        pieces = self.phonemes(text, voice)
        ids: list[int] = []
        spans = []  # per word: first id, end, number of spaces right after it
        for _, opening, phonemes, closing in pieces:
            ids += self._encode(opening, text)
            first = len(ids)
            ids += self._encode(phonemes, text)
            last = len(ids)
            ids += self._encode(closing, text)
            spans.append((first, last, len(ids) - last if closing == " " else 0))
        if ids[-1] == self._ids[" "]:
            ids.pop()
        if len(ids) > _MAX_PHONEMES:
            raise SpeechToolError(
                f"text of {len(ids)} phonemes ({text[:40]!r}...), expected at most {_MAX_PHONEMES}"
            )
        style = self._style(voice)
        wave_S, units = self._session.run(
            ["audio", _DURATIONS],
            {
                "tokens": np.array([[0, *ids, 0]], np.int64),
                "style": style[min(len(ids), len(style)) - 1][None],
                "speed": np.array([speed], np.float32),
            },
        )
        wave_S = np.asarray(wave_S, np.float32).reshape(-1)
        # ends[i] is where token i ends; token 0 is the silence before the first phoneme.
        ends = np.cumsum(units.reshape(-1)) * _UNIT / RATE
        return self._trim(wave_S, ends, pieces, spans)

    def _encode(self, phonemes: str, text: str) -> list[int]:
        unknown = sorted({p for p in phonemes if p not in self._ids})
        if unknown:
            raise SpeechToolError(f"phonemes {unknown} of {text!r} are none of Kokoro's")
        return [self._ids[p] for p in phonemes]

    def _trim(self, wave_S, ends, pieces, spans) -> Spoken:
        """Cut most of the silence around the speech, and time the words."""
        sound = SoundEdges(wave_S, RATE)
        times: list[list[float]] = []
        shared = 0.0  # half of the space between two words without a pause belongs to each
        after_pause = True
        for first, stop, space in spans:
            begin = ends[first] - _LEAD - shared
            is_last = stop + space >= len(ends) - 1
            shared = 0.0 if is_last else (ends[stop + space] - ends[stop]) / 2
            before_pause = is_last or not space
            end = ends[stop] - _LEAD + shared
            # The durations give words a part of the pause beside them: cut it at their sound.
            begin, end = sound.fit(begin, end, after_pause, before_pause)
            times.append([max(0.0, begin), max(0.0, end)])
            after_pause = before_pause
        low = max(0, round((times[0][0] - self._silence) * RATE))
        high = round((times[-1][1] + self._silence) * RATE)
        words = tuple(
            Word(word.text, float(begin) - low / RATE, float(end) - low / RATE)
            for (word, *_), (begin, end) in zip(pieces, times, strict=True)
        )
        return Spoken(np.clip(wave_S[low:high], -1.0, 1.0), RATE, words)
