"""Pronounce English words by the lexicons of misaki, without a part-of-speech tagger.

Phonemes are those that Kokoro was trained on. Names that misaki lacks are looked up in the CMU
dictionary. A word that no lexicon has, also not as a regular form or compound, is an error: a guess
would be recorded as if it were correct.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence

from ba_jax.speech import arpabet, assets
from ba_jax.speech.interfaces import SpeechToolError

VOWELS = frozenset("AIOQWYaiuæɑɒɔəɛɜɪʊʌᵻɐ")
_PRIMARY, _SECONDARY = "ˈ", "ˌ"

# Words that a verb, or a noun, follows: enough to tell "to use" from "the use".
_BEFORE_VERB = frozenset(
    "to will would can could shall should may might must do does did don't doesn't didn't won't "
    "can't couldn't wouldn't shouldn't i you we they who let's please not".split()
)
_BEFORE_NOUN = frozenset(
    "a an the this that these those my your his her its our their some any no every each of "
    "new good great little big".split()
)
_BEFORE_PARTICIPLE = frozenset("have has had having i've you've we've they've".split())


@functools.cache
def _lexicon(british: bool) -> Mapping[str, str | Mapping[str, str | None]]:
    """Word -> phonemes, or part of speech -> phonemes."""
    folder = assets.ensure("misaki")
    words = {}
    # The second, checked by hand, overrides the first.
    for grade in ("silver", "gold"):
        file = folder / f"{'gb' if british else 'us'}_{grade}.json"
        words |= json.loads(file.read_text(encoding="utf-8"))
    return words


@functools.cache
def _cmudict() -> Mapping[str, str]:
    """Word -> phones of the CMU dictionary."""
    text = (assets.ensure("cmudict") / "cmudict.js").read_text(encoding="utf-8")
    return dict(re.findall(r'^ *"?([a-z\'.-]+)"?: "([A-Z0-2 ]+)",?$', text, re.MULTILINE))


def _pronounce_name(word: str, british: bool) -> str | None:
    """Pronounce a word, or its genitive, by the CMU dictionary."""
    if phones := _cmudict().get(word):
        return arpabet.phonemes(phones, british)
    if word.endswith("'s") and (phones := _cmudict().get(word[:-2])):
        return _plural(arpabet.phonemes(phones, british), british)
    return None


def _find(word: str, british: bool):
    words = _lexicon(british)
    for form in dict.fromkeys((word, word.lower(), word.lower().capitalize())):
        if form in words:
            return words[form]
    return None


def _stress(phonemes: str, mark: str) -> str:
    """Put a stress mark before the first vowel of phonemes without stress."""
    if _PRIMARY in phonemes or _SECONDARY in phonemes:
        return phonemes
    for i, phoneme in enumerate(phonemes):
        if phoneme in VOWELS:
            return phonemes[:i] + mark + phonemes[i:]
    return phonemes


def _spell(letters: str, british: bool) -> str:
    names = [_lexicon(british)[letter.upper()].lstrip("ˈˌ") for letter in letters]
    names = [_stress(name, _SECONDARY) for name in names]
    names[-1] = names[-1].replace(_SECONDARY, _PRIMARY, 1)
    return "".join(names)


def _choose(entry, tag: str, is_last: bool) -> str | None:
    if not isinstance(entry, Mapping):
        return entry
    if is_last and entry.get("None"):
        return entry["None"]
    return entry.get(tag) or entry["DEFAULT"]


def _plural(stem: str, british: bool) -> str:
    if stem[-1] in "ptkfθ":
        return stem + "s"
    if stem[-1] in "szʃʒʧʤ":
        return stem + ("ɪz" if british else "ᵻz")
    return stem + "z"


def _past(stem: str, british: bool) -> str:
    if stem[-1] in "pkfθʃsʧ":
        return stem + "t"
    if stem[-1] in "td":
        if stem[-1] == "t" and not british and len(stem) > 1 and stem[-2] in VOWELS | {"ɹ"}:
            stem = stem[:-1] + "ɾ"
        return stem + ("ɪd" if british else "ᵻd")
    return stem + "d"


def _progressive(stem: str, british: bool) -> str:
    if stem[-1] == "t" and not british and len(stem) > 1 and stem[-2] in VOWELS | {"ɹ"}:
        stem = stem[:-1] + "ɾ"
    if british and stem[-1] in "ɜɔɑː":
        stem += "ɹ"
    return stem + "ɪŋ"


# Ending of the word, ending of its stem, pronunciation of the ending.
_ENDINGS = (
    ("'s", "", _plural),
    ("s'", "s", lambda stem, british: stem),
    ("s'", "", _plural),
    ("ies", "y", _plural),
    ("es", "", _plural),
    ("s", "", _plural),
    ("ied", "y", _past),
    ("ed", "e", _past),
    ("ed", "", _past),
    ("ing", "", _progressive),
    ("ing", "e", _progressive),
    ("in'", "ing", lambda stem, british: stem[:-1] + "n"),
    ("ly", "", lambda stem, british: stem + ("li" if stem[-1] != "l" else "i")),
    ("ness", "", lambda stem, british: stem + "nəs"),
    ("less", "", lambda stem, british: stem + "ləs"),
    ("'ll", "", lambda stem, british: stem + "ᵊl"),
    ("'d", "", _past),
    ("'ve", "", lambda stem, british: stem + "əv"),
    ("'re", "", lambda stem, british: stem + ("ə" if british else "əɹ")),
)


def _inflect(word: str, tag: str, british: bool) -> str | None:
    for ending, instead, say in _ENDINGS:
        stem = word[: -len(ending)] + instead
        if not word.endswith(ending) or len(stem) < 2:
            continue
        entry = _find(stem, british)
        if entry is None and ending in ("ed", "ing") and re.search(r"([bdgklmnprt])\1$", stem):
            entry = _find(stem[:-1], british)
        if entry is not None and (phonemes := _choose(entry, tag, False)):
            return say(phonemes, british)
    return None


def _pronounce_compound(word: str, british: bool) -> str | None:
    """The phonemes of a compound ("hometown") of two words, if only one division is possible."""
    words = _lexicon(british)
    compounds = []
    for cut in range(3, len(word) - 2):
        first, second = words.get(word[:cut]), words.get(word[cut:])
        if second is None and word[cut:].endswith("s"):
            second = _inflect(word[cut:], "NOUN", british)
        if first is not None and second is not None:
            heads = (_choose(first, "", False), _choose(second, "NOUN", False))
            if all(heads):
                compounds.append(heads[0] + heads[1].replace(_PRIMARY, _SECONDARY))
    return compounds[0] if len(compounds) == 1 else None


def _guess_tag(previous: str) -> str:
    if previous in _BEFORE_PARTICIPLE:
        return "VBN"
    if previous in _BEFORE_VERB:
        return "VERB"
    return "NOUN" if previous in _BEFORE_NOUN else ""


def _function_word(word: str, next_vowel: bool | None, british: bool) -> str | None:
    """Words whose pronunciation depends on the next sound; `next_vowel` is None before a pause."""
    if word in ("a", "an"):
        return "ɐ" if word == "a" else "ɐn"
    if word == "the":
        return "ði" if next_vowel else "ðə"
    if word == "to":
        return {None: "tu", False: "tə", True: "tʊ"}[next_vowel]
    if word == "in":
        return "ˈɪn" if next_vowel is None else "ɪn"
    if word == "i":
        return "ˌI"
    return None


def pronounce(words: Sequence[str], pauses: Sequence[bool], british: bool = False) -> list[str]:
    """Convert the words of a text to phonemes.

    Args:
      words: letters with apostrophes inside; no digits, no other symbols.
      pauses: whether punctuation, or the end, makes a pause after each word.
      british: accent, else American.
    """
    result: list[str] = [""] * len(words)
    next_vowel: bool | None = None
    for i in reversed(range(len(words))):
        if pauses[i]:
            next_vowel = None
        previous = words[i - 1].lower() if i and not pauses[i - 1] else ""
        beside = [*words[max(0, i - 1) : i], *words[i + 1 : i + 2]]
        is_shout = any(len(word) > 1 and word.isupper() for word in beside)
        result[i] = _pronounce_word(words[i], _guess_tag(previous), next_vowel, british, is_shout)
        first = next((p for p in result[i] if p not in "ˈˌ"), "")
        next_vowel = first in VOWELS
    return result


def _pronounce_word(
    written: str, tag: str, next_vowel: bool | None, british: bool, in_shout: bool = False
) -> str:
    word = written.replace("’", "'").replace("‘", "'")
    lower = word.lower()
    is_shout = len(word) > 1 and word.isupper()
    if not is_shout and word != "A":
        if phonemes := _function_word(lower, next_vowel, british):
            return phonemes
    if word == "A" and next_vowel is not None:
        return "ɐ"
    phonemes = None
    entry = _lexicon(british).get(word) if is_shout else _find(word, british)
    # Capitals of a word that is not written so: emphasis if it is long, else an acronym.
    if is_shout and entry is None and (len(word) > 3 or in_shout):
        entry = _find(word, british)
    # The lexicon marks "US" and "IT": spelt where they are nouns, in capitals among other words.
    is_letters = isinstance(entry, Mapping) and "NOUN" in entry and entry["NOUN"] is None
    if is_shout and (entry is None or (is_letters and not in_shout)):
        if word.isalpha() and word.isascii():
            return _spell(word, british)
    if entry is not None:
        phonemes = _choose(entry, tag, next_vowel is None)
    elif len(word) == 1 and word.isascii() and word.isalpha():
        phonemes = _spell(word, british)
    if not phonemes:
        phonemes = _inflect(lower, tag, british)
    if not phonemes:
        phonemes = _pronounce_name(lower, british)
    if not phonemes and word.islower():
        phonemes = _pronounce_compound(word, british)
    if not phonemes:
        simpler = _simplify(word)
        if not simpler:
            raise SpeechToolError(
                f"the English word {written!r} is in no lexicon: expected a word of misaki's "
                "lexicons or the CMU dictionary"
            )
        return "".join(_pronounce_word(part, tag, next_vowel, british) for part in simpler)
    if word[0].isupper() and word != "I":
        phonemes = _stress(phonemes, _PRIMARY if is_shout else _SECONDARY)
    # The released Kokoro's symbols for the tap and the glottal stop.
    return phonemes.replace("ɾ", "T").replace("ʔ", "t")


def _simplify(word: str) -> list[str]:
    """The word without accents, or the parts of "WiFi"; [] if it cannot be simplified."""
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    if plain != word:
        return [plain] if plain else []
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z']+|[A-Z]", word)
    return parts if len(parts) > 1 else []
