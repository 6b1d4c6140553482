"""The corpus that comes with the package: English and Mandarin speech of many voices.

    python -m ba_jax.corpora --config=configs/prepare.py:embedded --out=DIR

    facts, HSK sentences, chatterbot dialogues -> scripts -> Kokoro's voices -> Whisper's check

`size="large"` is the same recipe with every closed sentence by 20 voices and every open one by 4.
Test and validation are the same sentences at both sizes.

    size      items   speech            as Opus   CPU-hours to make
    embedded  2,478   46 min (made)     15 MB     0.6
    large     55,838  36 h (estimated)  0.65 GB   30

The estimate is that of `--dry_run`; of 60 items of "large" made at random, 5 % were not understood
and the others took 127.1 s where 127.0 s had been estimated, and 0.84 CPU-seconds a second.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from ba_jax.corpora.embedded import open_part, script
from ba_jax.corpora.embedded.script import Script
from ba_jax.corpora.embedded.studio import Studio, Utterance, mistaken
from ba_jax.corpora.embedded.voices import Takes
from ba_jax.corpora.encode import CODINGS
from ba_jax.corpora.sources.base import Item, Rejected, Rejection
from ba_jax.corpora.sources.listing import SourceError
from ba_jax.data.record import LANGUAGES, Part, Record
from ba_jax.speech.assets import ensure
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.text_norm import is_han

TOKENIZER = "tokenizer.model"
"""The SentencePiece model beside the records."""


@dataclasses.dataclass(frozen=True)
class EmbeddedCorpus:
    """A source of spoken and written records in two languages.

    Attributes:
      size: "embedded" or "large".
      seed: of the held-out sentences, of voices and speeds.
      coding: of the audio, "opus" or "flac".
      vocabulary: at most so many tokens in the text tokenizer.
      threads: of each process's synthesiser and recogniser.
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
        for field, allowed in (("size", tuple(script.SIZES)), ("coding", CODINGS)):
            if (value := getattr(self, field)) not in allowed:
                raise SourceError(f"{field} = {value!r}, expected one of {allowed}")

    def items(self) -> Iterator[Item | Rejection]:
        """One item for each script, and what the texts have that is not used."""
        scripts, rejected = self._written
        yield from rejected
        for one in scripts:
            seconds = sum(
                estimate_seconds(line.text, one.language)
                for line in one.lines
                if line.speaker is not None
            )
            yield Item(one.id, one.split, f"{one.source}:{one.id}", one, seconds)

    @functools.cached_property
    def _written(self) -> tuple[list[Script], list[Rejection]]:
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
        """Speaks a script."""
        yield perform(item.payload, self._studio)

    @functools.cached_property
    def _studio(self) -> Studio:
        return Studio(self.coding, self.threads)

    def __getstate__(self):
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def finish(self, directory: Path) -> None:
        """Trains the text tokenizer on everything that is written in the training split."""
        from ba_jax.corpora.make_tokenizer import train_sentencepiece

        train_sentencepiece(
            training_texts(self._written[0]), directory / TOKENIZER, self.vocabulary
        )


def training_texts(scripts: list[Script]) -> list[str]:
    """All texts of the training split for the tokenizer, in order; Mandarin one by one character.

    So every Mandarin token is a character. Else "three plus four" would be a token of its own that
    says nothing about "four plus three", and a sentence held out would have tokens never trained.
    """
    texts = []
    written = (one for one in scripts if one.split == "train" and not one.repeats)
    for line in (line for one in written for line in one.lines):
        texts += list(line.text) if any(map(is_han, line.text)) else [line.text]
    return texts


def estimate_seconds(text: str, language: str) -> float:
    """How long a text will be in speech: the line that fits the embedded corpus best."""
    return 0.22 + 0.163 * len(text) if language == "zh" else 0.41 + 0.048 * len(text)


def perform(one: Script, studio: Studio) -> Record:
    """Makes a record of a script.

    Raises:
      Rejected: no voice was understood.
      SpeechToolError: a tool that is missing.
    """
    spoken: dict[int, Utterance] = {}
    voices: dict[int, str] = {}
    for speaker, takes in enumerate(one.casts):
        takes = tuple(take for take in takes if take[0] not in voices.values())
        voices[speaker] = _speak(one, speaker, takes, studio, spoken)
    parts = []
    for number, line in enumerate(one.lines):
        part = Part(text=line.text, translation=line.translation, role=line.role)
        if line.speaker is not None:
            utterance = spoken[number]
            part = dataclasses.replace(
                part,
                audio=utterance.audio,
                seconds=utterance.seconds,
                words=utterance.words,
                speaker=voices[line.speaker],
            )
        parts.append(part)
    return Record(one.id, one.kind, one.language, tuple(parts), one.source)


def _speak(
    one: Script, speaker: int, takes: Takes, studio: Studio, spoken: dict[int, Utterance]
) -> str:
    """Speaks all lines of a speaker in the first voice that is understood; returns the voice."""
    lines = [(i, line.text) for i, line in enumerate(one.lines) if line.speaker == speaker]
    failures = []
    for voice, speed in takes:
        said = {}
        for number, text in lines:
            try:
                said[number] = studio.say(text, one.language, voice, speed)
            except SpeechToolError as error:
                studio.check(one.language, voice)
                raise Rejected("cannot be said", str(error)) from None
            error = mistaken(text, said[number].heard, one.language)
            if error > one.limit:
                failures.append(f"{voice}: {text!r} heard as {said[number].heard!r} ({error:.2f})")
                break
        else:
            spoken.update(said)
            return voice
    raise Rejected("not understood", "; ".join(failures))
