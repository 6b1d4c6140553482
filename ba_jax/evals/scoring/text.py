"""Scores of texts: errors and units, added over a whole corpus before they are divided.

Units are words in English and, in Mandarin, characters or toneless syllables. Texts are normalised
by `ba_jax.speech.text_norm.for_scoring` (Whisper's normaliser in English). A recogniser of
Mandarin guesses among homophones (ten, four and is are one sound or nearly), so what was SAID is
scored in syllables, what was WRITTEN in characters.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

from ba_jax.data.corpus import facts
from ba_jax.data.record import LANGUAGES
from ba_jax.speech.text_norm import for_scoring

UNITS = ("word", "character", "syllable")
WRITTEN = {"en": "word", "zh": "character"}
"""Unit that written text is scored in."""
SAID = {"en": "word", "zh": "syllable"}
"""Unit that recognised speech is scored in."""
NORMALISERS = {
    "en": "English: Whisper's normaliser (package whisper-normalizer), signs between numbers said",
    "zh": "Mandarin: simplified (OpenCC t2s), numbers in characters, no punctuation, no spaces",
}
"""Of each language, by name: what is done to reference and hypothesis before they are compared."""
MOST_ERRORS = 1 / 3
"""Of its units that an answer may have wrong around its key, see `answers`."""

_BETWEEN_NUMBERS = (("+", "plus"), ("-\u2212\u2013", "minus"), ("=", "equals"))


@dataclasses.dataclass(frozen=True)
class Tally:
    """Errors (substituted, left out, put in) among units of the reference."""

    errors: int = 0
    units: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.errors + other.errors, self.units + other.units)

    @property
    def rate(self) -> float:
        """Errors a unit.

        Raises:
          ValueError: no units.
        """
        if not self.units:
            raise ValueError("an error rate of nothing: expected at least one unit")
        return self.errors / self.units


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum."""
    return functools.reduce(Tally.__add__, tallies, Tally())


def normalised(text: str, language: str) -> str:
    """A text as it is compared; signs between numbers and before them are words.

    Raises:
      ValueError: a language that is none of LANGUAGES.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}, expected one of {LANGUAGES}")
    if language != "en":
        return for_scoring(text, language)
    for signs, word in _BETWEEN_NUMBERS:
        text = re.sub(rf"(?<=\d)\s*[{re.escape(signs)}]\s*(?=\d)", f" {word} ", text)
    # The normaliser writes plus four as +4 and minus one as -one.
    text = for_scoring(text, language)
    text = re.sub(r"(?<!\S)\+(?=\S)", "plus ", text)
    return re.sub(r"(?<!\S)-(?=\S)", "minus ", text)


def units(text: str, language: str, unit: str) -> list[str]:
    """A text as the units it is scored in.

    Raises:
      ValueError: an unknown language or unit, or one that the language is not scored in.
    """
    text = normalised(text, language)
    if unit not in UNITS or (unit == "word") != (language == "en"):
        raise ValueError(f"unit {unit!r} of language {language!r}, expected one of {UNITS}")
    if unit == "word":
        return text.split()
    return list(text) if unit == "character" else _syllables(text)


def _syllables(text: str) -> list[str]:
    import pypinyin

    return pypinyin.lazy_pinyin(text)


def score(reference: str, hypothesis: str, language: str, unit: str) -> Tally:
    """Errors of one text.

    Raises:
      ValueError: a reference without units, or as `units`.
    """
    found = tally(reference, hypothesis, language, unit)
    if not found.units:
        raise ValueError(f"reference {reference!r} has no {unit}s, expected at least one")
    return found


def tally(reference: str, hypothesis: str, language: str, unit: str) -> Tally:
    """Errors of one text; where nothing was to be said, all that is said is put in.

    Raises:
      ValueError: as `units`.
    """
    import jiwer

    want, got = units(reference, language, unit), units(hypothesis, language, unit)
    if not want:
        return Tally(len(got), 0)
    found = jiwer.process_words(_as_words(want), _as_words(got))
    return Tally(found.substitutions + found.deletions + found.insertions, len(want))


def _as_words(found: list[str]) -> str:
    return " ".join(found)


def equal(reference: str, hypothesis: str, language: str, unit: str) -> bool:
    """The same units."""
    return units(reference, language, unit) == units(hypothesis, language, unit)


def answers(reference: str, heard: str, language: str) -> bool:
    """A spoken answer to a closed question, as a recogniser heard it, is right.

    It is where it equals the reference in `SAID` units; or where at most MOST_ERRORS of those are
    wrong, the key (Monday in "That day is Monday.") is among what was heard, and no other key of
    its category is.
    """
    unit = SAID[language]
    want, got = units(reference, language, unit), units(heard, language, unit)
    if want == got:
        return True
    key = _keys(language).get(tuple(want))
    if key is None or score(reference, heard, language, unit).rate > MOST_ERRORS:
        return False
    own, others = key
    return _holds(got, own) and not any(_holds(got, other) for other in others)


def _holds(text: list[str], key: tuple[str, ...]) -> bool:
    return any(tuple(text[i : i + len(key)]) == key for i in range(len(text) - len(key) + 1))


@functools.cache
def _keys(language: str) -> dict[tuple[str, ...], tuple[tuple[str, ...], set[tuple[str, ...]]]]:
    """Units of a closed answer -> units of its key, and the keys of the answers like it.

    Answers of a category say the same but for the key: what is left of them between the beginning
    and the end that they share.
    """
    of_category: dict[str, set[tuple[str, ...]]] = {}
    for fact in facts.facts():
        own = tuple(units(fact.answers[language], language, SAID[language]))
        of_category.setdefault(fact.category, set()).add(own)
    keys = {}
    for texts in of_category.values():
        before = _shared(texts)
        after = _shared({text[::-1][: len(text) - before - 1] for text in texts})
        cut = {text: text[before : len(text) - after] for text in texts}
        for text, key in cut.items():
            # "white" is no sign of another answer where one's own key holds it.
            others = {k for k in cut.values() if k != key and not _holds(list(key), k)}
            keys[text] = key, others
    return keys


def _shared(texts: Iterable[tuple[str, ...]]) -> int:
    """How many units all texts begin with."""
    count = 0
    for column in zip(*texts, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count
