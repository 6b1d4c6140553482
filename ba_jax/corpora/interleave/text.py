"""Text for synthesis: tidying it, and cutting it at natural places.

A cut follows the end of a sentence or a clause, with the quotes and brackets that close there and
the white space after it; never inside a number ("3.14", "10:30", "1,000"), an abbreviation ("Dr.
Smith", "e.g. this", "U.S. army"), or a complete quotation or bracket that fits into a part.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata

from ba_jax.corpora.interleave.cuts import best_cuts
from ba_jax.data.record import HAN, drop_invisible
from ba_jax.speech.languages import LanguagePack, language_pack

PARAGRAPH, SENTENCE, CLAUSE = 3, 2, 1
"""Strengths of breaks; a line break ends a paragraph."""

COSTS = {PARAGRAPH: -0.5, SENTENCE: 0.0, CLAUSE: 0.3}
"""Costs of cuts, in the unit of `best_cuts`: a cut after a clause must improve evenness by 0.3, a
cut after a paragraph may worsen it by 0.5."""

HAN_A_SECOND = 5.1
"""Reading speed of Kokoro, pauses included: the mean of four Mandarin voices (5.0 to 5.4), on two
paragraphs each."""

_PAIRS = {
    "“": "”", "「": "」", "『": "』", "《": "》", "（": "）", "(": ")", "[": "]", "【": "】",
}  # fmt: skip
_CLOSERS = set(_PAIRS.values()) | {'"', "'", "’"}
_MOST_OPEN = 50  # nested quotes and brackets; deeper nesting is no text
_FULL_WIDTH = str.maketrans({",": "，", "?": "？", "!": "！", ";": "；", ":": "："})
_HALF_WIDTH = str.maketrans(
    {"，": ", ", "。": ". ", "？": "? ", "！": "! ", "；": "; ", "：": ": ", "、": ", "}
)
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev hon st sr jr gen col capt lt sgt gov sen rep pres vs etc eg ie cf al "
    "approx dept est fig no nos vol vols ch pp ed eds inc ltd co corp bros ave blvd rd mt ft jan "
    "feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun".split()
)
# Abbreviations that often end a sentence: followed by a capital, they do.
_OPEN_ABBREVIATIONS = frozenset("etc inc ltd co corp bros jr sr al".split())
_UNSPEAKABLE = (
    ("a web or e-mail address", re.compile(r"https?:|www\.|\S@\S+\.\w", re.I)),
    ("markup", re.compile(r"<[/!]?\w[^>]*>|\{\{|\]\(|```|&\w+;")),
    ("a special token", re.compile(r"<\|?[\w]+\|?>")),
)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Seconds of a part: target, least and most."""

    target: float = 5.0
    low: float = 1.5
    high: float = 15.0

    def __post_init__(self):
        if not 0 <= self.low <= self.target <= self.high or self.target <= 0:
            raise ValueError(
                f"low {self.low}, target {self.target}, high {self.high}: expected them in order"
            )


def tidy(text: str, language: str) -> str:
    """Text as it is stored and spoken: NFC, single spaces, the language's own punctuation.

    A single line break separates paragraphs. Invisible characters are removed; no
    word changes. Full-width letters and digits become ASCII; in Mandarin, punctuation between or
    after characters becomes full width and spaces between them are removed.
    """
    text = drop_invisible(text.replace("\r\n", "\n").replace("\r", "\n"))
    text = unicodedata.normalize("NFC", text)
    kept = []
    for c in text:
        if "\uff10" <= c <= "\uff5a" and unicodedata.normalize("NFKC", c).isalnum():
            c = unicodedata.normalize("NFKC", c)
        if c in "\n\u2028\u2029":
            kept.append("\n")
        elif c.isspace():
            kept.append(" ")
        else:
            kept.append(c)
    text = "".join(kept)
    pack = language_pack(language)
    if pack.normaliser == "mandarin":
        text = re.sub(
            rf"(?<=[{HAN}，。？！；：、”）])[ ]+(?=[{HAN}，。？！；：、“”（）])", "", text
        )
        text = re.sub(rf"(?<=[{HAN}”）])[,?!;:]", lambda m: m.group().translate(_FULL_WIDTH), text)
        text = re.sub(rf"(?<=[{HAN}”）])\.(?!\w|\.)", "。", text)
        text = re.sub(r"(?<=[，。？！；：、])[ ]+", "", text)
    elif pack.is_spaced:
        text = text.translate(_HALF_WIDTH)
    lines = (re.sub(" +", " ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def find_unspeakable(text: str) -> str:
    """The unspeakable content of a text ("markup"), or ""."""
    for name, pattern in _UNSPEAKABLE:
        if pattern.search(text):
            return name
    if not any(c.isalnum() for c in text):
        return "nothing to say"
    return ""


def find_breaks(text: str, language: str, longest: float = math.inf) -> dict[int, int]:
    """Find the possible cuts of a text.

    A quotation or bracket estimated longer than `longest` seconds may be cut where sentences end.

    Returns:
      offset -> PARAGRAPH, SENTENCE or CLAUSE, in order: a cut separates text[:offset] from
      text[offset:]. The text's own end is not included.
    """
    pack = language_pack(language)
    depths = _find_depths(text, language, longest)
    last_spoken = max((i for i, c in enumerate(text) if c.isalnum()), default=-1)
    breaks = {}
    i = 0
    has_speech = False  # since the last break
    while i < len(text):
        has_speech = has_speech or text[i].isalnum()
        strength = _strength(text, i, pack)
        if not strength:
            i += 1
            continue
        end = i + 1
        # "?!", "......", closing quotes and brackets belong to what they follow.
        while end < len(text) and (
            text[end] in pack.sentence_ends + pack.clause_ends + "\n"
            or (text[end] in _CLOSERS and not _opens(text, end))
        ):
            strength = max(strength, _strength(text, end, pack))
            end += 1
        while end < len(text) and text[end].isspace():
            strength = PARAGRAPH if text[end] == "\n" else strength
            end += 1
        depth = depths[end - 1]
        is_free = depth == 0 or (depth < 0 and strength >= SENTENCE)
        if is_free and has_speech and end <= last_spoken:
            breaks[end] = strength
            has_speech = False
        i = end
    return breaks


def _strength(text: str, i: int, pack: LanguagePack) -> int:
    """Strength of the break after character `i`, 0 if there is none."""
    c = text[i]
    if c == "\n":
        return PARAGRAPH
    before = text[i - 1] if i else " "
    after = text[i + 1] if i + 1 < len(text) else " "
    if c == ".":
        # A point inside a number, a name or an ellipsis in progress.
        if after.isalnum() or _is_abbreviation(text, i):
            return 0
        return SENTENCE
    if c in ",:" and after.isalnum() and before.isalnum() and before.isascii():
        return 0
    if c in ",;:!?" and not (after.isspace() or after in _CLOSERS or not after.isascii()):
        return 0 if after.isalnum() else CLAUSE
    if c in pack.sentence_ends:
        return SENTENCE
    return CLAUSE if c in pack.clause_ends else 0


def _is_abbreviation(text: str, i: int) -> bool:
    """Whether the point at `i` belongs to an abbreviation and ends no sentence."""
    word = re.search(r"[A-Za-z.]+$", text[max(0, i - 12) : i])
    if word is None:
        # "No. 5." ends, "5. Introduction" at a line's start does not.
        number = re.search(r"(^|\n)\s*\d+$", text[max(0, i - 6) : i])
        return number is not None
    name = word.group().replace(".", "").lower()
    following = text[i + 1 :].lstrip(" ")[:1]
    is_capital = following.isupper()
    if following and not is_capital and not following.isdigit() and following.isalpha():
        return True  # a sentence begins with a capital
    if name in _ABBREVIATIONS:
        return not (name in _OPEN_ABBREVIATIONS and (is_capital or not following))
    # "J. Smith", "U.S. Army", "p.m. Monday": single letters, except a lone "I".
    letters = word.group().strip(".").split(".")
    return all(len(letter) == 1 for letter in letters) and letters != ["I"] and bool(following)


def _opens(text: str, i: int) -> bool:
    """Whether the straight quote at `i` opens: a word follows and none stands before."""
    if text[i] not in "\"'’":
        return False
    after = text[i + 1] if i + 1 < len(text) else " "
    before = text[i - 1] if i else " "
    return after.isalnum() and before.isspace()


def _find_depths(text: str, language: str, longest: float) -> list[int]:
    """Per character: 0 outside quotes and brackets or at their end, else 1, or -1 if too long.

    An opener without a closer in the same paragraph is ignored.
    """
    depths = [0] * len(text)
    start = 0
    for line in text.splitlines(keepends=True):
        open_at: list[tuple[str, int]] = []
        for i, c in enumerate(line, start):
            is_closer = c in _CLOSERS
            closes = [k for k, (closer, _) in enumerate(open_at) if is_closer and closer == c]
            if closes:
                k = closes[-1]
                first = open_at[k][1]
                del open_at[k:]
                fits = estimate_seconds(text[first:i], language) <= longest
                for j in range(first, i):
                    # An inner pair that fits stays whole inside an outer one that does not.
                    depths[j] = 1 if fits else depths[j] or -1
            elif (c in _PAIRS or c == '"') and len(open_at) < _MOST_OPEN:
                open_at.append((_PAIRS.get(c, c), i))
        start += len(line)
    return depths


def estimate_seconds(text: str, language: str) -> float:
    """Rough duration of a text in speech; digits count like the words that they are read as."""
    han = sum("\u3400" <= c <= "\u9fff" for c in text)
    digits = sum(c.isdigit() for c in text)
    letters = sum(c.isalpha() for c in text) - han
    words = text.count(" ")
    pack = language_pack(language)
    each_digit = 5 / pack.letters_a_second if pack.is_spaced else 1 / HAN_A_SECOND
    return han / HAN_A_SECOND + (letters + words) / pack.letters_a_second + digits * each_digit


def segment(text: str, language: str, lengths: Lengths) -> list[str]:
    """Cut a text (see `tidy`) into parts of even length at natural places; they join to the text.

    The target is at most half of the whole, to get two parts. Text without natural places to cut
    makes longer parts, and a single short sentence a shorter one.
    """
    if not text:
        return []
    breaks = find_breaks(text, language, lengths.high)
    ends = [*breaks, len(text)]
    pieces = [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    seconds = [estimate_seconds(piece, language) for piece in pieces]
    costs = [*(COSTS[strength] for strength in breaks.values()), 0.0]
    target = max(lengths.low, min(lengths.target, sum(seconds) / 2))
    cuts = best_cuts(seconds, costs, target=target, low=lengths.low, high=lengths.high)
    return ["".join(pieces[a:b]) for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
