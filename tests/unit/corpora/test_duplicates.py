"""Near duplicates are found, and nothing else."""

import pytest

from ba_jax.corpora.duplicates import find_originals, likeness, shingles

TEXTS = [
    "What is the capital of France?",
    "what is the capital of france",
    "What is the capital of Germany and of Italy?",
    "法国的首都是哪里？",
    "法国的首都是哪里",
    "Hi",
    "?",
    "hi!",
    "What's the capital of France?",
]


def test_near_duplicates():
    assert list(find_originals(TEXTS, 0.7)) == [None, 0, None, None, 3, None, None, 5, 0]
    assert list(find_originals(TEXTS[:1] + TEXTS[8:], 1.0)) == [None, None]


def test_likeness_is_that_of_the_sets():
    """Four runs of four characters against five: "abcd", "bcde", "cdef" are common."""
    assert likeness(shingles("abcdefg"), shingles("ABCDEF-hi")) == pytest.approx(3 / 7)
