"""Convert written text to spoken text, word by word, and normalise transcripts for scoring.

`spoken_words` cuts a text into the units of `Word` (English words with their punctuation, Mandarin
characters) and spells out each: "25%" is "twenty five percent", "百分之二十五". The pieces keep
the spelling of the text and join back to it (`join_words`). Numbers of languages other than these
two stay in digits.

Scoring compares `readings` of texts that `unify` has freed of differences that no reader sees or
hears. SCORING_VERSION goes into the results of every evaluation.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable

from ba_jax.data.record import drop_invisible
from ba_jax.speech.languages import ASCII_MARKS, language_pack

PAUSES = frozenset(",.!?;:…—")
"""Punctuation that is heard as a pause, in its ASCII form; other marks are silent."""

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20, 0xA0: 0x20}
_PUNCTUATION = str.maketrans("、。《》「」『』【】〈〉–―～", ",.“”“”“”“”“”——,")
_UNITS = {"$": ("dollar", "dollars"), "£": ("pound", "pounds"), "€": ("euro", "euros")}
_CENTS = {"$": ("cent", "cents"), "£": ("penny", "pence"), "€": ("cent", "cents")}
_SCALES = ("hundred", "thousand", "million", "billion", "trillion")
_SYMBOLS = {
    "%": "percent", "&": "and", "+": "plus", "@": "at", "=": "equals", "°": "degrees",
    "℃": "degrees Celsius", "°C": "degrees Celsius", "°F": "degrees Fahrenheit", "×": "times",
    "÷": "divided by", "#": "number", "<": "less than", ">": "greater than", "−": "minus",
    "±": "plus or minus",
}  # fmt: skip
_ABBREVIATIONS = {
    "mr.": "mister", "mrs.": "missus", "ms.": "Ms", "lt.": "lieutenant", "capt.": "captain",
    "gen.": "general", "sgt.": "sergeant", "col.": "colonel", "gov.": "governor",
    "mt.": "mount", "dr.": "doctor", "prof.": "professor", "st.": "saint", "jr.": "junior",
    "sr.": "senior", "vs.": "versus", "etc.": "etc", "e.g.": "for example", "i.e.": "that is",
    "no.": "no", "a.m.": "A M", "p.m.": "P M", "u.s.": "U S", "u.k.": "U K",
}  # fmt: skip
_MEASURES_EN = {
    "km": "kilometers", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms",
    "mg": "milligrams", "ml": "milliliters", "mph": "miles per hour",
    "km/h": "kilometers per hour",
}  # fmt: skip
"""Units that are spelt out after a number."""
_MAX_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class SpokenWord:
    """A word of a text (in Mandarin a character or a number).

    Attributes:
      text: the written form, with the punctuation after it.
      spoken: letters, apostrophes and single spaces; "" only if the whole text is silent.
      opening, closing: heard punctuation before and after it, from PAUSES and quotation marks.
    """

    text: str
    spoken: str
    opening: str = ""
    closing: str = ""


def to_half_width(text: str) -> str:
    """Convert full-width letters, digits and signs, and spaces of all kinds, to ASCII."""
    return text.translate(_FULL_WIDTH)


def is_han(character: str) -> bool:
    """Whether a character is Chinese, rare ones (extensions, compatibility forms) included."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or code == 0x3007
        or 0xF900 <= code <= 0xFAFF
        or 0x20000 <= code <= 0x3FFFF
    )


def is_mark(character: str) -> bool:
    """Whether a character is a part of the letter before it (accent, vowel sign)."""
    return unicodedata.category(character) in ("Mn", "Mc")


_ALIKE = str.maketrans(
    dict.fromkeys("‘’‚‛ʼʻ`´′ꞌ", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‐‑‒–﹘", "-")
    | {"⁻": "−", "…": " ", "，": "、"}  # a full-width comma never groups digits
)


def unify(text: str) -> str:
    """Give characters that look alike one form (NFKC), and leave out those that are not seen.

    Quotation marks and apostrophes, hyphens (not the minus sign) and digits become those of ASCII;
    white space stays as it is.
    """
    text = re.sub(r"(?<=\d)[\u2009\u202f](?=\d{3}(?!\d))", "", text)  # thin spaces group digits
    text = text.translate(_ALIKE)
    # "10²" and "1½" are not 102 and 11/2.
    text = "".join(f" {c}" if unicodedata.category(c) == "No" else c for c in text)
    return _see(unicodedata.normalize("NFKC", text))


def _see(text: str) -> str:
    """Give digits of any script, and the line of fractions, their ASCII form; drop the unseen."""
    digits = re.sub(r"(?![0-9])\d", lambda match: str(unicodedata.decimal(match[0])), text)
    return drop_invisible(digits.replace("⁄", "/"))


def join_words(words: Iterable[str], language: str) -> str:
    """Join words to a text, with a space between unless the language has none (Mandarin)."""
    return language_pack(language).space.join(words)


def spoken_words(text: str, language: str) -> list[SpokenWord]:
    """The words of a text with their spoken forms.

    Runs of spaces are merged; silent characters (quotes, emoji) stay in `text` only.
    """
    pack = language_pack(language)
    split = {"english": _split_english, "mandarin": _split_mandarin}.get(pack.normaliser)
    pieces = split(text) if split else _split_generic(text, pack.is_spaced)
    return _join_silent(pieces, language)


def normalise(text: str, language: str) -> str:
    """The spoken form of a text, with heard punctuation: "It's 5%." -> "It's five percent."."""
    words = spoken_words(text, language)
    return join_words((w.opening + w.spoken + w.closing for w in words if w.spoken), language)


def _join_silent(pieces: list[SpokenWord], language: str) -> list[SpokenWord]:
    """Join silent pieces to the word before, or at the start to the word after."""
    words: list[SpokenWord] = []
    for piece in pieces:
        if words and (not piece.spoken or not words[-1].spoken):
            last = words.pop()
            inner = piece.opening + piece.closing
            words.append(
                SpokenWord(
                    join_words((last.text, piece.text), language),
                    last.spoken + piece.spoken,
                    last.opening if last.spoken else last.opening + last.closing + piece.opening,
                    last.closing + inner if last.spoken else piece.closing,
                )
            )
        else:
            words.append(piece)
    return words


def _filter_marks(marks: str) -> str:
    """The marks that are heard or that quote, each repeated mark once."""
    marks = to_half_width(marks).translate(_PUNCTUATION)
    marks = re.sub(r"-{2,}", "—", re.sub(r"\.{2,}|…+", "…", marks))
    return re.sub(r"(.)\1+", r"\1", "".join(c for c in marks if c in PAUSES or c in '“”()"'))


_UNSPACED = re.compile(r"\s+|[0-9A-Za-z]+|[^\s0-9A-Za-z]")


def _split_generic(text: str, is_spaced: bool) -> list[SpokenWord]:
    """Words between spaces, or characters with their marks and runs of Latin letters and digits."""
    pieces: list[SpokenWord] = []
    for token in text.split() if is_spaced else _UNSPACED.findall(text):
        if not is_spaced and is_mark(token[0]) and pieces and pieces[-1].spoken:
            last = pieces.pop()
            pieces.append(SpokenWord(last.text + token, last.spoken + token))
            continue
        core = token.strip("".join(c for c in token if not (c.isalnum() or is_mark(c))))
        opening, _, closing = token.partition(core) if core else ("", "", token)
        spoken = "".join(c for c in core if c.isalnum() or is_mark(c) or c in "'’-")
        marks = [_filter_marks(side.translate(ASCII_MARKS)) for side in (opening, closing)]
        pieces.append(SpokenWord(" " if token.isspace() else token, spoken, *marks))
    return pieces


# --- English --------------------------------------------------------------------------------------

_ENGLISH_TOKEN = re.compile(
    r"(?P<opening>[^\w$£€#%&+@=°℃×÷−±-]*(?:-(?!\d))*[^\w$£€#%&+@=°℃×÷−±-]*)"
    r"(?P<core>.*?)"
    r"(?P<closing>[^\w$£€#%&+@=°℃×÷]*)",
    re.DOTALL,
)


def _split_english(text: str) -> list[SpokenWord]:
    tokens = text.split()
    pieces, unit = [], ""
    for token in tokens:
        plain = _see(unicodedata.normalize("NFC", to_half_width(token)))
        match = _ENGLISH_TOKEN.fullmatch(plain)
        opening, core, closing = match["opening"], match["core"], match["closing"]
        # A scale word takes the unit of the amount before it: "$5 million".
        if unit and core.lower() not in _SCALES:
            last = pieces.pop()
            pieces.append(dataclasses.replace(last, spoken=f"{last.spoken} {unit}"))
            unit = ""
        after_number = bool(pieces) and pieces[-1].text[-1].isdigit()
        if measure := re.fullmatch(r"(-?[\d,.]*\d)([a-z/]+)", core):
            after_number, number, name = True, measure[1], measure[2]
        else:
            number, name = "", core
        abbreviation = (core + closing[:1]).lower()
        if core and abbreviation in _ABBREVIATIONS and not (core == "no" or core == "No"):
            spoken, closing = _ABBREVIATIONS[abbreviation], closing[1:]
        elif after_number and name in _MEASURES_EN:
            spoken = f"{_say_english(number)} {_measure(number or pieces[-1].spoken, name)}".strip()
        elif re.fullmatch(r"[$£€]\d[\d,]*(\.\d+)?", core) and not re.search(r"\.\d\d$", core):
            spoken = _say_number(core[1:])
            unit = _UNITS[core[0]][spoken != "one"]
        else:
            spoken = _say_english(core)
        if unit and (closing or core.lower() in _SCALES):
            spoken, unit = f"{spoken} {unit}", ""
        pieces.append(SpokenWord(token, spoken, _filter_marks(opening), _filter_marks(closing)))
    if unit:
        last = pieces.pop()
        pieces.append(dataclasses.replace(last, spoken=f"{last.spoken} {unit}"))
    return pieces


def _measure(number: str, name: str) -> str:
    measure = _MEASURES_EN[name]
    return re.sub(r"s\b", "", measure, count=1) if number in ("1", "one") else measure


def _say_english(core: str) -> str:
    core = core.replace("’", "'").replace("‘", "'")
    words = []
    pattern = (
        r"(?P<money>[$£€]\d[\d,]*\.\d\d(?!\d))"
        r"|(?P<time>\d{1,2}:\d\d(?!\d))"
        r"|(?P<range>\d+[-–]\d+)(?![-–\d])"
        r"|(?P<decade>(?:1[1-9]|20)\d0'?s)"
        r"|(?P<ordinal>\d+(?:st|nd|rd|th)(?![a-z]))"
        r"|(?P<number>-?\d+(?:,\d{3})*(?:\.\d+)?)"
        r"|(?P<symbol>°[CF]|[%&+@=°℃×÷#<>$£€−±])"
        r"|(?P<word>[^\W\d_]+(?:'[^\W\d_]+)*'?)"
    )
    for match in re.finditer(pattern, core):
        kind, part = match.lastgroup, match[0]
        if kind == "money":
            words.append(_say_money(part))
        elif kind == "time":
            words.append(_say_time(part))
        elif kind == "range":
            first, second = re.split("[-–]", part)
            words.append(f"{_say_number(first)} to {_say_number(second)}")
        elif kind == "decade":
            words.append(_say_decade(part))
        elif kind == "ordinal":
            words.append(_words_of(int(part[:-2]), "ordinal"))
        elif kind == "number":
            is_joined = match.start() and core[match.start() - 1].isalnum()
            words.append(_say_number(part.lstrip("-") if is_joined else part))
        elif kind == "symbol":
            words.append(_SYMBOLS.get(part) or _UNITS[part][1])
        else:
            # Letters after digits ("3D", "100km") are a word: it is spelt.
            words.append(part)
    return " ".join(words)


def _words_of(number, to: str = "cardinal") -> str:
    import num2words

    words = num2words.num2words(number, to=to).replace("-", " ").replace(",", "")
    return words.replace(" and ", " ") if to == "cardinal" else words


def _say_number(digits: str) -> str:
    """Say a cardinal, a year or, if it starts with 0 or is very long, its digits."""
    sign, plain = ("minus ", digits[1:]) if digits.startswith("-") else ("", digits)
    has_commas = "," in plain
    whole, _, fraction = plain.replace(",", "").partition(".")
    if len(whole) > _MAX_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        words = " ".join(_words_of(int(d)) for d in whole)
    elif len(whole) == 4 and not has_commas and not fraction and 1100 <= int(whole) < 2100:
        words = _words_of(int(whole), "year").replace("oh-", "oh ").replace(" and ", " ")
    else:
        words = _words_of(int(whole))
    if fraction:
        words += " point " + " ".join(_words_of(int(d)) for d in fraction)
    return sign + words


def _say_money(part: str) -> str:
    units, cents = (int(x) for x in part[1:].replace(",", "").split("."))
    amounts = []
    if units or not cents:
        amounts.append(f"{_words_of(units)} {_UNITS[part[0]][units != 1]}")
    if cents:
        amounts.append(f"{_words_of(cents)} {_CENTS[part[0]][cents != 1]}")
    return " and ".join(amounts)


def _say_time(part: str) -> str:
    hours, minutes = (int(x) for x in part.split(":"))
    if minutes == 0:
        return f"{_words_of(hours)} o'clock" if 0 < hours <= 12 else f"{_words_of(hours)} hundred"
    return f"{_words_of(hours)} {'oh ' if minutes < 10 else ''}{_words_of(minutes)}"


def _say_decade(part: str) -> str:
    year = _words_of(int(part[:4]), "year")
    return year[:-1] + "ies" if year.endswith("y") else year + "s"


# --- Mandarin -------------------------------------------------------------------------------------

_SIGN = "(?<![A-Za-z0-9%零一二三四五六七八九十百千万])[-−+±]"  # before a number, not between two
_MANDARIN = re.compile(
    r"(?P<date>\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?!\d))"
    r"|(?P<year>\d{4}[-~—–]\d{4}(?=年)|\d{2,4}(?=年))"
    r"|(?P<phone>(?<![A-Za-z0-9.])(?:(?:\+\d{1,3}[- ]?)?1[3-9]\d(?:[- ]?\d{4}){2}"
    r"|\(?0\d{2,3}\)?[- ]?\d{3,4}[- ]?\d{4}|[48]00[- ](?:\d{3}[- ]?\d{4}|\d{4}[- ]?\d{3}))"
    r"(?![\d元万亿%]|[.,]\d))"
    r"|(?P<time>\d{1,2}[:：][0-5]\d(?!\d))"
    r"|(?P<ratio>\d+(?:\.\d+)?[:：]\d+(?:\.\d+)?)"
    r"|(?P<fraction>\d+/\d+(?![/\d]))"
    rf"|(?P<range>(?:{_SIGN})?\d+(?:\.\d+)?%?[-~—–][-−]?\d+(?:\.\d+)?%?(?![-~—–\d]))"
    rf"|(?P<percent>(?:{_SIGN})?\d+(?:\.\d+)?[%‰])"
    rf"|(?P<money>(?:{_SIGN})?[$¥￥€£]\d+(?:,\d{{3}})*(?:\.\d+)?[万亿]*)"
    rf"|(?P<number>(?:{_SIGN})?\d+(?:,\d{{3}})*(?:\.\d+)?)"
    r"|(?P<symbol>°C|℃|[%&+@=×÷−±])"
    r"|(?P<latin>[A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ]+(?:['’][A-Za-z]+)*)"
    r"|(?P<space>\s+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_CALLED = re.compile(
    r"(?:拨打?|电话|致电|热线|手机|传真|邮编|码|(?<![\d零一二三四五六七八九十])号)[是为号了:： ]*$"
)
"""Words after which a number is read digit by digit."""
_MANDARIN_UNITS = {"$": "美元", "¥": "元", "￥": "元", "€": "欧元", "£": "英镑"}
_MANDARIN_SYMBOLS = {
    "°C": "摄氏度", "℃": "摄氏度", "%": "百分之", "&": "和", "+": "加", "@": "艾特", "=": "等于",
    "×": "乘", "÷": "除以", "−": "减", "±": "正负",
}  # fmt: skip
_DIGITS = "零一二三四五六七八九"
# Measure words: 2 before them is read liǎng.
_MEASURES = frozenset(
    "个只本条位次天件张块杯瓶种家间辆双把棵片句首岁年倍篇封颗座台名层周组批斤米元"
)


def _split_mandarin(text: str) -> list[SpokenWord]:
    # The length of the text does not change. The full-width comma stays: it never groups digits.
    plain = text.translate({code: c for code, c in _FULL_WIDTH.items() if code != ord("，")})
    pieces = []
    for match in _MANDARIN.finditer(plain):
        kind, part = match.lastgroup, match[0]
        written = text[match.start() : match.end()]
        if kind == "space":
            pieces.append(SpokenWord(" ", ""))
        elif kind == "other":
            if is_mark(part) and pieces and pieces[-1].spoken:
                last = pieces.pop()
                letter = unicodedata.normalize("NFC", last.spoken + part)
                pieces.append(dataclasses.replace(last, text=last.text + written, spoken=letter))
            elif is_han(part) or part.isalpha():
                pieces.append(SpokenWord(written, part))
            else:
                pieces.append(SpokenWord(written, "", closing=_filter_marks(part)))
        elif kind == "latin":
            pieces.append(SpokenWord(written, part))
        else:
            # "2个", but not "第2个".
            is_count = plain[match.start() - 1 : match.start()] != "第"
            is_count = is_count and plain[match.end() : match.end() + 1] in _MEASURES
            if len(part) > 2 and _CALLED.search(plain[max(0, match.start() - 8) : match.start()]):
                kind = "phone"
            pieces.append(SpokenWord(written, _say_mandarin(kind, part, is_count)))
    return pieces


def _say_mandarin(kind: str, part: str, is_count: bool) -> str:
    if kind == "date":
        year, month, day = re.split("[-/.]", part)
        return f"{_digits(year)}年{_cardinal(int(month))}月{_cardinal(int(day))}日"
    if kind == "year":
        return "到".join(map(_digits, re.split("[-~—–]", part)))
    if kind == "phone":
        return "加" * (part[0] == "+") + _digits(re.sub(r"\D", "", part))
    if kind == "time":
        hours, minutes = re.split("[:：]", part)
        hours = "两" if int(hours) == 2 else _cardinal(int(hours))
        if minutes == "00":
            return f"{hours}点"
        return f"{hours}点{'零' if minutes[0] == '0' else ''}{_cardinal(int(minutes))}分"
    if kind == "ratio":
        return "比".join(map(_number, re.split("[:：]", part)))
    if kind == "fraction":
        over, under = part.split("/")
        return f"{_number(under)}分之{_number(over)}"
    if kind == "range":
        first, second = re.fullmatch(r"(.+?)[-~—–]([-−]?[\d.]+%?)", part).groups()
        if second.endswith("%") and not first.endswith("%"):
            return f"百分之{_signed(first)}到{_signed(second[:-1])}"
        return f"{_signed(first)}到{_signed(second)}"
    if kind == "symbol":
        return _MANDARIN_SYMBOLS[part]
    if part == "2" and is_count:
        return "两"
    return _signed(part)


_SIGNS = {"-": "负", "−": "负", "+": "正", "±": "正负"}


def _signed(part: str) -> str:
    """Say a number with its sign, its currency and its percent sign."""
    sign, plain = _SIGNS.get(part[0], ""), part.lstrip("-−+±").replace(",", "")
    if plain[-1] in "%‰":
        return f"{sign}{'百' if plain[-1] == '%' else '千'}分之{_number(plain[:-1])}"
    if plain[0] in _MANDARIN_UNITS:
        number, scale = re.fullmatch(r"([\d.]+)([万亿]*)", plain[1:]).groups()
        number = "两" if number == "2" else _number(number)
        return sign + number + scale + _MANDARIN_UNITS[plain[0]]
    return sign + _number(plain)


def _digits(digits: str) -> str:
    return "".join(_DIGITS[int(d)] for d in digits)


def _number(digits: str) -> str:
    whole, _, fraction = digits.partition(".")
    if len(whole) > _MAX_DIGITS or (len(whole) > 1 and whole[0] == "0"):
        words = _digits(whole)
    else:
        words = _cardinal(int(whole))
    return f"{words}点{_digits(fraction)}" if fraction else words


def _cardinal(number: int) -> str:
    import cn2an

    return cn2an.an2cn(str(number), "low")


# --- scoring --------------------------------------------------------------------------------------


@functools.cache
def _simplifier():
    import opencc

    return opencc.OpenCC("t2s")


def to_simplified(text: str) -> str:
    """Convert traditional characters to simplified ones."""
    return _simplifier().convert(text)


@functools.cache
def _english_normaliser():
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


SCORING_VERSION = 2
"""Version of `readings`: raise it when a text is normalised to another one."""

# Between digits, a hyphen is no minus but in a difference ("10-1 is 9"), and may be said or not.
_TELEPHONE = re.compile(
    r"(?<![\w.:-])(?:(?:\+?\d{1,3}[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}"
    r"|(?:\+\d{1,3}[-. ]?(?:\(0\) ?)?|\(?0)\d{1,4}\)?(?:[-. ]\d{2,4}){1,4}|\d{3}[- ]\d{4}"
    r"|0\d{6,14}|\d{1,3}(?:-\d{1,4}){2,}|\d(?: \d){2,})"
    r"(?![\w%]|[.,:-]\d)"
)
_RANGE = re.compile(r"(?<![\d.-])(\d+(?:\.\d+)?)(?:-| - )(\d+(?:\.\d+)?)(?![\d-]|\.\d)")
_YEARS = re.compile(r"(?<![\d.~—–-])\d{2,4}(?=年)")
_CLOCK = re.compile(r"(?<![\d:])(\d+):(\d\d?)(?![\d:])")


def _subtract(match: re.Match) -> str:
    """Read a hyphen as a minus, unless the second number is larger: "10-12" is a range."""
    return f"{match[1]}−{match[2]}" if float(match[1]) >= float(match[2]) else match[0]


def _say_digit(match: re.Match) -> str:
    """Say a digit or the plus of a telephone number, and nothing for what stands between digits."""
    return f" {_words_of(int(match[1]))} " if match[1] else {"+": " plus "}.get(match[0], "")


_AMBIGUOUS = {
    "english": {
        _TELEPHONE: (
            lambda match: re.sub(r"[^\d+]+", " ", match[0]),
            lambda match: re.sub(r"\D|(\d)", _say_digit, match[0]),
        ),
        _RANGE: (r"\1 \2", r"\1 to \2", _subtract),
        _CLOCK: (r"\1 \2", r"\1\2"),
    },
    "mandarin": {
        _RANGE: (r"\1-\2", r"\1、\2", r"\1比\2", _subtract),
        _CLOCK: (r"\1:\2", r"\1点\2", r"\1比\2"),
        _YEARS: (r"\g<0>", lambda match: _number(match[0])),
    },
}
"""Normaliser -> ambiguous form -> the ways to read it."""


def readings(text: str, language: str) -> list[str]:
    """Normalise a text for error rates, once for each way to read its numbers, the usual one first.

    English passes Whisper's normaliser (lower case, no punctuation, numbers in digits, American
    spelling) and keeps signs of numbers ("-5"). In Mandarin, characters are simplified and numbers
    are written in them; letters of every script are small and keep their marks; there are no
    punctuation and no spaces. Other languages: small letters and digits, without punctuation.
    """
    pack = language_pack(language)
    texts = [unify(text)]
    for pattern, forms in _AMBIGUOUS.get(pack.normaliser, {}).items():
        texts = [pattern.sub(form, text) for text in texts for form in forms]
    score = {"english": _score_english, "mandarin": _score_mandarin}.get(pack.normaliser)
    if score is None:
        score = functools.partial(_score_generic, space=pack.space)
    return list(dict.fromkeys(map(score, dict.fromkeys(texts))))


def for_scoring(text: str, language: str) -> str:
    """Normalise a text for error rates: the usual one of its `readings`."""
    return readings(text, language)[0]


# The normaliser would write minus four dollars as $4: it does not see the words of signs.
_PLUS, _MINUS = "xplusx", "xminusx"
_SAID = (
    (r"±\s*(?=[$£€]?\.?\d)", " plus or minus "),
    (r"(?<=\d)\s*\+\s*(?=\d)|(?<![\w+])\+\s*(?=[$£€]?\.?\d)|\bplus\b", f" {_PLUS} "),
    (r"−\s*(?=[$£€]?\.?\d)|(?<![\w.)%-])-(?=[$£€]?\.?\d)|\bminus\b", f" {_MINUS} "),
    (r"(?<=\d)\s+%", "%"),
    (r"¥\s*(\d[\d,]*(?:\.\d+)?)", r"\1 yen"),
    (r"&", " and "),
    (r"(?<=\d0)'s\b", "s"),
    (r"(?<=\d)\s*([ap])\.\s?m\b\.?", r" \1m"),
    (r"(?<=\d)\s*×\s*(?=\d)", " times "),
    (r"(?<=\d)\s*÷\s*(?=\d)", " divided by "),
    (r"(?<=\d)\s*=\s*(?=-?\d)", " equals "),
    (r"(?<=\d)\s*°\s*c\b", " degrees celsius"),
    (r"(?<=\d)\s*°\s*f\b", " degrees fahrenheit"),
    (r"(?<=\d)\s*°", " degrees"),
)
"""Signs beside numbers, and their words, which Whisper's normaliser would drop."""


def _score_english(text: str) -> str:
    for sign, words in _SAID:
        text = re.sub(sign, words, text, flags=re.IGNORECASE)
    text = re.sub(r"\d{999}(?=\d)", r"\g<0> ", text)  # Python refuses numbers of 4301 digits
    # It would look for the end of each open bracket; "|" is dropped like one.
    for brackets, ends in (("[<[]", ">]"), ("[(]", ")")):
        open_from = max(map(text.rfind, ends)) + 1
        text = text[:open_from] + re.sub(brackets, "|", text[open_from:])
    text = _english_normaliser()(text)
    for word, name, sign in ((_PLUS, "plus", "+"), (_MINUS, "minus", "-")):
        text = re.sub(rf"{word} (?=[$£€¢]?\.?\d|one\b)", sign, text).replace(word, name)
    # It leaves a point of "well..." behind.
    return " ".join(word for word in text.split() if any(map(str.isalnum, word)))


def _score_mandarin(text: str) -> str:
    spoken = normalise(re.sub("[〇○]", "零", to_simplified(text)), "zh").lower()
    # Digits of a telephone number and numbers that are said in two ways.
    spoken = re.sub(f"(?<=[{_DIGITS}])幺|幺(?=[{_DIGITS}幺])", "一", spoken)
    spoken = re.sub("两(?=[百千万亿])", "二", spoken)
    return "".join(c for c in spoken if c.isalnum() or is_han(c) or is_mark(c))


def _score_generic(text: str, space: str) -> str:
    spoken = (c if c.isalnum() or is_mark(c) else " " for c in text.casefold().replace("'", ""))
    return space.join("".join(spoken).split())


def error_rate(reference: str, hypothesis: str, language: str) -> float:
    """Word (Mandarin and others: character) error rate; over 1 with many insertions.

    The least of all `readings`. Raises ValueError for a reference without words.
    """
    import jiwer

    wanted, heard = readings(reference, language), readings(hypothesis, language)
    if not any(character.isalnum() for character in wanted[0]):
        raise ValueError(f"reference {reference!r} has no words, expected at least one")
    rate = jiwer.wer if language_pack(language).unit == "word" else jiwer.cer
    return min(float(rate(want, got)) for want in wanted for got in heard)
