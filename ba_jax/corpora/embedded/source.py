"""The corpus in the package: English and Mandarin speech of many voices.

    python -m ba_jax.corpora --config=configs/prepare.py:embedded --out=DIR

    facts, HSK sentences, chatterbot dialogues -> scripts -> Kokoro's voices -> Whisper's check

`size="large"` is the same recipe with every closed sentence by 20 voices and every open sentence by
4: about 36 h in place of 46 min. Both sizes hold out the same test and validation sentences.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ba_jax.config import check_choices
from ba_jax.corpora.embedded import open_part, script
from ba_jax.corpora.embedded.script import Script
from ba_jax.corpora.embedded.studio import SpokenLine, Studio, sound_error_rate
from ba_jax.corpora.embedded.voices import Takes
from ba_jax.corpora.encode import CODINGS
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, Source, SourceError
from ba_jax.data.record import LANGUAGES, Part, Record
from ba_jax.speech.assets import ensure
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.text_norm import is_han

TOKENIZER = "tokenizer.model"
"""The SentencePiece model beside the records."""


@dataclasses.dataclass(frozen=True)
class EmbeddedCorpus(Source):
    """A source of spoken and written records in two languages.

    Attributes:
      size: "embedded" or "large".
      seed: seed of the held-out sentences, of voices and speeds.
      coding: coding of the audio, "opus" or "flac".
      vocabulary: most tokens of the text tokenizer.
      threads: threads of each process's synthesiser and recogniser.
    """

    size: str = "embedded"
    seed: int = 0
    coding: str = "opus"
    vocabulary: int = 2048
    threads: int = 1

    name: ClassVar[str] = "embedded"
    description: ClassVar[str] = (
        "English and Mandarin sentences, spoken questions and answers, and lists, synthesised with "
        "Kokoro-82M: facts in a closed vocabulary, HSK sentences with translations, chatterbot's "
        "dialogues."
    )
    licence: ClassVar[str] = (
        "CC-BY-SA-4.0 (HSK sentences and their speech); the rest Apache-2.0 and BSD-3-Clause: see "
        "ATTRIBUTION.md"
    )

    def __post_init__(self):
        check_choices(self, size=tuple(script.SIZES), coding=CODINGS)

    def items(self) -> Iterator[Item | Rejection]:
        """List the scripts, and the texts that are not used."""
        scripts, rejected = self._scripts
        yield from rejected
        for entry in scripts:
            seconds = sum(
                estimate_seconds(line.text, entry.language)
                for line in entry.lines
                if line.speaker is not None
            )
            yield Item(entry.id, entry.split, f"{entry.source}:{entry.id}", entry, seconds)

    @functools.cached_property
    def _scripts(self) -> tuple[list[Script], list[Rejection]]:
        try:
            texts = list(open_part.read_sentences(ensure("hsk-sentences") / "sentences.json"))
            for language in LANGUAGES:
                texts += open_part.read_exchanges(ensure("chatterbot"), language)
        except (OSError, ValueError, SpeechToolError) as error:
            raise SourceError(str(error)) from error
        rejected = [text for text in texts if isinstance(text, Rejection)]
        sentences = [text for text in texts if isinstance(text, open_part.Sentence)]
        exchanges = [text for text in texts if isinstance(text, open_part.Exchange)]
        size = script.SIZES[self.size]
        return script.write(sentences, exchanges, size, self.seed), rejected

    def records(self, item: Item) -> Iterator[Record]:
        """Speak a script."""
        yield perform(item.payload, self._studio)

    @functools.cached_property
    def _studio(self) -> Studio:
        return Studio(self.coding, self.threads)

    def __getstate__(self):
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def finish(self, directory: Path) -> None:
        """Train the text tokenizer on all text of the training split."""
        from ba_jax.corpora.make_tokenizer import train_sentencepiece

        texts = training_texts(self._scripts[0])
        train_sentencepiece(texts, directory / TOKENIZER, self.vocabulary)


def training_texts(scripts: list[Script]) -> list[str]:
    """The tokenizer's training texts, in order: lines of the training split, Mandarin characters.

    With Mandarin cut into characters every Mandarin token is a character. Otherwise "three plus
    four" would be a single token, unrelated to "four plus three", and a held-out sentence would
    have tokens that were never trained.
    """
    texts = []
    written = (entry for entry in scripts if entry.split == "train" and not entry.repeats)
    for line in (line for entry in written for line in entry.lines):
        texts += list(line.text) if any(map(is_han, line.text)) else [line.text]
    return texts


def estimate_seconds(text: str, language: str) -> float:
    """Duration of a text in speech: a line fitted to the embedded corpus."""
    return 0.22 + 0.163 * len(text) if language == "zh" else 0.41 + 0.048 * len(text)


def perform(entry: Script, studio: Studio) -> Record:
    """Make the record of a script, or raise Rejected if no voice was understood."""
    spoken: dict[int, SpokenLine] = {}
    voices: dict[int, str] = {}
    for speaker, takes in enumerate(entry.casts):
        takes = tuple(take for take in takes if take[0] not in voices.values())
        voices[speaker] = _speak(entry, speaker, takes, studio, spoken)
    parts = []
    for number, line in enumerate(entry.lines):
        part = Part(text=line.text, translation=line.translation, role=line.role)
        if line.speaker is not None:
            part = dataclasses.replace(
                part,
                audio=spoken[number].audio,
                seconds=spoken[number].seconds,
                words=spoken[number].words,
                speaker=voices[line.speaker],
            )
        parts.append(part)
    return Record(entry.id, entry.kind, entry.language, tuple(parts), entry.source)


def _speak(
    entry: Script, speaker: int, takes: Takes, studio: Studio, spoken: dict[int, SpokenLine]
) -> str:
    """Speak all lines of a speaker in the first voice that is understood; returns the voice."""
    lines = [(i, line.text) for i, line in enumerate(entry.lines) if line.speaker == speaker]
    failures = []
    for voice, speed in takes:
        results = {}
        for number, text in lines:
            try:
                results[number] = studio.say(text, entry.language, voice, speed)
            except SpeechToolError as error:
                studio.check(entry.language, voice)
                raise Rejected("cannot be said", str(error)) from None
            heard = results[number].heard
            error = sound_error_rate(text, heard, entry.language)
            if error > entry.limit:
                failures.append(f"{voice}: {text!r} heard as {heard!r} ({error:.2f})")
                break
        else:
            spoken.update(results)
            return voice
    raise Rejected("not understood", "; ".join(failures))
