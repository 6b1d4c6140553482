"""How far two transcripts differ: words in English, characters in Mandarin.

Both are brought to one form first, so that "25 %" agrees with "twenty-five percent" and "二十五"
with "25": by Whisper's English normaliser (`whisper-normalizer`) and by `cn2an`.
"""

from __future__ import annotations

import functools
import unicodedata


@functools.cache
def _english():
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


def to_units(text: str, language: str) -> list[str]:
    """What the error is counted in: words of normalised English; Mandarin characters.

    In a Mandarin text a run of Latin letters is one unit. Punctuation and case do not count.
    """
    if language == "en":
        return _english()(text).split()
    import cn2an

    try:
        text = cn2an.transform(text, "an2cn")
    except ValueError:  # a number that it cannot read: compared as it is written
        pass
    units, latin = [], ""
    for character in unicodedata.normalize("NFKC", text).casefold() + " ":
        if character.isascii() and character.isalnum():
            latin += character
            continue
        if latin:
            units.append(latin)
            latin = ""
        if character.isalnum():
            units.append(character)
    return units


def error_rate(reference: str, hypothesis: str, language: str) -> float:
    """Word error rate (English) or character error rate (Mandarin), 0 or more.

    A hypothesis to an empty reference counts 1 an inserted unit.
    """
    return _errors(to_units(reference, language), to_units(hypothesis, language))


def disagreement(first: str, second: str, language: str) -> float:
    """Edits between two transcripts, neither of which is right, by the longer one: 0 to 1."""
    a, b = to_units(first, language), to_units(second, language)
    if len(a) < len(b):
        a, b = b, a
    return _errors(a, b)


def _errors(reference: list[str], hypothesis: list[str]) -> float:
    if not reference:
        return float(len(hypothesis))
    import jiwer

    if not hypothesis:
        return 1.0
    return jiwer.wer(" ".join(reference), " ".join(hypothesis))
