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


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("爸怕妈飞", "pa↘ pʰa↘ ma→ fei→"),
        ("高看好", "kau→ kʰa↘n xau↓"),
        ("家起小", "ʨja→ ʨʰi↓ ɕjau↓"),
        ("知吃是日", "ꭧɨ→ ꭧʰɨ→ ʂɨ↘ ɻɨ↘"),
        ("字次四", "ʦɨ↘ ʦʰɨ↘ sɨ↘"),
        ("月云元熊", "ɥe↘ y↗n ɥɛ↗n ɕjʊ↗ŋ"),
        ("儿王外有哦嗯", "ɚ↗ wa↗ŋ wai↘ jou↓ ɔ↗ n↗"),
        ("了的们", "lɤ tɤ mən"),
    ],
)
def test_mandarin_sounds_are_the_phonemes_that_kokoro_was_trained_on(text, phonemes):
    assert " ".join(mandarin.syllables(text)) == phonemes


def test_mandarin_numbers_and_letters_are_pieces():
    pieces = mandarin.pronounce(["二十五", "个", "OK"], [False, False, True])
    assert len(pieces) == 3
    assert pieces[2][0] == english.pronounce(["OK"], [False])[0]
    assert pieces[0][0].replace(" ", "") == "ɚ↘ʂɨ↗u↓"


@pytest.mark.parametrize("text", ["한", "!"])
def test_mandarin_refuses_unpronounceable_text(text):
    with pytest.raises(SpeechToolError):
        mandarin.pronounce(["好", text], [False, True])
