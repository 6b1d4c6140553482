"""Pronunciation of Mandarin."""

from __future__ import annotations

import pytest

from ba_jax.speech import english, mandarin
from ba_jax.speech.interfaces import SpeechToolError


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
