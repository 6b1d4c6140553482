"""Language packs: the facts about a language that making and scoring data depends on.

A language of ISO 639 without an entry has the pack GENERIC: Unicode normalisation, words between
spaces, any script. An entry is needed where a language differs from that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ba_jax.data.record import check_language

UNITS = ("word", "character", "syllable")
ASCII_MARKS = str.maketrans("؟،؛।॥۔។။၊", "?,;.....,")
"""Punctuation of other scripts -> its ASCII form."""
_SENTENCE_ENDS, _CLAUSE_ENDS = ".!?。！？…", ",;:，、；：—"


@dataclasses.dataclass(frozen=True)
class LanguagePack:
    """A language's pack.

    Attributes:
      normaliser: reading of numbers and signs, and normalisation for scores, by name: "english",
        "mandarin", or "generic" (Unicode's, no numbers), see `text_norm`.
      is_spaced: words have spaces between them.
      unit, spoken_unit: units that written text and recognised speech are scored in, of UNITS.
      script: beginnings of the Unicode names of its letters; () for any script.
      sentence_ends, clause_ends: punctuation after which speech pauses.
      letters_a_second: speed of reading letters other than Han; 17 is the mean of six English
        voices of Kokoro (12 to 19).
      voice: the assistant's voice, of the synthesiser Kokoro; "" without one.
    """

    normaliser: str = "generic"
    is_spaced: bool = True
    unit: str = "word"
    spoken_unit: str = "word"
    script: tuple[str, ...] = ()
    sentence_ends: str = _SENTENCE_ENDS
    clause_ends: str = _CLAUSE_ENDS
    letters_a_second: float = 17.0
    voice: str = ""

    @property
    def space(self) -> str:
        """The text between two words."""
        return " " if self.is_spaced else ""


GENERIC = LanguagePack()


def _unspaced(*script: str, **changes) -> LanguagePack:
    """A pack of a language without spaces between words."""
    units = {"is_spaced": False, "unit": "character", "spoken_unit": "character"}
    return LanguagePack(**units | {"script": script} | changes)


PACKS: Mapping[str, LanguagePack] = {
    "en": LanguagePack("english", script=("LATIN",), voice="af_heart"),
    "zh": _unspaced(
        "CJK UNIFIED", normaliser="mandarin", spoken_unit="syllable", voice="zf_xiaoxiao"
    ),
    "yue": _unspaced("CJK UNIFIED"),
    "ja": _unspaced("CJK UNIFIED", "HIRAGANA", "KATAKANA", letters_a_second=8.0),
    # Spaces stand between clauses there.
    "th": _unspaced("THAI", clause_ends=_CLAUSE_ENDS + " "),
    "lo": _unspaced("LAO", clause_ends=_CLAUSE_ENDS + " "),
    "km": _unspaced("KHMER", sentence_ends=_SENTENCE_ENDS + "។", clause_ends=_CLAUSE_ENDS + " "),
    "my": _unspaced("MYANMAR", sentence_ends=_SENTENCE_ENDS + "။", clause_ends=_CLAUSE_ENDS + "၊"),
    "hi": LanguagePack(script=("DEVANAGARI",), sentence_ends=_SENTENCE_ENDS + "।॥"),
    "ar": LanguagePack(
        script=("ARABIC",), sentence_ends=_SENTENCE_ENDS + "؟", clause_ends=_CLAUSE_ENDS + "،؛"
    ),
}
"""Language, a code of ISO 639 -> its pack."""


def language_pack(language: str) -> LanguagePack:
    """The pack of a language; RecordError for what is no code of ISO 639."""
    return PACKS.get(check_language(language), GENERIC)
