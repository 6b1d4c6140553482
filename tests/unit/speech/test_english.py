"""Pronunciation of English."""

from __future__ import annotations

import pytest

from ba_jax.speech import english
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
