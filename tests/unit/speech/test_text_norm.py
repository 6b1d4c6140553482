"""Spoken forms of written text, word by word, and error rates of transcripts."""

from __future__ import annotations

import time

import pytest

from ba_jax.speech import text_norm
from ba_jax.speech.text_norm import error_rate, join_words, normalise, spoken_words

ENGLISH = [
    ("Hello, world!", "Hello, world!"),
    ("It's 5%.", "It's five percent."),
    ("“I paid $5 million,” he said — twice...", "“I paid five million dollars,” he said— twice…"),
    ("That is $3.50 or $1, not £0.20.",)
    + ("That is three dollars and fifty cents or one dollar, not twenty pence.",),
    ("On May 3rd, 1999 at 10:30", "On May third, nineteen ninety nine at ten thirty"),
    ("We had 1,234 cats & 3.05 dogs",)
    + ("We had one thousand two hundred thirty four cats and three point zero five dogs",),
    ("Dr. Smith, e.g. in the 1990s", "doctor Smith, for example in the nineteen nineties"),
    ("Room 007 at -5 °C", "Room zero zero seven at minus five degrees Celsius"),
    ("10-20 well-known 3D films", "ten to twenty well known three D films"),
    ("at 7:05 or 9:00", "at seven oh five or nine o'clock"),
    ("5 km, 1kg at 60 km/h", "five kilometers, one kilogram at sixty kilometers per hour"),
    ("Ｆｕｌｌ　ｗｉｄｔｈ　１２！", "Full width twelve!"),
    ("No. 5 \U0001f600 is alive", "No. five is alive"),
    ("he\u200bllo cafe\u0301", "hello café"),
    ("−5 or ±3, 10−1", "minus five or plus or minus three, ten minus one"),
]
MANDARIN = [
    ("你好，世界！", "你好,世界!"),
    ("我有25%的钱。", "我有百分之二十五的钱."),
    ("2个人在2023年5月10日来。", "两个人在二零二三年五月十日来."),
    ("2023-05-01 10:30", "二零二三年五月一日十点三十分"),
    ("气温－5℃到30°C", "气温负五摄氏度到三十摄氏度"),
    ("价格¥20，2/3的人", "价格二十元,三分之二的人"),
    ("1,234.5米", "一千二百三十四点五米"),
    ("第2次，2月，12个，10-20人", "第二次,二月,十二个,十到二十人"),
    ("电话01012345", "电话零一零一二三四五"),
    ("他说：“ＯＫ。”", "他说:“OK.”"),
    ("100以内", "一百以内"),
    ("拨打13800138000或010-12345678", "拨打一三八零零一三八零零零或零一零一二三四五六七八"),
    ("热线是400-800-1234", "热线是四零零八零零一二三四"),
    ("气温−5到+3度，±2", "气温负五到正三度,正负二"),
    ("6−4，比分3:2，5‰", "六减四,比分三比二,千分之五"),
    ("50%-60%，50-60%", "百分之五十到百分之六十,百分之五十到六十"),
    ("1914-1918年，¥1.5万", "一九一四到一九一八年,一点五万元"),
    ("𠮷野家привет cafe\u0301", "𠮷野家приветcafé"),
]


@pytest.mark.parametrize(("written", "spoken"), ENGLISH)
def test_english(written, spoken):
    assert normalise(written, "en") == spoken


@pytest.mark.parametrize(("written", "spoken"), MANDARIN)
def test_mandarin(written, spoken):
    assert normalise(written, "zh") == spoken


@pytest.mark.parametrize(
    ("written", "language"), [(w, "en") for w, _ in ENGLISH] + [(w, "zh") for w, _ in MANDARIN]
)
def test_words_join_back_to_the_text(written, language):
    words = spoken_words(written, language)
    joined = join_words((word.text for word in words), language)
    assert joined == (" ".join(written.split()) if language == "en" else written)
    assert all(word.spoken for word in words)
    # Spoken forms are letters; the lexicons would lose digits and signs.
    spoken = "".join(word.spoken for word in words).replace(" ", "").replace("'", "")
    assert spoken.isalpha()


def test_words_keep_their_punctuation_and_are_characters_in_mandarin():
    assert [w.text for w in spoken_words("- “Yes”, he said —  no.", "en")] == [
        "- “Yes”,",
        "he",
        "said —",
        "no.",
    ]
    assert [w.text for w in spoken_words("《书》，25本。Python 好", "zh")] == [
        "《书》，",
        "25",
        "本。",
        "Python ",
        "好",
    ]


def test_a_silent_text_has_no_spoken_word():
    assert [w.spoken for w in spoken_words("... —", "en")] == [""]
    assert spoken_words("  ", "zh") == [] or spoken_words("  ", "zh")[0].spoken == ""


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="'French'"):
        spoken_words("Bonjour", "French")
    with pytest.raises(ValueError, match="'French'"):
        error_rate("Bonjour", "Bonjour", "French")


def test_error_rates():
    assert error_rate("I have twenty-five dollars.", "i have 25 dollars", "en") == 0.0
    assert error_rate("The cat sat down.", "the cat sat", "en") == pytest.approx(1 / 4)
    assert error_rate("我有25块钱。", "我有二十五塊錢", "zh") == 0.0
    assert error_rate("今天天气好", "今天天汽好", "zh") == pytest.approx(1 / 5)
    assert error_rate("你好", "", "zh") == 1.0
    with pytest.raises(ValueError, match="no words"):
        error_rate("...", "hello", "en")


def test_texts_that_look_alike_are_one():
    assert text_norm.unify("ｄｏｎ’ｔ\u200b e\u0301 ﬁ٣　\ufeff–") == "don't é fi3 -"
    assert text_norm.unify("10² 1½ 12\u202f345\n−") == "10 2 1 1/2 12345\n−"


@pytest.mark.parametrize("bracket", "<[(")
def test_brackets_left_open(bracket):
    assert text_norm.readings(f"a [b] c (d) e {bracket}f {bracket}'s", "en") == ["a c e f is"]
    start = time.process_time()
    text_norm.readings(20_000 * bracket, "en")  # 1.5 s with a search from each to the end
    assert time.process_time() - start < 1


def test_readings():
    assert text_norm.readings("10-1", "en") == ["10 one", "10 to one", "10 -one"]
    assert text_norm.readings("1-10", "en") == ["one 10", "one to 10"]  # no difference
    assert text_norm.readings("3-2", "zh") == ["三到二", "三二", "三比二", "三减二"]
    assert text_norm.readings("2024-05-01", "en") == ["2024 5 one"]


def test_simplified():
    assert text_norm.to_simplified("電腦與網路") == "电脑与网路"
