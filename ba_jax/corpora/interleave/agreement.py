"""How far two transcripts of the same speech differ, neither of which is known to be right."""

from __future__ import annotations

from ba_jax.speech.text_norm import for_scoring


def to_units(text: str, language: str) -> list[str]:
    """What differences are counted in: words of normalised English, characters of Mandarin."""
    said = for_scoring(text, language)
    if language == "zh":
        return list(said)
    return [word for word in said.split() if any(c.isalnum() for c in word)]


def disagreement(first: str, second: str, language: str) -> float:
    """Edits from one transcript to the other, by the longer one's length: 0 to 1.

    "25 %" agrees with "twenty-five percent", case and punctuation do not count; two empty ones
    agree.
    """
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(to_units(first, language), to_units(second, language))
