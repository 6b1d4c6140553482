"""Kokoro's phonemes as the phones of pocketsphinx's American English acoustic model, and back.

Mandarin sounds get the nearest phones: alignment only has to tell neighbours apart.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from ba_jax.speech.interfaces import SpeechToolError


def _table(rows: str) -> dict[str, str]:
    """A table from "key value, key value, ..."; a value may have several words."""
    return dict(row.strip().split(maxsplit=1) for row in rows.split(","))


_SHARED = _table(
    """
    f F, l L, m M, n N, s S, w W, j Y, ŋ NG, h HH, ə AH, ɛ EH, i IY, u UW, ʊ UH, ɔ AO
    """
)
_ENGLISH = _SHARED | _table(
    """
    A EY, I AY, O OW, Q OW, W AW, Y OY, a AE, æ AE, ɑ AA, ɒ AA, ɐ AH, ʌ AH, ᵊ AH, ɜɹ ER, əɹ ER,
    ɜ ER, ɪ IH, ᵻ IH, b B, d D, k K, p P, t T, T D, v V, z Z, ð DH, ɡ G, ɹ R, ʃ SH, ʒ ZH, ʤ JH,
    ʧ CH, θ TH
    """
)
_MANDARIN = _SHARED | _table(
    """
    p B, pʰ P, t D, tʰ T, k G, kʰ K, ʨ JH, ʨʰ CH, ꭧ JH, ꭧʰ CH, ʦ D Z, ʦʰ T S, ɕ SH, ʂ SH, x HH,
    ɻ R, ɥ Y, y IY, a AA, ai AY, au AW, e EH, ei EY, o AO, ou OW, ɤ AH, ɚ ER, ɨ IH
    """
)
_UNSAID = re.compile("[ˈˌː→↗↘↓ ̩]")


@functools.cache
def _pattern(language: str) -> re.Pattern:
    longest_first = sorted(_phones_of(language), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def _phones_of(language: str) -> Mapping[str, str]:
    return _ENGLISH if language == "en" else _MANDARIN


def phones(phonemes: str, language: str) -> str:
    """Convert phonemes to phones, separated by spaces."""
    plain = _UNSAID.sub("", phonemes)
    pattern, table = _pattern(language), _phones_of(language)
    if rest := pattern.sub("", plain):
        raise SpeechToolError(f"phonemes {rest!r} of {phonemes!r} are none of {language!r}")
    return " ".join(table[match] for match in pattern.findall(plain))


# --- back -----------------------------------------------------------------------------------------

_AMERICAN_OF = _table(
    """
    AA ɑ, AE æ, AH ʌ, AO ɔ, AW W, AY I, EH ɛ, ER ɜɹ, EY A, IH ɪ, IY i, OW O, OY Y, UH ʊ, UW u,
    B b, CH ʧ, D d, DH ð, F f, G ɡ, HH h, JH ʤ, K k, L l, M m, N n, NG ŋ, P p, R ɹ, S s, SH ʃ,
    T t, TH θ, V v, W w, Y j, Z z, ZH ʒ
    """
)
_BRITISH_OF = _AMERICAN_OF | _table("AA ɒ, AE a, AO ɔː, ER ɜː, IY iː, OW Q, UW uː")
_BRITISH_BEFORE_R = _table("AA ɑː, EH ɛː, IH ɪə, IY ɪə, UH ʊə, UW ʊə")
_STRESS = {"0": "", "1": "ˈ", "2": "ˌ"}


def phonemes(phones: str, british: bool) -> str:
    """Convert CMUdict's phones with stress to Kokoro's phonemes: "HH AH0 L OW1" -> "həlˈO".

    British voices drop every r that no vowel follows.
    """
    parts = phones.split()
    table = _BRITISH_OF if british else _AMERICAN_OF
    result = ""
    for number, part in enumerate(parts):
        phone, stress = part.rstrip("012"), part[-1] if part[-1].isdigit() else ""
        after = parts[number + 1] if number + 1 < len(parts) else ""
        vowel_after = after[-1:].isdigit()
        if british and phone == "R" and not vowel_after:
            continue
        sound = table[phone]
        if british and after == "R" and not "".join(parts[number + 2 : number + 3])[-1:].isdigit():
            sound = _BRITISH_BEFORE_R.get(phone, sound)
        if stress == "0":
            sound = {"AH": "ə", "ER": "ə" if british and not vowel_after else "əɹ"}.get(
                phone, sound
            )
            sound = "i" if phone == "IY" else sound
        elif british and phone == "ER" and vowel_after:
            sound = "ɜːɹ"
        # Between vowels, the second of them unstressed, an American t is a tap.
        if phone == "T" and not british and after.endswith("0") and number:
            before = parts[number - 1]
            sound = "ɾ" if before[-1].isdigit() or before == "R" else sound
        result += _STRESS.get(stress, "") + sound
    return result
