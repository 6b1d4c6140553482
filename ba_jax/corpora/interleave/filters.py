"""What of a recogniser's output is not to be trusted, and why.

The defaults of `Limits` and what they were measured on are in `ba_jax.corpora.sources.crawl`.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence

from ba_jax.corpora.interleave.agreement import to_units
from ba_jax.speech.interfaces import Heard


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is accepted.

    Attributes:
      confidence: least mean probability of the recogniser's tokens.
      no_speech: largest probability that nobody speaks.
      slowest, fastest: words (English) or characters (Mandarin) a second of speech.
      script: least share of letters in the language's script.
      loops: most times that a phrase may follow itself.
      disagreement: largest difference between two transcripts, see `agreement`.
    """

    confidence: float = 0.6
    no_speech: float = 0.6
    slowest: float = 0.5
    fastest_en: float = 5.5
    fastest_zh: float = 9.0
    script: float = 0.8
    loops: int = 3
    disagreement: float = 0.2


def find_fault(
    heard: Heard, seconds: float, language: str, limits: Limits
) -> tuple[str, str] | None:
    """The first reason not to use what was recognised.

    Args:
      heard: the recogniser's output.
      seconds: of speech that it stands for, pauses left out.
      language: expected, ISO 639-1.

    Returns:
      (reason, value and what was expected), or None if it can be used.
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
    fastest = limits.fastest_zh if language == "zh" else limits.fastest_en
    if not limits.slowest <= rate <= fastest:
        return "speech rate", f"{rate:.1f} a second, expected {limits.slowest} to {fastest}"
    return None


def find_loop(units: Sequence[str]) -> tuple[int, int]:
    """The phrase that follows itself most: (how many times in a row, its number of units).

    Of phrases as often repeated the longest counts; (1, 0) if nothing follows itself.
    """
    best = (1, 0)
    for length in range(1, len(units) // 2 + 1):
        run = 0  # units in a row that equal the one `length` before
        for i in range(length, len(units)):
            run = run + 1 if units[i] == units[i - length] else 0
            best = max(best, (run // length + 1, length)) if run >= length else best
    return best


def is_loop(times: int, length: int, most: int) -> bool:
    """A phrase repeated too often; single words, as in "no, no, no, no", are given two more."""
    return times > (most + 2 if length == 1 else most)


def script_share(text: str, language: str) -> float:
    """The share of letters in the language's script, Latin or Han; 1 without letters."""
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return 1.0
    script = "CJK UNIFIED" if language == "zh" else "LATIN"
    return sum(unicodedata.name(c, "").startswith(script) for c in letters) / len(letters)
