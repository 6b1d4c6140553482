"""CMMLU (Li et al. 2023, arXiv 2306.09212): multiple-choice questions in Chinese.

    FOLDER/test/SUBJECT.csv          columns Question, A, B, C, D, Answer (a letter)
    FOLDER/audios/SUBJECT/N.wav      the spoken question of row N, counted from 0 (optional)

The tables are those of the release (its first, unnamed column counts rows). Recordings are not part
of it; sCMMLU, with endings rewritten as sentences, is in `s2sbench`.
"""

from __future__ import annotations

import pathlib

from ba_jax.evals.benchmarks import tables
from ba_jax.evals.benchmarks.choice import Choice
from ba_jax.evals.benchmarks.tables import LayoutError

LETTERS = ("A", "B", "C", "D")


def load(folder: str | pathlib.Path) -> list[Choice]:
    """Load the questions of all subjects, by name; the endings are the texts of A to D.

    Raises:
      LayoutError: no subject, missing columns, an answer that is no letter, or a subject with
        some recordings missing.
    """
    folder = pathlib.Path(folder)
    paths = sorted((folder / "test").glob("*.csv"))
    if not paths:
        raise LayoutError(f"{folder}/test: no SUBJECT.csv")
    choices = []
    for path in paths:
        recordings = folder / "audios" / path.stem
        spoken = recordings.is_dir()
        for row in tables.read_csv(path, ("Question", *LETTERS, "Answer")):
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
    return choices
