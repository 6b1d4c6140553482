"""Pronounce Mandarin: pinyin of whole words, in the phonemes that Kokoro was trained on."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Sequence

from ba_jax.speech import english
from ba_jax.speech.interfaces import SpeechToolError, import_tool
from ba_jax.speech.text_norm import is_han

# IPA -> phonemes of Kokoro, in this order: affricates in one letter, syllabic consonants as a
# vowel, tones (of which some contain others) as arrows, no bridge below a glide.
_PHONEMES = {
    **{"ts": "ʦ", "tɕ": "ʨ", "ʈʂ": "\uab67", "ɻ\u0329": "ɨ", "ɹ\u0329": "ɨ"},
    **{"˧˩˧": "↓", "˧˥": "↗", "˥˩": "↘", "˥": "→", "\u032f": ""},
}


@functools.cache
def _segmenter():
    jieba = import_tool("jieba", "jieba")
    jieba.setLogLevel(logging.WARNING)  # it reports its dictionary's loading on stderr
    segmenter = jieba.Tokenizer()
    segmenter.initialize()
    return segmenter


def syllables(word: str) -> list[str]:
    """Phonemes of each character of a word, read as a part of it."""
    from pypinyin import Style, lazy_pinyin

    to_ipa = import_tool("pinyin_to_ipa", "pinyin-to-ipa").pinyin_to_ipa

    pinyin = lazy_pinyin(
        word, style=Style.TONE3, neutral_tone_with_five=True, errors=lambda part: [None] * len(part)
    )
    if len(pinyin) != len(word) or None in pinyin:
        raise SpeechToolError(f"no pinyin for each character of {word!r}, expected Chinese words")
    return [_kokoro("".join(to_ipa(syllable)[0])) for syllable in pinyin]


def _kokoro(ipa: str) -> str:
    """Write a syllable's IPA in the phonemes that Kokoro was trained on."""
    for sound, phoneme in _PHONEMES.items():
        ipa = ipa.replace(sound, phoneme)
    return ipa


def pronounce(spoken: Sequence[str], pauses: Sequence[bool]) -> list[tuple[str, bool]]:
    """Phonemes of the pieces of a text, and whether each ends a word of the language.

    Args:
      spoken: Chinese characters (several for a number) or Latin letters, pronounced in American
        English, spelt if they are no word.
      pauses: whether punctuation, or the end, makes a pause after each piece.
    """
    result: list[tuple[str, bool]] = []
    start = 0
    while start < len(spoken):
        # Up to the next pause: words do not cross it.
        stop = next((i for i in range(start, len(spoken)) if pauses[i]), len(spoken) - 1) + 1
        result += _pronounce_phrase(spoken[start:stop])
        start = stop
    return result


def _pronounce_phrase(spoken: Sequence[str]) -> list[tuple[str, bool]]:
    phonemes: list[str] = []
    ends: list[bool] = []
    for han, run in itertools.groupby("".join(spoken), is_han):
        run = "".join(run)
        if han:
            for word in _segmenter().lcut(run):
                phonemes += syllables(word)
                ends += [False] * (len(word) - 1) + [True]
            continue
        for part in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*|.", run):
            if not part[0].isalpha():
                raise SpeechToolError(f"{part!r} in Mandarin text: expected characters or letters")
            # The last letter carries the phonemes of the whole part.
            phonemes += [""] * (len(part) - 1) + english.pronounce([part], [False])
            ends += [False] * (len(part) - 1) + [True]
    result, place = [], 0
    for piece in spoken:
        inner = slice(place, place + len(piece))
        place += len(piece)
        sounds = "".join(
            p + (" " if end else "") for p, end in zip(phonemes[inner], ends[inner], strict=True)
        )
        result.append((sounds.rstrip(" "), ends[place - 1]))
    return result
