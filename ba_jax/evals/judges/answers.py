"""Judges written answers: by rules, or by a model behind an OpenAI-compatible endpoint.

A judge maps questions to verdicts, both plain dicts that JSON holds:

    question  id, language, rubric (`benchmarks.questions.Question`), question, references, answer
    verdict   id, verdict ("right", "wrong", "scored", "invalid", "unjudged"), score, reason, judge,
              said (the judge's reply, word by word)

"invalid" is a reply in none of the expected forms; "unjudged" an answer that no judge has judged,
with the reason. Neither counts as right; both are counted and listed in the figures. Letters of
multiple-choice questions and refusals are judged by rules, whichever judge is set.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ba_jax.config import check_at_least, check_choices
from ba_jax.evals.items import EvalError
from ba_jax.evals.judges import rules
from ba_jax.speech.chat import Chat, ChatSettings
from ba_jax.speech.interfaces import SpeechToolError
from ba_jax.speech.text_norm import unify

KINDS = ("rules", "http")
LOWEST, HIGHEST = 1, 10
"""Scale of open answers."""

_SYSTEM = "You grade answers of a voice assistant. Reply in exactly the format that is asked for."
PROMPTS = {
    "correct": (
        "Question: {question}\n"
        "Reference answers, any of which is right: {references}\n"
        "Answer to grade: {answer}\n\n"
        "Does the answer to grade give a reference answer's content, without contradicting it? The "
        "answer may be a transcript of speech: spelling and number formats do not matter. Reply "
        "with one word, Yes or No."
    ),
    "scale": (
        "Request: {question}\n"
        "{reference_line}"
        "Response to grade: {answer}\n\n"
        "How well does the response serve the request, in correctness, relevance and completeness? "
        "It may be a transcript of speech: do not grade punctuation or layout. Reply with one "
        f"whole number from {LOWEST} (useless) to {HIGHEST} (could not be better), nothing else."
    ),
}
"""Rubric -> the endpoint's prompt."""
VERSION = 2
"""Version of `parse_reply`: raise it when a reply becomes another verdict."""


@dataclasses.dataclass(frozen=True)
class AnswerJudgeSettings(ChatSettings):
    """Settings of the judge of answers, and of its endpoint.

    Attributes:
      kind: "rules", or "http": an endpoint with `/chat/completions`.
      concurrency: requests at a time.
      give_up: after this many items in a row without a reply, leave the rest unjudged; 0: never.
      max_tokens: longest reply.
    """

    kind: str = "rules"
    concurrency: int = 4
    give_up: int = 8
    max_tokens: int = 16

    def __post_init__(self):
        check_choices(self, kind=KINDS)
        super().__post_init__()
        check_at_least(self, concurrency=1, give_up=0)
        if self.kind == "http":
            self.check_address("verdict")


class AnswerJudge:
    """Judges answers; an endpoint's valid replies are kept in a file and not requested again.

    Args:
      settings: see `AnswerJudgeSettings`.
      folder: folder of `verdicts.jsonl`; None keeps nothing.
      sleep: waits for some seconds; for tests.

    Raises:
      EvalError: the API key's variable is not set.
    """

    def __init__(
        self,
        settings: AnswerJudgeSettings,
        folder: str | os.PathLike | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.settings = settings
        path = None if folder is None else pathlib.Path(folder) / "verdicts.jsonl"
        try:
            self._chat = Chat(settings, path, sleep) if settings.kind == "http" else None
        except SpeechToolError as error:
            raise EvalError(str(error)) from None
        self._lock = threading.Lock()
        self._missed = 0

    @property
    def name(self) -> str:
        """Name of the judge, for the results."""
        s = self.settings
        return rules.NAME if s.kind == "rules" else f"{s.model} at {s.base_url}"

    def __call__(
        self, questions: Sequence[dict[str, Any]], progress: Callable[[int], None] | None = None
    ) -> list[dict[str, Any]]:
        """Judge answers; returns verdicts in order, an error as the verdict's reason.

        Raises:
          EvalError: a question of an unknown rubric.
        """
        for question in questions:
            if question["rubric"] not in rules.RUBRICS:
                raise EvalError(
                    f"{question['id']}: rubric {question['rubric']!r}, expected one of "
                    f"{rules.RUBRICS}"
                )
        verdicts = []
        workers = 1 if self.settings.kind == "rules" else self.settings.concurrency
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for verdict in pool.map(self._judge, questions):
                verdicts.append(verdict)
                if progress is not None:
                    progress(len(verdicts))
        return verdicts

    def _judge(self, question: dict[str, Any]) -> dict[str, Any]:
        if self.settings.kind == "rules" or question["rubric"] not in PROMPTS:
            return rules.judge_by_rules(question)
        if not unify(question["answer"] or "").strip():
            is_scale = question["rubric"] == "scale"
            verdict, score = ("scored", float(LOWEST)) if is_scale else ("wrong", None)
            reason = "an empty answer"
            return rules.make_verdict(question, verdict, self.name, score=score, reason=reason)
        body = self._request_body(question)
        reply = self._chat.kept(body)
        if reply is None:
            limit = self.settings.give_up
            if limit and self._missed >= limit:
                reason = f"the judge did not answer {limit} items in a row"
                return rules.make_verdict(question, "unjudged", self.name, reason=reason)
            reply, reason = self._chat.request(body)
            if reply is None:
                with self._lock:
                    self._missed += 1
                return rules.make_verdict(question, "unjudged", self.name, reason=reason)
            self._missed = 0
        verdict = parse_reply(question, reply, self.name)
        if verdict["verdict"] != "invalid":
            self._chat.keep(body, reply)
        return verdict

    def _request_body(self, question: dict[str, Any]) -> bytes:
        references = " | ".join(question["references"])
        prompt = PROMPTS[question["rubric"]].format(
            question=question["question"],
            references=references,
            reference_line=f"Reference answer: {references}\n" if references else "",
            answer=question["answer"],
        )
        return self._chat.body(_SYSTEM, prompt)


_YES = "yes|true|correct|right|是的?|对|正确"
_NO = "no|false|incorrect|wrong|not (?:true|correct|right)|否|不是的?|不对|不正确|错误?"
_NUMBERS = {
    name: number
    for names in (
        "one two three four five six seven eight nine ten".split(),
        "一二三四五六七八九十",
    )
    for number, name in enumerate(names, 1)
}
_NUMBER = rf"(?<![\w.,+−~≈-])(\d+(?:\.\d+)?|{'|'.join(_NUMBERS)})(?![\d%])(?!\.\d)"
_OUT_OF = rf"\s*(?:/|out of|of|分之)\s*(?:{HIGHEST}|ten|十)(?![\d.]*\d)"
_RANGE = r"(?!\s*(?:-|~|/|to\b|or\b|到|至|或)\s*\w)"
_LABEL = (
    r"\b(?:answer|verdict|judge?ment|grade|score|rating|result|response|decision|correct"
    r"|conclusion|overall|total)(?:\s*\([^()]{0,30}\))?[\"']?"
    r"(?:\s*[:=]|\s+-\s|\s+(?:is|would be)\b:?)"
    r"|\b(?:score|rating)\s+(?=\d)|\b(?:give|rate) (?:it|this|the response) (?:as )?an? "
    r"|(?:答案|结论|判断|评分|打分|得分|总分|分数)[是为:]"
)
_OPEN, _CLOSE = r"\W*", r"(?=[\s\"')\]}]*(?:[.,:;!。、\n—]|-\s|$))"
_TAG = r"<(answer|verdict|judge?ment|grade|score|rating|result)>"
_DRESS = r"```\w*|[*_`#|$]+|</?[a-z]+>|<\|\w+\|>|\\[a-z]+|\bon a scale (?:of|from) \d+(?: to |-)\d+"


def parse_reply(question: dict[str, Any], reply: str, judge: str) -> dict[str, Any]:
    """Turn a judge's reply into a verdict; an unexpected reply is "invalid".

    The answer may stand in a code fence or JSON, behind a label ("Answer:") or before its reasons,
    in any case, width and quotes; thoughts are left out. Two different answers are none.
    """
    plain = unify(rules.drop_thoughts(reply)).lower()
    plain = re.sub(_DRESS, "", re.sub(_TAG, r"\n\1: ", plain)).strip()
    score = None
    if question["rubric"] == "correct":
        opinions = _read_opinions(plain)
        verdict = opinions.pop() if len(opinions) == 1 else "invalid"
    else:
        scores = _read_scores(plain)
        score = scores.pop() if len(scores) == 1 else None
        if score is not None and not LOWEST <= score <= HIGHEST:
            score = None
        verdict = "invalid" if score is None else "scored"
    reason = "" if verdict != "invalid" else f"the judge said {reply[:80]!r}"
    return rules.make_verdict(question, verdict, judge, score=score, reason=reason, reply=reply)


def _read_opinions(plain: str) -> set[str]:
    """Read "right" or "wrong" behind labels, or else at the beginning and in the last line."""
    word = rf"(?:({_YES})|({_NO}))"
    matches = list(re.finditer(rf"(?:{_LABEL}){_OPEN}{word}{_CLOSE}", plain))
    if not matches:
        lines = plain.split("\n")
        # "Yes and no", "Yes, no" and "No contradiction" are no answers; "Yes, correct" is.
        other = rf"[^\w\n]*(?:and |or |but )?(?(1)(?:{_NO})|(?:{_YES})){_CLOSE}"
        first = re.match(rf"{_OPEN}{word}{_CLOSE}(?!{other})", plain)
        last = re.fullmatch(rf"{_OPEN}{word}[^\w?]*", lines[-1])
        matches = [match for match in (first, last) if match]
    return {"right" if match[1] else "wrong" for match in matches}


def _read_scores(plain: str) -> set[float]:
    """Read numbers behind labels, or else "8 out of 10", a line with a number alone, "8: good"."""
    patterns = (
        rf"(?:{_LABEL}){_OPEN}{_NUMBER}(?:{_OUT_OF})?{_RANGE}",
        rf"(?<!to )(?<!or )(?<!- ){_NUMBER}{_OUT_OF}",
        rf"^[^\w\n]*{_NUMBER}(?:\s*(?:points?|stars?|分))?[^\w\n/+-]*$",
        rf"\A\W*{_NUMBER}\s*(?:[:(—]|-\s)\s*(?=[^\W\d])",
    )
    for pattern in patterns:
        numbers = re.findall(pattern, plain, re.M)
        if numbers:
            return {float(_NUMBERS.get(number, number)) for number in numbers}
    return set()
