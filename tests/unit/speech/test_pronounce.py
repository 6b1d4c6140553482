"""Pronunciation in both languages."""

from __future__ import annotations

import pytest

from ba_jax.speech import arpabet, english, mandarin
from ba_jax.speech.interfaces import SpeechToolError


@pytest.fixture(autouse=True)
def cmudict(monkeypatch):
    """A CMU dictionary of two words, so that none is fetched."""
    words = {"barack": "B AA1 R AH0 K", "carter": "K AA1 R T ER0"}
    monkeypatch.setattr(english, "_cmudict", lambda: words)


def say(text: str, british: bool = False) -> list[str]:
    words = text.split()
    return english.pronounce(words, [False] * (len(words) - 1) + [True], british)


def test_accents_differ():
    assert say("water car") == ["wˈɔTəɹ", "kˈɑɹ"]
    assert say("water car", british=True) == ["wˈɔːtə", "kˈɑː"]


def test_function_words_depend_on_the_next_sound():
    assert say("the apple")[0] == "ði"
    assert say("the pear")[0] == "ðə"
    assert say("to eat")[0] != say("to go")[0]
    assert english.pronounce(["a", "A"], [False, True]) == ["ɐ", "ˈA"]


def test_the_previous_word_tells_verb_from_noun():
    assert say("to record a record")[1] != say("to record a record")[3]
    assert say("I live here")[1] == "lˈɪv"
    assert say("the use")[1][-1] == "s"
    assert say("to use")[1][-1] == "z"


@pytest.mark.parametrize(
    ("word", "stem", "ending"),
    [("cats", "cat", "s"), ("dogs", "dog", "z"), ("stopped", "stop", "t"), ("asks", "ask", "s")],
)
def test_regular_forms(word, stem, ending):
    assert say(word)[0] == say(stem)[0] + ending


def test_capitals():
    assert say("US")[0] == "jˈuˈɛs"
    assert say("the us")[1] != say("the US")[1]
    assert say("HE IS HERE")[1] == say("is")[0].replace("ɪ", "ˈɪ")  # shouting is no abbreviation
    assert say("AppleTree")[0] == say("Apple")[0] + say("Tree")[0]


def test_an_unknown_word_is_refused_by_name():
    with pytest.raises(SpeechToolError, match="'Xqzzvbk'"):
        say("my Xqzzvbk")


def test_names_are_looked_up_in_the_cmu_dictionary():
    assert say("Barack Barack's") == ["bˈɑɹək", "bˈɑɹəks"]
    assert say("Barack", british=True) == ["bˈɒɹək"]


def test_compounds_with_one_division_are_two_words():
    assert say("webpage")[0] == say("web")[0] + say("page")[0].replace("ˈ", "ˌ")
    with pytest.raises(SpeechToolError, match="'qqpage'"):
        say("qqpage")


def test_phones_of_the_cmu_dictionary_become_phonemes():
    assert arpabet.phonemes("HH AH0 L OW1", False) == "həlˈO"
    assert arpabet.phonemes("HH AH0 L OW1", True) == "həlˈQ"
    assert arpabet.phonemes("W AO1 T ER0", False) == "wˈɔɾəɹ"
    assert arpabet.phonemes("K AA1 R T ER0", True) == "kˈɑːtə"
    assert arpabet.phonemes("HH ER1 IY0 NG", True) == "hˈɜːɹiŋ"


def test_mandarin_characters_are_read_as_part_of_their_word():
    # 行 is háng in 银行 and xíng in 行人; 了 is neutral.
    bank = mandarin.pronounce(list("银行"), [False, True])
    walker = mandarin.pronounce(list("行人"), [False, True])
    assert bank[1][0] == "xa↗ŋ"
    assert walker[0][0] == "ɕi↗ŋ"
    assert [end for _, end in bank] == [False, True]


def test_mandarin_numbers_and_letters_are_pieces():
    pieces = mandarin.pronounce(["二十五", "个", "OK"], [False, False, True])
    assert len(pieces) == 3
    assert pieces[2][0] == english.pronounce(["OK"], [False])[0]
    assert pieces[0][0].replace(" ", "") == "ɚ↘ʂɨ↗u↓"


@pytest.mark.parametrize("text", ["한", "!"])
def test_mandarin_refuses_unpronounceable_text(text):
    with pytest.raises(SpeechToolError):
        mandarin.pronounce(["好", text], [False, True])


def test_every_phoneme_has_a_phone():
    for british in (False, True):
        spoken = "".join(say("the quick brown fox jumps over the lazy dog", british))
        assert arpabet.phones(spoken, "en").split()[:2] == ["DH", "AH"]
    spoken = "".join(p for p, _ in mandarin.pronounce(list("中国人很喜欢吃饺子"), [False] * 9))
    assert arpabet.phones(spoken, "zh").startswith("JH UH NG G W AO")
    with pytest.raises(SpeechToolError, match="θ"):
        arpabet.phones("θ", "zh")
