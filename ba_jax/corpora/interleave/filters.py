"""Reasons not to trust a recogniser's output.

docs/experiments.md has the measurements behind the defaults of `TranscriptLimits`.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence

from ba_jax.speech.interfaces import Heard
from ba_jax.speech.languages import language_pack
from ba_jax.speech.text_norm import for_scoring


@dataclasses.dataclass(frozen=True)
class TranscriptLimits:
    """Bounds of acceptable transcripts.

    Attributes:
      confidence: least mean probability of the recogniser's tokens.
      no_speech: largest probability of no speech.
      slowest, fastest_en, fastest_zh: words (as in English) or characters (as in Mandarin) a
        second of speech.
      script: least share of letters in the language's script.
      loops: most consecutive repetitions of a phrase.
      disagreement: largest difference between two transcripts, see `disagreement`.
    """

    confidence: float = 0.6
    no_speech: float = 0.6
    slowest: float = 0.5
    fastest_en: float = 5.5
    fastest_zh: float = 9.0
    script: float = 0.8
    loops: int = 3
    disagreement: float = 0.2


def to_units(text: str, language: str) -> list[str]:
    """The units that differences are counted in: normalised words or characters (Mandarin)."""
    normalised = for_scoring(text, language)
    return normalised.split() if language_pack(language).unit == "word" else list(normalised)


def disagreement(first: str, second: str, language: str) -> float:
    """The edit distance of two transcripts by the longer one's length, 0 to 1.

    "25 %" agrees with "twenty-five percent", case and punctuation do not count; two empty ones
    agree.
    """
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(to_units(first, language), to_units(second, language))


def find_fault(
    heard: Heard, seconds: float, language: str, limits: TranscriptLimits
) -> tuple[str, str] | None:
    """The first reason not to use a transcript of `seconds` of speech, pauses not counted.

    Returns:
      (reason, value and expected value), or None if it can be used.
    """
    if heard.no_speech > limits.no_speech:
        return "probably no speech", f"{heard.no_speech:.2f}, expected <= {limits.no_speech}"
    units = to_units(heard.text, language)
    if not units:
        return "empty transcript", f"{heard.text!r}"
    if heard.confidence < limits.confidence:
        return "low confidence", f"{heard.confidence:.2f}, expected >= {limits.confidence}"
    times, length = find_loop(units)
    if is_loop(times, length, limits.loops):
        return "repetition", f"{length} words {times} times in {heard.text[:60]!r}"
    share = script_share(heard.text, language)
    if share < limits.script:
        return "other language", f"{share:.2f} {language} in {heard.text[:60]!r}"
    rate = len(units) / max(seconds, 1e-3)
    fastest = limits.fastest_en if language_pack(language).unit == "word" else limits.fastest_zh
    if not limits.slowest <= rate <= fastest:
        return "speech rate", f"{rate:.1f} a second, expected {limits.slowest} to {fastest}"
    return None


def find_loop(units: Sequence[str]) -> tuple[int, int]:
    """The most repeated phrase: (consecutive repetitions, its number of units).

    Ties go to the longest phrase; (1, 0) if nothing is repeated.
    """
    best = (1, 0)
    for length in range(1, len(units) // 2 + 1):
        run = 0  # units in a row that equal the one `length` before
        for i in range(length, len(units)):
            run = run + 1 if units[i] == units[i - length] else 0
            best = max(best, (run // length + 1, length)) if run >= length else best
    return best


def is_loop(times: int, length: int, most: int) -> bool:
    """Whether a phrase is repeated too often; single words ("no, no, no, no") may twice more."""
    return times > (most + 2 if length == 1 else most)


def script_share(text: str, language: str) -> float:
    """The share of letters in the language's script; 1 without letters or a script of its own."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return 1.0
    script = language_pack(language).script or ("",)
    return sum(unicodedata.name(c, "").startswith(script) for c in letters) / len(letters)
