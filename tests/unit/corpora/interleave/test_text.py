"""Text: tidying, and cutting at natural places without losing a character."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.corpora.interleave.text import (
    CLAUSE,
    PARAGRAPH,
    SENTENCE,
    Lengths,
    estimate_seconds,
    find_breaks,
    find_unspeakable,
    segment,
    tidy,
)

TANGLE = st.text(alphabet="ab AB.,!?;:3\n\"'“”()（）「」。，！？、…今天是好 —e.gDr", max_size=120)


def cut(text: str, language: str) -> list[str]:
    breaks = [*find_breaks(text, language), len(text)]
    return [text[a:b] for a, b in zip([0, *breaks[:-1]], breaks, strict=True)]


CUTS = [
    ("en", "One thing. Another thing.", ["One thing. ", "Another thing."]),
    ("en", "First, second; third: fourth", ["First, ", "second; ", "third: ", "fourth"]),
    # Numbers.
    ("en", "It is 3.14, or 1,000 at 10:30. So?", ["It is 3.14, ", "or 1,000 at 10:30. ", "So?"]),
    ("zh", "价格是3.14元，共1,000个。", ["价格是3.14元，", "共1,000个。"]),
    ("zh", "时间是10:30。走吧。", ["时间是10:30。", "走吧。"]),
    # Abbreviations and initials.
    ("en", "Dr. Smith met Mr. Jones. They left.", ["Dr. Smith met Mr. Jones. ", "They left."]),
    ("en", "J. K. Rowling wrote e.g. this.", ["J. K. Rowling wrote e.g. this."]),
    ("en", "The U.S. Army left at 5 p.m. on foot.", ["The U.S. Army left at 5 p.m. on foot."]),
    ("en", "So did I. Then we left.", ["So did I. ", "Then we left."]),
    ("en", "Apples, pears, etc. Then tea.", ["Apples, ", "pears, ", "etc. ", "Then tea."]),
    ("en", "Visit example.com now. Bye.", ["Visit example.com now. ", "Bye."]),
    # Quotations and brackets stay whole; what closes belongs to what it closes.
    ("en", 'He said, "Go. Now!" We went.', ["He said, ", '"Go. Now!" ', "We went."]),
    ("en", "“Yes,” he said. “No?”", ["“Yes,” ", "he said. ", "“No?”"]),
    ("en", "It (see this, or that) works. Yes.", ["It (see this, or that) works. ", "Yes."]),
    ("zh", "他说：“好。走吧！”我们走了。", ["他说：", "“好。走吧！”", "我们走了。"]),
    ("zh", "《三国，演义》很好。真的。", ["《三国，演义》很好。", "真的。"]),
    # An opener without its closer counts for nothing.
    ("en", "An (odd thing. Yes.", ["An (odd thing. ", "Yes."]),
    ("en", 'A 5" pipe. It fits.', ['A 5" pipe. ', "It fits."]),
    # Marks in a row are one break.
    ("zh", "真的吗？！是的……好。", ["真的吗？！", "是的……", "好。"]),
    ("en", "Well... yes. - no", ["Well... ", "yes. ", "- no"]),
    ("en", "It's John's, isn't it? Yes.", ["It's John's, ", "isn't it? ", "Yes."]),
    ("en", "A heading\nA line.", ["A heading\n", "A line."]),
    ("en", "...and then, nothing.", ["...and then, ", "nothing."]),
    ("en", "", [""]),
]


@pytest.mark.parametrize(("language", "text", "expected"), CUTS)
def test_cuts(language, text, expected):
    assert cut(text, language) == expected


def test_strength():
    assert list(find_breaks("Yes, but. Or\nNo! E", "en").values()) == [
        CLAUSE,
        SENTENCE,
        PARAGRAPH,
        SENTENCE,
    ]


def test_a_quotation_too_long_for_a_part_is_cut_at_its_sentences():
    text = "He said: “" + "This is a long sentence, one of many. " * 20 + "”"
    assert len(find_breaks(text, "en")) == 1
    breaks = find_breaks(text, "en", longest=15)
    assert len(breaks) == 20 and {text[b - 2] for b in breaks} == {":", "."}


@given(TANGLE, st.sampled_from(["en", "zh"]))
def test_segmentation_loses_and_reorders_nothing(text, language):
    pieces = segment(text, language, Lengths(target=1.0, low=0.2, high=3.0))
    assert "".join(pieces) == text
    if any(c.isalnum() for c in text):
        assert all(any(c.isalnum() for c in piece) for piece in pieces)


@given(TANGLE, st.sampled_from(["en", "zh"]))
def test_tidying_is_idempotent_and_keeps_words(text, language):
    once = tidy(text, language)
    assert tidy(once, language) == once
    assert [c for c in once if c.isalnum()] == [c for c in text if c.isalnum()]
    assert "  " not in once and once == once.strip()


PARAGRAPHS = {
    "en": "The weather was fine, so we walked to the river. Nobody was there, which pleased us. "
    "We sat down under a tree and ate our bread; then it began to rain, and we ran home. ",
    "zh": "今天天气很好，我们去公园散步。公园里人很多，有的在唱歌，有的在跳舞。"
    "后来下起了雨，我们就回家了；晚上一起吃饭，大家都很高兴。",
}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_parts_are_of_sensible_length(language):
    lengths = Lengths()
    pieces = segment(tidy(PARAGRAPHS[language] * 8, language), language, lengths)
    seconds = [estimate_seconds(piece, language) for piece in pieces]
    assert all(lengths.low <= s <= lengths.high for s in seconds)
    assert 0.6 * lengths.target < sum(seconds) / len(seconds) < 1.5 * lengths.target
    assert all(piece.rstrip()[-1] in ",.;，。；" for piece in pieces)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_short_text_makes_two_parts(language):
    text = {"en": "We went home, and then we slept.", "zh": "我们回家了，然后就睡着了。"}[language]
    assert len(segment(text, language, Lengths(target=5.0, low=0.5, high=15.0))) == 2


TIDY = [
    ("en", " a\u00a0b \t c\r\n\r\n d\u200b\u0007e ", "a b c\nde"),
    ("en", "Hello，world。Yes！", "Hello, world. Yes!"),
    ("en", "ＡＢＣ１２３", "ABC123"),
    ("en", "e\u0301 \ufeffx", "é x"),
    ("zh", "今天 天气,很好. 是吗?是!", "今天天气，很好。是吗？是！"),
    ("zh", "版本 3.11 用 Python 写的, 好", "版本 3.11 用 Python 写的，好"),
    ("zh", "他说, “你好” 。", "他说，“你好”。"),
    ("zh", "\ud800好", "好"),
]


@pytest.mark.parametrize(("language", "text", "expected"), TIDY)
def test_tidy(language, text, expected):
    assert tidy(text, language) == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("See https://x.org/a for more.", "a web or e-mail address"),
        ("Write to ann@example.com.", "a web or e-mail address"),
        ("A <b>bold</b> word", "markup"),
        ("A &nbsp; b", "markup"),
        ("A [link](here)", "markup"),
        ("x <|endoftext|> y", "a special token"),
        ("x <audio_start_baichuan> y", "a special token"),
        ("... --- !!!", "nothing to say"),
        ("", "nothing to say"),
        ("Two < three, and 5 > 4. AT&T & co; fine.", ""),
        ("今天天气很好。", ""),
    ],
)
def test_unspeakable(text, what):
    results = find_unspeakable(text)
    assert results == what or (what == "a special token" and results == "markup")


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="in order"):
        Lengths(target=1.0, low=2.0, high=3.0)
