"""Choice benchmarks: a context and its possible endings.

S2SBench (arXiv 2505.14438; github.com/undobug/S2SBench, by the paper's authors): spoken contexts
with written endings, and the contexts in writing too.

    FOLDER/                                   "S2S" in the release
      StoryCloze/sStory_s2t.jsonl             StoryCloze/s-story-firstspeech/UTTID.wav
      StoryCloze/zh_story.jsonl               StoryCloze/zh_story/UTTID.wav
      cmmlu/cmmlu_rewrite_4.jsonl             cmmlu/cmmlu_rewrite/UTTID.wav

A line of a story has `uttid`, `first` (the context) and `last` (an ending); lines come in pairs,
2k and 2k + 1 by the number before the first "_" of `uttid` (or `uttid` itself), and the even one
is right. A line of sCMMLU has `uttid`, `first`, the endings `A` to `D` and `answer`, a letter.

CMMLU (Li et al. 2023, arXiv 2306.09212): multiple-choice questions in Chinese. The tables are those
of the release (its first, unnamed column counts rows); recordings are not part of it.

    FOLDER/test/SUBJECT.csv          columns Question, A, B, C, D, Answer (a letter)
    FOLDER/audios/SUBJECT/N.wav      the spoken question of row N, counted from 0 (optional)

StoryCloze (Mostafazadeh et al. 2016), a CSV file with a row for each story:

    InputStoryid, InputSentence1 .. InputSentence4, RandomFifthSentenceQuiz1,
    RandomFifthSentenceQuiz2, AnswerRightEnding (1 or 2)

sStoryCloze and tStoryCloze as whole spoken stories (Hassid et al. 2023, TWIST, arXiv 2305.13009;
github.com/slp-rl/SpokenStoryCloze), of which the one with the right ending should be likelier. The
names of the files in that download could not be looked up; assumed is

    FOLDER/NAME_correct.wav  FOLDER/NAME_incorrect.wav
    FOLDER/correct/NAME.wav  FOLDER/incorrect/NAME.wav     (or this)

Loaders raise EvalError for another layout, with file, row and expected value.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator

from ba_jax.evals.benchmarks.tables import TableRow, read_table
from ba_jax.evals.items import EvalError
from ba_jax.files import list_files

LETTERS = ("A", "B", "C", "D")
S2SBENCH = {
    "sStoryCloze": ("StoryCloze/sStory_s2t.jsonl", "StoryCloze/s-story-firstspeech", "en"),
    "zh-sStoryCloze": ("StoryCloze/zh_story.jsonl", "StoryCloze/zh_story", "zh"),
    "sCMMLU": ("cmmlu/cmmlu_rewrite_4.jsonl", "cmmlu/cmmlu_rewrite", "zh"),
}
"""Subset -> (table, folder of recordings, language)."""
_SENTENCES = tuple(f"InputSentence{number}" for number in (1, 2, 3, 4))
_QUIZ = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")


@dataclasses.dataclass(frozen=True)
class Choice:
    """A context with two or more endings, of which one is right.

    Attributes:
      id: unique in the benchmark.
      endings: texts, or recordings (files).
      right: index of the right ending.
      text: the context in writing; "" if unknown.
      audio: the context as a recording; None if there is none.
    """

    id: str
    subset: str
    language: str
    endings: tuple[str, ...] | tuple[pathlib.Path, ...]
    right: int
    text: str = ""
    audio: pathlib.Path | None = None

    def __post_init__(self):
        if len(self.endings) < 2 or not 0 <= self.right < len(self.endings):
            raise EvalError(
                f"{self.id}: {len(self.endings)} endings, number {self.right} right: expected two "
                "or more, one of them right"
            )
        if len({isinstance(ending, str) for ending in self.endings}) > 1:
            raise EvalError(f"{self.id}: written and spoken endings, expected one kind")

    @property
    def is_spoken(self) -> bool:
        """The endings are recordings."""
        return not isinstance(self.endings[0], str)


def load_s2sbench(folder: pathlib.Path, subsets: Iterable[str] = ()) -> list[Choice]:
    """Load the choices of the subsets (() for all), in the order of their numbers."""
    choices: list[Choice] = []
    for subset in subsets or S2SBENCH:
        if subset not in S2SBENCH:
            raise EvalError(f"subset {subset!r} of S2SBench, expected one of {[*S2SBENCH]}")
        read = _read_rewritten_cmmlu if subset == "sCMMLU" else _read_stories
        choices += read(folder, subset)
    return choices


def _read_stories(folder: pathlib.Path, subset: str) -> Iterator[Choice]:
    table, recordings, language = S2SBENCH[subset]
    rows = read_table(folder / table, ("uttid", "first", "last"))
    numbered = sorted(((_parse_number(row), row) for row in rows), key=lambda pair: pair[0])
    for place in range(0, len(numbered), 2):
        (first, right), *rest = numbered[place : place + 2]
        uttid = right.values["uttid"]
        if first % 2 or not rest or rest[0][0] != first + 1:
            raise EvalError(
                f"{right.where}: uttid {uttid!r} has no partner: expected numbers 2k and 2k + 1"
            )
        wrong = rest[0][1]
        if right.text("first") != wrong.text("first"):
            raise EvalError(f"{wrong.where}: another context than {right.where}")
        yield Choice(
            id=f"{subset}/{first}",
            subset=subset,
            language=language,
            endings=(right.text("last"), wrong.text("last")),
            right=0,
            text=right.text("first"),
            audio=right.file(folder / recordings, f"{uttid}.wav"),
        )


def _parse_number(row: TableRow) -> int:
    uttid = row.values["uttid"]
    head = str(uttid).split("_")[0]
    if not re.fullmatch(r"\d{1,18}", head):
        raise EvalError(f"{row.where}: uttid {uttid!r}, expected it to begin with a number")
    return int(head)


def _read_rewritten_cmmlu(folder: pathlib.Path, subset: str) -> Iterator[Choice]:
    table, recordings, language = S2SBENCH[subset]
    for row in read_table(folder / table, ("uttid", "first", *LETTERS, "answer")):
        uttid = row.values["uttid"]
        yield Choice(
            id=f"{subset}/{uttid}",
            subset=subset,
            language=language,
            endings=tuple(row.text(letter) for letter in LETTERS),
            right=LETTERS.index(row.one_of("answer", LETTERS)),
            text=row.text("first"),
            audio=row.file(folder / recordings, f"{uttid}.wav"),
        )


def load_cmmlu(folder: pathlib.Path) -> list[Choice]:
    """Load the questions of all subjects, by name; the endings are the texts of A to D."""
    choices = []
    for path in list_files(folder / "test", ".csv", deep=False):
        recordings = folder / "audios" / path.stem
        spoken = recordings.is_dir()
        for row in read_table(path, ("Question", *LETTERS, "Answer")):
            number = row.number - 1
            choices.append(
                Choice(
                    id=f"{path.stem}/{number}",
                    subset=path.stem,
                    language="zh",
                    endings=tuple(row.text(letter) for letter in LETTERS),
                    right=LETTERS.index(row.one_of("Answer", LETTERS)),
                    text=row.text("Question"),
                    audio=row.file(recordings, f"{number}.wav") if spoken else None,
                )
            )
    if not choices:
        raise EvalError(f"{folder}/test: no SUBJECT.csv")
    return choices


def load_story_cloze(path: pathlib.Path) -> list[Choice]:
    """Load written stories."""
    columns = ("InputStoryid", *_SENTENCES, *_QUIZ, "AnswerRightEnding")
    return [
        Choice(
            id=row.text("InputStoryid"),
            subset="StoryCloze",
            language="en",
            endings=tuple(row.text(column) for column in _QUIZ),
            right=int(row.one_of("AnswerRightEnding", ("1", "2"))) - 1,
            text=" ".join(row.text(column) for column in _SENTENCES),
        )
        for row in read_table(path, columns)
    ]


def load_spoken_story_cloze(folder: pathlib.Path) -> list[Choice]:
    """Load pairs of whole spoken stories in English, the right one first."""
    pair = ("correct", "incorrect")
    if all((folder / side).is_dir() for side in pair):
        right, wrong = (
            {p.stem: p for p in list_files(folder / side, ".wav", deep=False)} for side in pair
        )
    else:
        right, wrong = (
            {
                p.stem.removesuffix(f"_{side}"): p
                for p in list_files(folder, f"_{side}.wav", deep=False)
            }
            for side in pair
        )
    if not right and not wrong:
        raise EvalError(
            f"{folder}: no pairs, expected NAME_correct.wav and NAME_incorrect.wav, or "
            "correct/NAME.wav and incorrect/NAME.wav"
        )
    if unpaired := sorted(set(right) ^ set(wrong)):
        missing = "correct" if unpaired[0] in wrong else "incorrect"
        raise EvalError(f"{folder}: no {missing} recording of {unpaired[0]!r}")
    return [
        Choice(name, folder.name, "en", (right[name], wrong[name]), 0) for name in sorted(right)
    ]
