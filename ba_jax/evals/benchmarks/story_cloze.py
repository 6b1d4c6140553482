"""StoryCloze (Mostafazadeh et al. 2016) in writing, and whole spoken stories in pairs.

`load_csv` reads the original table, with a row for each story:

    InputStoryid, InputSentence1 .. InputSentence4, RandomFifthSentenceQuiz1,
    RandomFifthSentenceQuiz2, AnswerRightEnding (1 or 2)

`load_pairs` reads sStoryCloze and tStoryCloze as whole spoken stories (Hassid et al. 2023, TWIST,
arXiv 2305.13009; github.com/slp-rl/SpokenStoryCloze), in which the story with the right ending
should be the likelier one. The names of the files in that download could not be looked up; assumed
is

    FOLDER/NAME_correct.wav  FOLDER/NAME_incorrect.wav
    FOLDER/correct/NAME.wav  FOLDER/incorrect/NAME.wav     (or this)
"""

from __future__ import annotations

import pathlib

from ba_jax.evals.benchmarks import tables
from ba_jax.evals.benchmarks.choice import Choice
from ba_jax.evals.benchmarks.tables import LayoutError

SENTENCES = tuple(f"InputSentence{number}" for number in (1, 2, 3, 4))
QUIZ = ("RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2")
PAIR = ("correct", "incorrect")


def load_csv(path: str | pathlib.Path) -> list[Choice]:
    """Load written stories.

    Raises:
      LayoutError: as `tables.read_csv`; an empty sentence, an answer that is neither 1 nor 2.
    """
    columns = ("InputStoryid", *SENTENCES, *QUIZ, "AnswerRightEnding")
    choices = []
    for row in tables.read_csv(pathlib.Path(path), columns):
        choices.append(
            Choice(
                id=row.text("InputStoryid"),
                subset="StoryCloze",
                language="en",
                endings=tuple(row.text(column) for column in QUIZ),
                right=int(row.one_of("AnswerRightEnding", ("1", "2"))) - 1,
                text=" ".join(row.text(column) for column in SENTENCES),
            )
        )
    return choices


def load_pairs(folder: str | pathlib.Path, language: str = "en") -> list[Choice]:
    """Load whole spoken stories, the right one first.

    Raises:
      LayoutError: no wav files, or one without its partner.
    """
    folder = pathlib.Path(folder)
    subfolders = [folder / side for side in PAIR]
    if all(path.is_dir() for path in subfolders):
        right, wrong = ({path.stem: path for path in side.glob("*.wav")} for side in subfolders)
    else:
        right, wrong = (
            {path.stem.removesuffix(f"_{side}"): path for path in folder.glob(f"*_{side}.wav")}
            for side in PAIR
        )
    if not right and not wrong:
        raise LayoutError(
            f"{folder}: no pairs, expected NAME_correct.wav and NAME_incorrect.wav, or "
            "correct/NAME.wav and incorrect/NAME.wav"
        )
    if unpaired := sorted(set(right) ^ set(wrong)):
        missing = "correct" if unpaired[0] in wrong else "incorrect"
        raise LayoutError(f"{folder}: no {missing} recording of {unpaired[0]!r}")
    return [
        Choice(name, folder.name, language, (right[name], wrong[name]), 0) for name in sorted(right)
    ]
