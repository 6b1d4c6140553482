"""Scores of texts: errors and units, summed over a corpus before they are divided.

Units are words in English (a sign is a word) and, in Mandarin, characters or toneless syllables.
Texts are normalised by `ba_jax.speech.text_norm.readings` (Whisper's normaliser in English); of the
ways to read numbers such as 3-2, the one with the fewest errors counts. A recogniser of Mandarin
guesses among homophones (ten, four and is sound alike), so speech is scored in syllables and
written text in characters.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ba_jax.data.corpus import facts
from ba_jax.speech.languages import UNITS, language_pack
from ba_jax.speech.text_norm import SCORING_VERSION, is_mark, readings

NORMALISERS = {
    "en": "English: Whisper's normaliser, signs of numbers said",
    "zh": "Mandarin: simplified (OpenCC t2s), numbers in characters, no punctuation, no spaces",
}
"""Language -> normalisation of reference and hypothesis before they are compared."""
_PACKAGES = {
    "en": ("whisper-normalizer",),
    "zh": ("opencc-python-reimplemented", "cn2an", "pypinyin"),
}
"""Language -> packages that a normalisation depends on."""
MOST_ERRORS = 1 / 3
"""Error rate that an answer may have around its key, see `is_answer`."""


def normalisers() -> dict[str, str]:
    """Return each language's normalisation by name and version, for the results."""
    return {
        language: f"{name}; version {SCORING_VERSION} with "
        + ", ".join(map(_installed, _PACKAGES[language]))
        for language, name in NORMALISERS.items()
    }


def _installed(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


class Tally(NamedTuple):
    """Errors (substitutions, deletions, insertions) and units of the reference."""

    errors: int
    units: int


def split_readings(text: str, language: str, unit: str) -> list[list[str]]:
    """Split each of a text's `readings` into words, characters or syllables.

    In Mandarin, a letter of another script is a unit, with its accents and vowel signs.
    """
    normalised = readings(text, language)
    if unit not in UNITS or (unit == "word") != (language_pack(language).unit == "word"):
        raise ValueError(f"unit {unit!r} of language {language!r}, expected one of {UNITS}")
    return [_split(reading, unit) for reading in normalised]


def split_units(text: str, language: str, unit: str) -> list[str]:
    """Split the usual reading of a text into units."""
    return split_readings(text, language, unit)[0]


def _split(text: str, unit: str) -> list[str]:
    if unit == "word":
        text = re.sub(r"(?<!\S)\+(?=\S)", "plus ", text)
        return re.sub(r"(?<!\S)-(?=\S)", "minus ", text).split()
    characters: Iterable[str] = text
    if unit == "syllable":
        import pypinyin

        characters = pypinyin.lazy_pinyin(text, errors=list)
    units: list[str] = []
    for character in characters:
        if units and len(character) == 1 and is_mark(character):
            units[-1] += character
        else:
            units.append(character)
    return units


def tally(reference: str, hypothesis: str, language: str, unit: str) -> Tally:
    """Count the errors of a text; for an empty reference, every unit is an insertion.

    The readings of both texts with the fewest errors count.
    """
    wanted = split_readings(reference, language, unit)
    written = split_readings(hypothesis, language, unit)
    pairs = [_count_errors(want, units) for want in wanted for units in written]
    return min(pairs, key=lambda tally: tally.errors)


def _count_errors(wanted: Sequence[str], written: Sequence[str]) -> Tally:
    import jiwer

    if not wanted:
        return Tally(len(written), 0)
    result = jiwer.process_words(" ".join(wanted), " ".join(written))
    return Tally(result.substitutions + result.deletions + result.insertions, len(wanted))


def score_text(
    reference: str, hypothesis: str | None, language: str, unit: str
) -> dict[str, str | int | bool]:
    """Return a row's reference, hypothesis, errors, units, and whether it is correct.

    A hypothesis of None stands for a failure: every unit is wrong.
    """
    errors, units = tally(reference, hypothesis or "", language, unit)
    return {
        "reference": reference,
        "hypothesis": hypothesis or "",
        "errors": errors,
        "units": units,
        "correct": hypothesis is not None and errors == 0,
    }


def is_answer(reference: str, heard: str, language: str) -> bool:
    """Decide whether a spoken answer to a closed question, as a recogniser heard it, is right.

    It is right if it equals the reference in units of its language's `spoken_unit`. It is also
    right if at most MOST_ERRORS of the units are wrong, the key (Monday in "That day is Monday.")
    is among the units heard, and no other key of its category is.
    """
    unit = language_pack(language).spoken_unit
    errors, count = tally(reference, heard, language, unit)
    if not errors:
        return True
    wanted, units = split_units(reference, language, unit), split_units(heard, language, unit)
    keys = _answer_keys(language).get(tuple(wanted))
    if keys is None or errors / count > MOST_ERRORS:
        return False
    key, other_keys = keys
    return contains(units, key) and not any(contains(units, other) for other in other_keys)


def contains(units: Sequence[str], key: Sequence[str]) -> bool:
    """Decide whether `key` is a run of the units."""
    size = len(key)
    return any(list(units[i : i + size]) == list(key) for i in range(len(units) - size + 1))


@functools.cache
def _answer_keys(
    language: str,
) -> dict[tuple[str, ...], tuple[tuple[str, ...], set[tuple[str, ...]]]]:
    """Map the units of a closed answer to its key, and to the other keys of its category.

    Answers of a category differ in their keys alone: the key is the text between the prefix and the
    suffix that all of them share.
    """
    categories: dict[str, set[tuple[str, ...]]] = {}
    for fact in facts.facts():
        units = tuple(
            split_units(fact.answers[language], language, language_pack(language).spoken_unit)
        )
        categories.setdefault(fact.category, set()).add(units)
    answer_keys = {}
    for answers in categories.values():
        prefix = _shared_prefix(answers)
        suffix = _shared_prefix({answer[::-1][: len(answer) - prefix - 1] for answer in answers})
        keys = {answer: answer[prefix : len(answer) - suffix] for answer in answers}
        for answer, key in keys.items():
            # "white" is no sign of another answer if this answer's key contains it.
            others = {other for other in keys.values() if other != key}
            answer_keys[answer] = key, {other for other in others if not contains(key, other)}
    return answer_keys


def _shared_prefix(texts: Collection[tuple[str, ...]]) -> int:
    """Count the units that all texts begin with."""
    return len(os.path.commonprefix(list(texts)))
