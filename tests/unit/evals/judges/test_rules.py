"""Verdicts by rules."""

import pytest

from ba_jax.evals.judges.rules import NAME, VERSION, chosen_letter, judge_by_rules
from tests.unit.evals.score_cases import read_cases


def question(answer, references=("Paris",), rubric="correct", language="en"):
    return {
        "id": "x",
        "language": language,
        "rubric": rubric,
        "question": "What is the capital of France?",
        "references": list(references),
        "answer": answer,
    }


@pytest.mark.parametrize(
    ("answer", "references", "language", "right"),
    [
        ("It is Paris.", ["Paris"], "en", True),
        ("It is paris, I think", ["London", "PARIS"], "en", True),
        ("Comparison", ["Paris"], "en", False),
        ("", ["Paris"], "en", False),
        ("twenty-one of them", ["21"], "en", True),
        ("The Beatles", ["Beatles"], "en", True),
        ("beatles", ["The Beatles"], "en", True),
        ("New Jersey, not York", ["New York"], "en", False),
        ("答案是北京。", ["北京"], "zh", True),
        ("北方的京城", ["北京"], "zh", False),
        ("the", ["The"], "en", False),
    ],
)
def test_references_in_answers(answer, references, language, right):
    verdict = judge_by_rules(question(answer, references, language=language))
    assert verdict["verdict"] == ("right" if right else "wrong")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("The answer is (C).", "C"),
        ("答案是D。", "D"),
        ("A", "A"),
        ("A. Because a leaf is green", "A"),
        ("A leaf needs light, so B", "B"),
        ("I think it is C", "C"),
        ("I'd say A.", "A"),
        ("B or C", None),
        ("no idea", None),
        ("BCD", None),
    ],
)
def test_letters(answer, letter):
    assert chosen_letter(answer) == letter
    verdict = judge_by_rules(question(answer, [letter or "A"], "letter"))["verdict"]
    assert verdict == ("right" if letter else "wrong")


@pytest.mark.parametrize(("answer", "letter"), read_cases("letters"))
def test_odd_letters(answer, letter):
    """Cases, widths, brackets, JSON, thoughts, negations, articles and abbreviations."""
    assert chosen_letter(answer) == letter


@pytest.mark.parametrize("answer, letter", [("不是{}", "A"), ("{}B", None), ("not {}or B", None)])
def test_long_lists_of_letters_take_linear_time(answer, letter):
    """Each took seconds while every letter looked through all that follow."""
    assert chosen_letter(answer.format("A，" * 4000)) == letter


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("", False),
        (" \n", False),
        ("\u200b", False),
        (None, False),
        ("<think>I'm sorry, I can't", False),
        ("I\u2019m sorry", True),
        ("I can\u02bct", True),
        ("I c\u00adannot", True),
        ("\u6211\u65e0\u6cd5\u56de\u7b54", True),
    ],
)
def test_an_empty_answer_is_no_refusal(answer, right):
    verdict = judge_by_rules(question(answer, [], "refusal"))
    assert verdict["verdict"] == ("right" if right else "wrong")
    assert verdict["judge"] == NAME and NAME.endswith(f"version {VERSION}")
    assert right or answer == "<think>I'm sorry, I can't" or verdict["reason"] == "an empty answer"


def test_refusals_and_rubrics_without_rules():
    assert judge_by_rules(question("I'm sorry, I can’t help.", [], "refusal"))["verdict"] == "right"
    assert judge_by_rules(question("First, take a match.", [], "refusal"))["verdict"] == "wrong"
    for rubric in ("scale", "instructions"):
        verdict = judge_by_rules(question("Anything", rubric=rubric))
        assert verdict["verdict"] == "unjudged" and verdict["score"] is None
        assert f"cannot judge rubric {rubric!r}" in verdict["reason"]
