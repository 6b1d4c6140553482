"""Scores of hypotheses."""

import time

import pytest

from ba_jax.data.corpus import facts
from ba_jax.evals.scoring import text
from ba_jax.evals.scoring.text import Tally
from ba_jax.speech.languages import PACKS, language_pack
from tests.unit.evals.score_cases import read_cases


@pytest.mark.parametrize(("reference", "hypothesis", "errors"), read_cases("english"))
def test_odd_english(reference, hypothesis, errors):
    """Signs, hyphens, telephone numbers, quotes, invisible characters, widths and accents."""
    assert text.tally(reference, hypothesis, "en", "word").errors == errors


@pytest.mark.parametrize(("reference", "hypothesis", "errors"), read_cases("mandarin"))
def test_odd_mandarin(reference, hypothesis, errors):
    """Letters of other scripts, rare characters, and numbers of many kinds."""
    for unit in ("character", "syllable"):
        assert text.tally(reference, hypothesis, "zh", unit).errors == errors


@pytest.mark.parametrize("brackets", ["(", "[", "<(", "a (b] "])
def test_thousands_of_open_brackets_take_no_time(brackets):
    start = time.process_time()
    assert text.tally("well", "well " + brackets * 4000, "en", "word").units == 1
    assert time.process_time() - start < 5


def test_normalisers_have_versions():
    for name in text.normalisers().values():
        assert (
            f"version {text.SCORING_VERSION} with " in name and "no " not in name.split(" with ")[1]
        )


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors", "units"),
    [
        ("Four plus four equals eight.", "4 plus 4 equals 8", 0, 5),
        ("Four plus four equals eight.", "4 + 4 = 8.", 0, 5),
        ("How much is ten minus one?", "How much is 10-1?", 0, 6),
        ("How much is ten minus one?", "How much is ten plus one?", 1, 6),
        ("What does one plus two make?", "what does one plus three make", 1, 6),
        ("Its color is gray.", "Its colour is grey!", 0, 4),
        ("Its color is gray.", "", 4, 4),
        ("It has four legs.", "It it has four long legs", 2, 4),
    ],
)
def test_english(reference, hypothesis, errors, units):
    assert text.tally(reference, hypothesis, "en", "word") == Tally(errors, units)


@pytest.mark.parametrize(
    ("hypothesis", "characters", "syllables"),
    [
        ("六减四等于二。", 0, 0),
        ("6减4等于2", 0, 0),
        ("6件4等于2", 1, 0),
        ("六减四等于三", 1, 1),
        ("", 6, 6),
    ],
)
def test_mandarin(hypothesis, characters, syllables):
    reference = "六减四等于二。"
    assert text.tally(reference, hypothesis, "zh", "character").errors == characters
    assert text.tally(reference, hypothesis, "zh", "syllable") == Tally(syllables, 6)


@pytest.mark.parametrize(
    ("reference", "heard", "right"),
    [
        ("That day is Monday.", "That day is Monday", True),
        ("That day is Monday.", "That they is Monday.", True),  # the key, and 3 of 4
        ("That day is Monday.", "That day is Sunday.", False),
        ("That day is Monday.", "Monday", False),  # 3 of 4 wrong
        ("That day is Monday.", "That day is Monday Sunday", False),  # two keys
        ("The answer is five.", "The answer is 5.", True),
        ("The answer is five.", "The answer is nine.", False),
        ("It has four legs.", "It has four legs", True),
        ("It has four legs.", "It has eight legs", False),
        ("It likes to eat bamboo.", "It likes to meet bamboo", True),
        ("It likes to eat bamboo.", "", False),
    ],
)
def test_english_answers(reference, heard, right):
    assert text.is_answer(reference, heard, "en") is right


@pytest.mark.parametrize(
    ("reference", "heard", "right"),
    [
        ("答案是五。", "大案是无", True),  # the same toneless syllables but for one tone
        ("答案是五。", "答案是九", False),
        ("它的颜色是绿色。", "他的颜色是绿色", True),
        ("它的颜色是绿色。", "他的颜色是蓝色", False),
        ("那一天是星期二。", "那一天是星期二", True),
        ("那一天是星期二。", "那一天是星期三", False),
    ],
)
def test_mandarin_answers(reference, heard, right):
    assert text.is_answer(reference, heard, "zh") is right


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_closed_answer_is_right_for_itself_alone(language):
    of_category = {}
    for fact in facts.facts():
        of_category.setdefault(fact.category, set()).add(fact.answers[language])
    for answers in of_category.values():
        for answer in answers:
            for other in answers:
                same = (
                    text.tally(answer, other, language, language_pack(language).spoken_unit).errors
                    == 0
                )
                assert text.is_answer(answer, other, language) is (answer == other or same)
    # all answers of a category but one word differ: keys were found for all of them
    keys = text._answer_keys(language)
    assert all(key for key, _ in keys.values())


def test_bad_input():
    with pytest.raises(ValueError, match="unit 'syllable' of language 'en'"):
        text.split_units("four", "en", "syllable")
    with pytest.raises(ValueError, match="language 'German'"):
        text.split_units("vier", "German", "word")
    assert text.tally("?", "four", "en", "word") == Tally(1, 0)
    assert text.tally("", "", "zh", "syllable") == Tally(0, 0)
    failed = text.score_text("four legs", None, "en", "word")
    assert (failed["errors"], failed["units"], failed["correct"]) == (2, 2, False)
    # Numbers that Python does not parse, halves of surrogate pairs, and bytes that are no text.
    for odd in ("1" * 5000, "\ud800", "\x00\x1a"):
        for language, unit in ((name, pack.spoken_unit) for name, pack in PACKS.items()):
            assert text.tally(odd, odd, language, unit).errors == 0
