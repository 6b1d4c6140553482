"""sStoryCloze, zh-sStoryCloze and sCMMLU as S2SBench distributes them (arXiv 2505.14438).

The paper's authors released it (github.com/undobug/S2SBench): spoken contexts with written endings,
and the contexts in writing too.

    FOLDER/                                   "S2S" in the release
      StoryCloze/sStory_s2t.jsonl             StoryCloze/s-story-firstspeech/UTTID.wav
      StoryCloze/zh_story.jsonl               StoryCloze/zh_story/UTTID.wav
      cmmlu/cmmlu_rewrite_4.jsonl             cmmlu/cmmlu_rewrite/UTTID.wav

A line of a story has `uttid`, `first` (the context) and `last` (an ending); lines come in pairs,
2k and 2k + 1 by the number before the first "_" of `uttid` (or `uttid` itself), and the even one
is right. A line of sCMMLU has `uttid`, `first`, the endings `A` to `D` and `answer`, a letter.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable

from ba_jax.evals.benchmarks import tables
from ba_jax.evals.benchmarks.choice import Choice
from ba_jax.evals.benchmarks.tables import LayoutError, TableRow

SUBSETS = {
    "sStoryCloze": ("StoryCloze/sStory_s2t.jsonl", "StoryCloze/s-story-firstspeech", "en"),
    "zh-sStoryCloze": ("StoryCloze/zh_story.jsonl", "StoryCloze/zh_story", "zh"),
    "sCMMLU": ("cmmlu/cmmlu_rewrite_4.jsonl", "cmmlu/cmmlu_rewrite", "zh"),
}
"""Subset -> (table, folder of recordings, language)."""
LETTERS = ("A", "B", "C", "D")


def load(folder: str | pathlib.Path, subsets: Iterable[str] = tuple(SUBSETS)) -> list[Choice]:
    """Load the choices of the subsets, in the order of their numbers.

    Raises:
      LayoutError: an unknown subset, a missing file, lines that are no pair, two contexts in one
        pair, an answer that is no letter; the message has file, row and expected value.
    """
    folder = pathlib.Path(folder)
    choices = []
    for subset in subsets:
        if subset not in SUBSETS:
            raise LayoutError(f"subset {subset!r} of S2SBench, expected one of {[*SUBSETS]}")
        table, recordings, language = SUBSETS[subset]
        read = _read_questions if subset == "sCMMLU" else _read_stories
        choices += read(folder / table, folder / recordings, subset, language)
    return choices


def _read_stories(
    path: pathlib.Path, recordings: pathlib.Path, subset: str, language: str
) -> list[Choice]:
    rows = tables.read_jsonl(path, ("uttid", "first", "last"))
    numbered = sorted(((_parse_number(row), row) for row in rows), key=lambda pair: pair[0])
    choices = []
    for place in range(0, len(numbered), 2):
        (first, right), *rest = numbered[place : place + 2]
        if first % 2 or not rest or rest[0][0] != first + 1:
            raise LayoutError(
                f"{right.where}: uttid {right.values['uttid']!r} has no partner: expected numbers "
                "2k and 2k + 1"
            )
        wrong = rest[0][1]
        if right.text("first") != wrong.text("first"):
            raise LayoutError(f"{wrong.where}: another context than {right.where}")
        choices.append(
            Choice(
                id=f"{subset}/{first}",
                subset=subset,
                language=language,
                endings=(right.text("last"), wrong.text("last")),
                right=0,
                text=right.text("first"),
                audio=right.file(recordings, f"{right.values['uttid']}.wav"),
            )
        )
    return choices


def _parse_number(row: TableRow) -> int:
    uttid = row.values["uttid"]
    head = str(uttid).split("_")[0]
    if not re.fullmatch(r"\d+", head):
        raise LayoutError(f"{row.where}: uttid {uttid!r}, expected it to begin with a number")
    return int(head)


def _read_questions(
    path: pathlib.Path, recordings: pathlib.Path, subset: str, language: str
) -> list[Choice]:
    choices = []
    for row in tables.read_jsonl(path, ("uttid", "first", *LETTERS, "answer")):
        choices.append(
            Choice(
                id=f"{subset}/{row.values['uttid']}",
                subset=subset,
                language=language,
                endings=tuple(row.text(letter) for letter in LETTERS),
                right=LETTERS.index(row.one_of("answer", LETTERS)),
                text=row.text("first"),
                audio=row.file(recordings, f"{row.values['uttid']}.wav"),
            )
        )
    return choices
