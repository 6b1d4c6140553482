"""OpenAudioBench (huggingface.co/datasets/baichuan-inc/OpenAudioBench), as it is downloaded.

    FOLDER/eval_datas/                   or FOLDER itself
      SUBSET/SUBSET.csv                  each row names a file of audios/ in `audio_filename`
      SUBSET/audios/*.mp3

    subset           question      reference                   judged
    alpaca_eval      instruction   output                      1 to 10
    llama_questions  Questions     Answer                      right or wrong
    reasoning_qa     Prompt        参考答案                     1 to 10, against the reference
    trivia_qa        question      answer_normalized_aliases   right or wrong, any alias
    web_questions    question      answers                     right or wrong, any of them

The data set's card gives the metric of reasoning_qa and alpaca_eval as a score, that of the others
as an accuracy. Lists are Python's or NumPy's, printed. Folder and columns are those that public
loaders of the release read; a folder of another layout is an error that says what was expected.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from ba_jax.evals.benchmarks import tables
from ba_jax.evals.benchmarks.question import Question
from ba_jax.evals.benchmarks.tables import LayoutError

FILE = "audio_filename"
SUBSETS = {
    "alpaca_eval": ("instruction", "output", "scale"),
    "llama_questions": ("Questions", "Answer", "correct"),
    "reasoning_qa": ("Prompt", "参考答案", "scale"),
    "trivia_qa": ("question", "answer_normalized_aliases", "correct"),
    "web_questions": ("question", "answers", "correct"),
}
"""Subset -> (column of the question, of the reference, rubric)."""


def load(folder: str | pathlib.Path, subsets: Iterable[str] = tuple(SUBSETS)) -> list[Question]:
    """Questions of the subsets, in order.

    Args:
      folder: the download, or its `eval_datas`.
      subsets: which.

    Raises:
      LayoutError: an unknown subset, a missing file, other columns, a row without a question, a
        reference or a recording; it names file, row and what was expected.
    """
    folder = pathlib.Path(folder)
    if (folder / "eval_datas").is_dir():
        folder = folder / "eval_datas"
    found = []
    for subset in subsets:
        if subset not in SUBSETS:
            raise LayoutError(f"subset {subset!r} of OpenAudioBench, expected one of {[*SUBSETS]}")
        question, reference, rubric = SUBSETS[subset]
        own = folder / subset
        for row in tables.read_csv(own / f"{subset}.csv", (FILE, question, reference)):
            text = row.text(question)
            audio = row.file(own / "audios", row.text(FILE))
            rest = {k: v for k, v in row.values.items() if k not in (FILE, question, reference)}
            found.append(
                Question(
                    id=f"{subset}/{audio.stem}",
                    subset=subset,
                    language=tables.language_of(text),
                    audio=audio,
                    text=text,
                    references=_references(row, reference, rubric),
                    rubric=rubric,
                    metadata=rest,
                )
            )
    _check_ids(found)
    return found


def _references(row: tables.Row, column: str, rubric: str) -> tuple[str, ...]:
    # An open answer may begin with a bracket: it is no list.
    return tables.listed(row, column) if rubric == "correct" else (row.text(column),)


def _check_ids(questions: list[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise LayoutError(f"{question.id}: its recording is named by two rows")
        seen.add(question.id)
