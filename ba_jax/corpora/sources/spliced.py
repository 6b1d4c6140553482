"""New utterances from the words of recorded ones: text and codes cut at words and joined again.

A model soon memorises some minutes of a voice sentence by sentence, and then speaks a new sentence
like the nearest known one; random sequences of words force it to read. The method is unit selection
without costs (Hunt and Black 1996), applied to training data.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from ba_jax.audio.lengths import FRAME_SECONDS
from ba_jax.config import LocalPath, check_at_least, expected
from ba_jax.corpora.sources.base import DerivedSource, Item, Rejected, Rejection, SourceError
from ba_jax.data.examples import NotForTask, space_between, stable_hash, word_bounds
from ba_jax.data.record import Part, Record, RecordError, RecordSource, Word

_DRAWS = 20  # attempts to draw a text that no other split has


@dataclasses.dataclass(frozen=True)
class Spliced(DerivedSource):
    """Spliced utterances of each voice of a dataset with codes and word times.

    A piece is a run of words of one utterance. Its place is drawn by drawing a word of the voice's
    vocabulary first, each with the same probability, so that names come as often as articles. A
    text that another split of the dataset has is drawn again.

    Attributes:
      dataset: a folder that `python -m ba_jax.corpora.tokenize` made.
      split: split of the dataset; the new dataset's only split.
      speakers: voices to splice; () for all.
      sources: `Record.source` of the records to use; () for all.
      name: name of the new dataset.
      utterances: number of utterances of each voice and language.
      pieces: least and most number in an utterance.
      words: least and most number in a piece; fewer if its utterance has no more.
      seed: seed of the draws.
    """

    dataset: LocalPath = ""
    split: str = "train"
    speakers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    name: str = "spliced"
    utterances: int = 1000
    pieces: tuple[int, int] = (1, 4)
    words: tuple[int, int] = (1, 3)
    seed: int = 0

    def __post_init__(self):
        for field in ("pieces", "words"):
            low, high = getattr(self, field)
            if not 1 <= low <= high:
                raise ValueError(f"{field} = {(low, high)}, expected least and most, from 1 on")
        check_at_least(self, utterances=1)

    @property
    def description(self) -> str:
        """The dataset's description, and the change made to it."""
        return self.describe("Its words in other orders.")

    def items(self) -> Iterator[Item | Rejection]:
        """List the utterances to draw; parts that cannot be cut are rejections."""
        pool, dataset = _read_pool(self), stable_hash(json.dumps(self.info, sort_keys=True))
        yield from pool.rejected
        for speaker, language in sorted(pool.voices):
            voice = pool.voices[speaker, language]
            for number in range(self.utterances):
                yield Item(
                    f"{speaker}-{language}-{number:06d}",
                    self.split,
                    f"{self.dataset}: {speaker}, {language}, {len(voice.takes)} utterances",
                    (speaker, language, dataset),  # other codes are another dataset
                )

    def records(self, item: Item) -> Iterator[Record]:
        """Draw an utterance."""
        speaker, language, _ = item.payload
        pool = _read_pool(self)
        rng = np.random.default_rng([self.seed, stable_hash(item.id)])
        for _ in range(_DRAWS):
            part = self._draw_part(pool.voices[speaker, language], rng, speaker, language)
            if _normalise_text(part.text) not in pool.held_out:
                yield Record(item.id, "speech", language, (part,), self.name)
                return
        raise Rejected("a text of another split", f"{part.text!r} in {_DRAWS} draws")

    def _draw_part(
        self, voice: _VoiceInventory, rng: np.random.Generator, speaker: str, language: str
    ) -> Part:
        texts, codes, words, frames = [], [], [], 0
        for _ in range(rng.integers(self.pieces[0], self.pieces[1] + 1)):
            take, word = voice.draw(rng)
            count = min(int(rng.integers(self.words[0], self.words[1] + 1)), len(take.part.words))
            low = max(0, word - count + 1)
            first = int(rng.integers(low, min(word, len(take.part.words) - count) + 1))
            text, piece_NQ, piece_words = take.piece(first, first + count)
            if not text or not len(piece_NQ):
                continue  # a short word between two others
            texts.append(text)
            codes.append(piece_NQ)
            offset = frames * FRAME_SECONDS
            words += [Word(w.text, w.start + offset, w.end + offset) for w in piece_words]
            frames += len(piece_NQ)
        if not frames:
            return self._draw_part(voice, rng, speaker, language)
        return Part(
            space_between(language).join(texts),
            codes_NQ=np.concatenate(codes),
            seconds=frames * FRAME_SECONDS,
            speaker=speaker,
            words=tuple(words),
        )


@dataclasses.dataclass(frozen=True)
class _CuttablePart:
    """A part with its word bounds in letters and in frames (see `word_bounds`)."""

    part: Part
    letters: list[int]
    frames: list[int]

    def piece(self, first: int, end: int) -> tuple[str, np.ndarray, list[Word]]:
        """Text, codes and words `first` to `end`, timed from the piece's start."""
        begin = self.frames[first] * FRAME_SECONDS
        words = [
            Word(w.text, max(0.0, w.start - begin), max(0.0, w.end - begin))
            for w in self.part.words[first:end]
        ]
        text = self.part.text[self.letters[first] : self.letters[end]].strip()
        return text, self.part.codes_NQ[self.frames[first] : self.frames[end]], words


class _VoiceInventory:
    """A voice's utterances, and the places of each word in them."""

    def __init__(self):
        self.takes: list[_CuttablePart] = []
        self._places: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)

    def add(self, take: _CuttablePart) -> None:
        for number, word in enumerate(take.part.words):
            self._places[_normalise_text(word.text)].append((len(self.takes), number))
        self.takes.append(take)

    @functools.cached_property
    def _words(self) -> list[list[tuple[int, int]]]:
        return [places for _, places in sorted(self._places.items())]

    def draw(self, rng: np.random.Generator) -> tuple[_CuttablePart, int]:
        """An utterance and the number of a word in it."""
        places = self._words[rng.integers(len(self._words))]
        take, word = places[rng.integers(len(places))]
        return self.takes[take], word


@dataclasses.dataclass
class _Pool:
    voices: dict[tuple[str, str], _VoiceInventory]
    held_out: set[str]
    rejected: list[Rejection]


@functools.lru_cache(maxsize=2)
def _read_pool(source: Spliced) -> _Pool:
    """Read the utterances to cut, once per process."""
    pool = _Pool({}, set(), [])
    splits = [split["name"] for split in source.info["splits"]]
    if source.split not in splits:
        raise SourceError(f"split = {expected(source.split, sorted(splits))}")
    coded = False
    for split in splits:
        try:
            for number, record in enumerate(RecordSource(source.dataset, split)):
                if split != source.split:
                    pool.held_out |= {_normalise_text(part.text) for part in record.parts}
                    continue
                if source.sources and record.source not in source.sources:
                    continue
                for part in record.parts:
                    is_chosen = not source.speakers or part.speaker in source.speakers
                    if not part.is_spoken or not is_chosen:
                        continue
                    where = f"{source.dataset}: split {split!r}, record {number} ({record.id})"
                    coded |= part.codes_NQ is not None
                    _add(pool, record, part, where)
        except RecordError as error:
            raise SourceError(str(error)) from None
    if not coded:
        raise SourceError(
            f"{source.dataset}: split {source.split!r} has no codes by "
            f"{source.speakers or 'anyone'} from {source.sources or 'any source'}, expected a "
            "dataset of `python -m ba_jax.corpora.tokenize`"
        )
    return pool


def _add(pool: _Pool, record: Record, part: Part, where: str) -> None:
    try:
        if not part.loss:
            raise NotForTask("a part without loss")
        letters, frames = word_bounds(part)
        if any(after < before for before, after in itertools.pairwise(frames)):
            raise NotForTask("word times that are not in order")
    except NotForTask as error:
        pool.rejected.append(Rejection(where, str(error), part.text, part.seconds))
        return
    voice = pool.voices.setdefault((part.speaker, record.language), _VoiceInventory())
    voice.add(_CuttablePart(part, letters, frames))


def _normalise_text(text: str) -> str:
    """The text without case, punctuation and spaces."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())
