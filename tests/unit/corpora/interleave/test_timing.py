"""Words in their text, pauses in sound, and parts that are cut in pauses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.corpora.interleave.text import Lengths
from ba_jax.corpora.interleave.timing import (
    LONG_PAUSE,
    PAUSE,
    cut_into_parts,
    find_pauses,
    join,
    locate,
)
from ba_jax.data.record import Word
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.text_norm import join_words

RATE = 16000


def words_of(*texts: str) -> list[Word]:
    return [Word(text, float(i), i + 0.8) for i, text in enumerate(texts)]


LOCATED = [
    ("Hello, big world.", ["hello", "big", "world"], ["Hello, ", "big ", "world."]),
    ("Hello, big world.", ["Hello,", "big", "world."], ["Hello, ", "big ", "world."]),
    ("“Go,” he said: (now)", ["Go", "he", "said", "now"], ["“Go,” ", "he ", "said: ", "(now)"]),
    ("今天，“好”！", list("今天好"), ["今", "天，", "“好”！"]),
    ("用 Python 写", ["用", "Python", "写"], ["用 ", "Python ", "写"]),
    (
        "It costs $5.50 - now",
        ["It", "costs", "$5.50", "-", "now"],
        ["It ", "costs ", "$5.50 - ", "now"],
    ),
    ("don't well-known", ["don't", "well", "known"], ["don't ", "well-", "known"]),
]


@pytest.mark.parametrize(("text", "given_words", "expected"), LOCATED)
def test_words_share_out_the_text(text, given_words, expected):
    words = words_of(*given_words)
    results = locate(text, words)
    assert [w.text for w in results] == expected
    assert [w.start for w in results] == [w.start for w in words if any(map(str.isalnum, w.text))]


@given(st.lists(st.sampled_from(["ab", "b", "c1", "今", "é"]), min_size=1), st.data())
def test_located_words_join_to_the_text(texts, data):
    marks = st.text(alphabet=" ,.“”(\n", max_size=4)
    text = data.draw(marks) + "".join(t + data.draw(marks) for t in texts)
    assert "".join(w.text for w in locate(text, words_of(*texts))) == text


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("one two", words_of("one", "too"), "word 'too': expected it at 'two'"),
        ("one two", words_of("one"), "no word for 'two'"),
        ("one", words_of("one", "two"), "word 'two'"),
        ("...", words_of("."), "no words"),
        ("one two", [Word("one", 2.0, 3.0), Word("two", 1.0, 1.5)], "before the last one"),
        ("one", [Word("one", 1.0, 0.5)], "1.0 to 0.5"),
        ("one", [Word("one", float("nan"), 0.5)], "nan"),
    ],
)
def test_words_that_do_not_fit(text, words, message):
    with pytest.raises(SpeechToolError, match=message):
        locate(text, words)


def test_utterances_are_joined():
    entry, two = locate("Yes.", words_of("Yes")), locate("No.", words_of("No"))
    assert [w.text for w in join([entry, two], "en")] == ["Yes. ", "No."]
    assert [w.text for w in join([entry, two], "zh")] == ["Yes.", "No."]


def sound(spans, seconds: float, noise: float, seed: int = 0) -> np.ndarray:
    """Buzzing "words" over noise."""
    rng = np.random.default_rng(seed)
    wave_S = noise * rng.standard_normal(int(seconds * RATE))
    t_S = np.arange(len(wave_S)) / RATE
    for start, end in spans:
        a, b = int(start * RATE), int(end * RATE)
        wave_S[a:b] += 0.2 * np.sign(np.sin(2 * np.pi * 150 * t_S[a:b]))
    return wave_S.astype(np.float32)


WORDS_AT = [(0.2, 0.9), (1.2, 2.0), (2.06, 2.5), (3.1, 4.0), (4.15, 4.9)]


@pytest.mark.parametrize("noise", [0.0, 1e-4, 3e-3, 3e-2])
def test_pauses_are_found_in_noise(noise):
    pauses = find_pauses(sound(WORDS_AT, 5.2, noise), RATE)
    expected = [(0, 0.2), (0.9, 1.2), (2.5, 3.1), (4.0, 4.15), (4.9, 5.2)]
    assert np.allclose(pauses, expected, atol=0.03)


def test_short_gaps_and_silence_have_no_pauses():
    assert not any(a < 2.03 < b for a, b in find_pauses(sound(WORDS_AT, 5.2, 1e-3), RATE))
    assert find_pauses(sound([], 3.0, 0.1), RATE) == []
    assert find_pauses(sound(WORDS_AT, 5.2, 0.2), RATE) == []
    assert find_pauses(np.zeros(RATE, np.float32), RATE) == []
    assert find_pauses(np.zeros(3, np.float32), RATE) == []


gaps = st.sampled_from([0.0, 0.05, 0.15, 0.2, 0.35, 0.8])
marks = st.sampled_from(["", "", "", ",", ".", "?"])


@given(st.lists(st.tuples(st.floats(0.1, 0.6), gaps, marks), min_size=1, max_size=60))
def test_parts_are_cut_in_pauses_and_lose_nothing(rows):
    words, pauses, now = [], [], 0.2
    for i, (length, gap, mark) in enumerate(rows):
        words.append(Word(f"w{i}{mark} ", now, now + length))
        now += length
        if gap >= PAUSE:
            pauses.append((now, now + gap))
        now += gap
    end = now + 0.2
    lengths = Lengths(target=2.0, low=0.5, high=6.0)
    parts = cut_into_parts(words, pauses, "en", start=0.0, end=end, lengths=lengths)
    assert [w for part in parts for w in part.words] == words
    assert [parts[0].start, parts[-1].end] == [0.0, end]
    for left, right in zip(parts, parts[1:], strict=False):
        assert left.end == right.start
        (pause,) = [(a, b) for a, b in pauses if a < left.end < b]
        assert left.words[-1].end <= left.end <= right.words[0].start
        has_mark = left.text[-1] in ",.?"
        assert has_mark or pause[1] - pause[0] >= LONG_PAUSE


def test_cuts_are_exact_in_spite_of_wrong_word_times():
    words = [Word("One. ", 0.2, 1.05), Word("Two", 1.1, 2.0)]
    pauses = find_pauses(sound(WORDS_AT[:2], 2.2, 1e-3), RATE)
    lengths = Lengths(target=1.0, low=0.2, high=2.0)
    entry, two = cut_into_parts(words, pauses, "en", start=0.05, end=2.2, lengths=lengths)
    assert entry.end == two.start == pytest.approx(1.05, abs=0.02)
    assert (entry.text, two.text) == ("One.", "Two")


def test_words_of_a_part_count_from_its_start_and_join_to_its_text():
    words = locate("One, two. Three “four” five.", words_of("One", "two", "Three", "four", "five"))
    parts = cut_into_parts(
        words,
        [(1.8, 2.0)],
        "en",
        start=0.0,
        end=5.0,
        lengths=Lengths(target=2.5, low=1.0, high=4.0),
    )
    assert [part.text for part in parts] == ["One, two.", "Three “four” five."]
    kept = parts[1].words_for_record("en")
    assert join_words([w.text for w in kept], "en") == parts[1].text
    assert kept[0].start == pytest.approx(0.1) and kept[-1].end == pytest.approx(2.9)
    zh = locate("今天，用 AI 写。", words_of("今", "天", "用", "AI", "写"))
    (part,) = cut_into_parts(zh, [], "zh", start=0.0, end=5.0, lengths=Lengths())
    assert join_words([w.text for w in part.words_for_record("zh")], "zh") == "今天，用 AI 写。"


def test_empty_speech():
    assert cut_into_parts([], [], "en", start=0.0, end=1.0, lengths=Lengths()) == []
