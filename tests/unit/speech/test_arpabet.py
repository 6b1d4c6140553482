"""Phonemes and phones of the CMU dictionary."""

from __future__ import annotations

import pytest

from ba_jax.speech import arpabet, english, mandarin
from ba_jax.speech.interfaces import SpeechToolError


def say(text: str, british: bool = False) -> list[str]:
    words = text.split()
    return english.pronounce(words, [False] * (len(words) - 1) + [True], british)


def test_phones_of_the_cmu_dictionary_become_phonemes():
    assert arpabet.phonemes("HH AH0 L OW1", False) == "həlˈO"
    assert arpabet.phonemes("HH AH0 L OW1", True) == "həlˈQ"
    assert arpabet.phonemes("W AO1 T ER0", False) == "wˈɔɾəɹ"
    assert arpabet.phonemes("K AA1 R T ER0", True) == "kˈɑːtə"
    assert arpabet.phonemes("HH ER1 IY0 NG", True) == "hˈɜːɹiŋ"


def test_every_phoneme_has_a_phone():
    for british in (False, True):
        spoken = "".join(say("the quick brown fox jumps over the lazy dog", british))
        assert arpabet.phones(spoken, "en").split()[:2] == ["DH", "AH"]
    spoken = "".join(p for p, _ in mandarin.pronounce(list("中国人很喜欢吃饺子"), [False] * 9))
    assert arpabet.phones(spoken, "zh").startswith("JH UH NG G W AO")
    with pytest.raises(SpeechToolError, match="θ"):
        arpabet.phones("θ", "zh")
