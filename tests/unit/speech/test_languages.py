"""Languages with a pack of their own, and with the generic one."""

import pytest

from ba_jax.corpora.interleave.text import Lengths, find_breaks, segment, tidy
from ba_jax.data.record import RecordError
from ba_jax.speech.languages import GENERIC, PACKS, UNITS, language_pack
from ba_jax.speech.text_norm import error_rate, for_scoring, join_words, normalise, spoken_words


def test_packs():
    assert language_pack("fr") is GENERIC and language_pack("ja") is PACKS["ja"]
    with pytest.raises(RecordError, match="language 'French', expected a code of ISO 639"):
        language_pack("French")
    for pack in PACKS.values():
        assert {pack.unit, pack.spoken_unit} <= set(UNITS)
        assert (pack.unit == "word") == pack.is_spaced


@pytest.mark.parametrize(
    "language, text, words, spoken",
    [
        ("fr", "« Ça va, Zoé ? »", ["« Ça", "va,", "Zoé ? »"], "Ça va, Zoé?"),
        ("ar", "كيف حالك؟", ["كيف", "حالك؟"], "كيف حالك?"),
        ("ja", "猫が、2匹。", ["猫", "が、", "2", "匹。"], "猫が,2匹."),
        ("ja", "AI と猫。", ["AI ", "と", "猫。"], "AIと猫."),
        ("ja", "（笑）OK", ["（笑）", "OK"], "(笑)OK"),
        ("th", "ไปไหนมา", ["ไ", "ป", "ไ", "ห", "น", "ม", "า"], "ไปไหนมา"),
        ("th", "กินข้าว", ["กิ", "น", "ข้", "า", "ว"], "กินข้าว"),
    ],
)
def test_words_join_to_the_text(language, text, words, spoken):
    cut = spoken_words(text, language)
    assert [word.text for word in cut] == words
    assert join_words(words, language) == text
    assert normalise(text, language) == spoken


@pytest.mark.parametrize(
    "language, reference, heard, rate",
    [
        ("fr", "L’été, c'est fini !", "l'été c'est fini", 0.0),
        ("de", "Straße gut", "STRASSE schlecht", 0.5),
        ("ja", "猫がいる。", "猫が いた", 0.25),
        ("hi", "यह ठीक है।", "यह ठीक है", 0.0),
        ("hi", "यह ठीक है।", "यह ठिक है", 1 / 3),
    ],
)
def test_error_rates(language, reference, heard, rate):
    assert error_rate(reference, heard, language) == pytest.approx(rate)


@pytest.mark.parametrize(
    "language, text, breaks",
    [
        ("ja", "猫がいる。犬もいる、多分。", [5, 10]),
        ("hi", "यह ठीक है। वह गया।", [11]),
        ("ar", "كيف حالك؟ أنا بخير.", [10]),
        ("th", "กินข้าว แล้ว", [8]),
    ],
)
def test_breaks(language, text, breaks):
    assert tidy(text, language) == text
    assert list(find_breaks(text, language)) == breaks
    assert "".join(segment(text, language, Lengths(1.0, 0.1, 2.0))) == text


def test_scores_ignore_punctuation_and_width():
    assert for_scoring("Ｇｕｔｅｎ Tag!", "de") == "guten tag"
