"""Kokoro's phonemes as the phones of pocketsphinx's American English acoustic model.

Mandarin sounds are given the nearest phones: alignment only has to tell one from the next.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from ba_jax.data.speech.interfaces import SpeechToolError

_SHARED = {
    "f": "F",
    "l": "L",
    "m": "M",
    "n": "N",
    "s": "S",
    "w": "W",
    "j": "Y",
    "ŋ": "NG",
    "h": "HH",
    "ə": "AH",
    "ɛ": "EH",
    "i": "IY",
    "u": "UW",
    "ʊ": "UH",
    "ɔ": "AO",
}
_ENGLISH = _SHARED | {
    "A": "EY",
    "I": "AY",
    "O": "OW",
    "Q": "OW",
    "W": "AW",
    "Y": "OY",
    "a": "AE",
    "æ": "AE",
    "ɑ": "AA",
    "ɒ": "AA",
    "ɐ": "AH",
    "ʌ": "AH",
    "ᵊ": "AH",
    "ɜɹ": "ER",
    "əɹ": "ER",
    "ɜ": "ER",
    "ɪ": "IH",
    "ᵻ": "IH",
    "b": "B",
    "d": "D",
    "k": "K",
    "p": "P",
    "t": "T",
    "T": "D",
    "v": "V",
    "z": "Z",
    "ð": "DH",
    "ɡ": "G",
    "ɹ": "R",
    "ʃ": "SH",
    "ʒ": "ZH",
    "ʤ": "JH",
    "ʧ": "CH",
    "θ": "TH",
}
_MANDARIN = _SHARED | {
    "p": "B",
    "pʰ": "P",
    "t": "D",
    "tʰ": "T",
    "k": "G",
    "kʰ": "K",
    "ʨ": "JH",
    "ʨʰ": "CH",
    "ꭧ": "JH",
    "ꭧʰ": "CH",
    "ʦ": "D Z",
    "ʦʰ": "T S",
    "ɕ": "SH",
    "ʂ": "SH",
    "x": "HH",
    "ɻ": "R",
    "ɥ": "Y",
    "y": "IY",
    "a": "AA",
    "ai": "AY",
    "au": "AW",
    "e": "EH",
    "ei": "EY",
    "o": "AO",
    "ou": "OW",
    "ɤ": "AH",
    "ɚ": "ER",
    "ɨ": "IH",
}
_UNSAID = re.compile("[ˈˌː→↗↘↓ ̩]")


@functools.cache
def _pattern(language: str) -> re.Pattern:
    longest_first = sorted(_table(language), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _table(language: str) -> Mapping[str, str]:
    return _ENGLISH if language == "en" else _MANDARIN


def phones(phonemes: str, language: str) -> str:
    """Phones with spaces between.

    Raises:
      SpeechToolError: a phoneme of another language.
    """
    plain = _UNSAID.sub("", phonemes)
    pattern, table = _pattern(language), _table(language)
    if rest := pattern.sub("", plain):
        raise SpeechToolError(f"phonemes {rest!r} of {phonemes!r} are none of {language!r}")
    return " ".join(table[match] for match in pattern.findall(plain))
