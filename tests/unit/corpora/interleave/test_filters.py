"""Filters and agreement: goldens, and loops of every length."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.corpora.interleave.filters import (
    TranscriptLimits,
    disagreement,
    find_fault,
    find_loop,
    is_loop,
    script_share,
    to_units,
)
from ba_jax.speech.interfaces import Heard

GOOD = Heard("The weather was fine, so we walked to the river.", (), 0.9, 0.05)

FAULTS = [
    (GOOD, 3.0, "en", None),
    (dataclasses.replace(GOOD, confidence=0.3), 3.0, "en", "low confidence"),
    (dataclasses.replace(GOOD, no_speech=0.9), 3.0, "en", "probably no speech"),
    (dataclasses.replace(GOOD, text=" ... "), 3.0, "en", "empty transcript"),
    (dataclasses.replace(GOOD, text=""), 3.0, "en", "empty transcript"),
    (GOOD, 1.0, "en", "speech rate"),
    (GOOD, 30.0, "en", "speech rate"),
    (GOOD, 0.0, "en", "speech rate"),
    (GOOD, 3.0, "zh", "other language"),
    (Heard("今天天气很好，我们去公园散步。", (), 0.9, 0.0), 3.0, "en", "other language"),
    (Heard("今天天气很好，我们去公园散步。", (), 0.9, 0.0), 3.0, "zh", None),
    (Heard("今天天气很好，我们去公园散步。", (), 0.9, 0.0), 1.0, "zh", "speech rate"),
    (Heard("Thank you. " * 4, (), 0.9, 0.0), 4.0, "en", "repetition"),
    (Heard("谢谢观看" * 4, (), 0.9, 0.0), 4.0, "zh", "repetition"),
    (Heard("No, no, no, no! I said no.", (), 0.9, 0.0), 3.0, "en", None),
    (Heard("好好好，我知道了，谢谢谢谢。", (), 0.9, 0.0), 3.0, "zh", None),
]


@pytest.mark.parametrize(("heard", "seconds", "language", "reason"), FAULTS)
def test_faults(heard, seconds, language, reason):
    fault = find_fault(heard, seconds, language, TranscriptLimits())
    assert (fault and fault[0]) == reason
    assert fault is None or reason == "empty transcript" or fault[1]


@given(st.integers(1, 8), st.integers(2, 12), st.integers(0, 20), st.integers(0, 20))
def test_loops_are_detected_anywhere(length, times, before, behind):
    units = [f"a{i}" for i in range(before)]
    units += [f"loop{i}" for i in range(length)] * times
    units += [f"z{i}" for i in range(behind)]
    assert find_loop(units) == (times, length)
    assert is_loop(*find_loop(units), most=3) == (times > (5 if length == 1 else 3))


@given(st.lists(st.integers(), unique=True, max_size=50))
def test_no_loop_without_repetition(units):
    assert find_loop([str(u) for u in units]) == (1, 0)


def test_script_share():
    assert script_share("Hello 123!", "en") == 1
    assert script_share("今天 abcd", "zh") == pytest.approx(2 / 6)
    assert script_share("123", "zh") == 1
    assert script_share("Привет", "en") == 0


AGREEMENT = [
    ("We walked home.", "we walked HOME", "en", 0.0),
    ("We walked home.", "We walked to home", "en", 0.25),
    ("I paid twenty-five percent.", "I paid 25%", "en", 0.0),
    ("It's colour", "it is color", "en", 0.0),
    ("", "", "en", 0.0),
    ("one two three", "", "en", 1.0),
    ("", "one two three", "en", 1.0),
    ("今天天气很好。", "今天 天氣很好", "zh", 0.0),
    ("今年25岁", "今年二十五岁", "zh", 0.0),
    ("今天天气很好", "今天天汽很好", "zh", 1 / 6),
]


@pytest.mark.parametrize(("first", "second", "language", "expected"), AGREEMENT)
def test_disagreement(first, second, language, expected):
    assert disagreement(first, second, language) == pytest.approx(expected)
    assert disagreement(second, first, language) == pytest.approx(expected)


def test_units():
    assert to_units("Don't go, Mr. Smith!", "en") == ["do", "not", "go", "mister", "smith"]
    assert to_units("我有3个AI。", "zh") == list("我有三个ai")
