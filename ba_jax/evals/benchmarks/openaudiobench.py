"""OpenAudioBench (huggingface.co/datasets/baichuan-inc/OpenAudioBench) as downloaded.

    FOLDER/eval_datas/                   or FOLDER itself
      SUBSET/SUBSET.csv                  each row names a file of audios/ in `audio_filename`
      SUBSET/audios/*.mp3

    subset           question      reference                   judged
    alpaca_eval      instruction   output                      1 to 10
    llama_questions  Questions     Answer                      right or wrong
    reasoning_qa     Prompt        参考答案                     1 to 10, against the reference
    trivia_qa        question      answer_normalized_aliases   right or wrong, any alias
    web_questions    question      answers                     right or wrong, any of them

By the data set's card the metric of reasoning_qa and alpaca_eval is a score, the others' an
accuracy. Lists are printed by Python or NumPy. Folders and columns are those that public loaders of
the release read; another layout is an error that says the expected one.
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
"""Subset -> (column of the question, column of the reference, rubric)."""


def load(folder: str | pathlib.Path, subsets: Iterable[str] = tuple(SUBSETS)) -> list[Question]:
    """Load the questions of the subsets, in order.

    Args:
      folder: the download, or its `eval_datas`.
      subsets: names of SUBSETS.

    Raises:
      LayoutError: an unknown subset, a missing file or column, a row without a question, a
        reference or a recording; the message has file, row and expected value.
    """
    folder = pathlib.Path(folder)
    if (folder / "eval_datas").is_dir():
        folder = folder / "eval_datas"
    questions = []
    for subset in subsets:
        if subset not in SUBSETS:
            raise LayoutError(f"subset {subset!r} of OpenAudioBench, expected one of {[*SUBSETS]}")
        question, reference, rubric = SUBSETS[subset]
        table = folder / subset / f"{subset}.csv"
        for row in tables.read_csv(table, (FILE, question, reference)):
            text = row.text(question)
            audio = row.file(folder / subset / "audios", row.text(FILE))
            rest = {k: v for k, v in row.values.items() if k not in (FILE, question, reference)}
            questions.append(
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
    _check_ids(questions)
    return questions


def _references(row: tables.TableRow, column: str, rubric: str) -> tuple[str, ...]:
    # An open answer may begin with a bracket without being a list.
    return tables.parse_list(row, column) if rubric == "correct" else (row.text(column),)


def _check_ids(questions: list[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise LayoutError(f"{question.id}: two rows name its recording")
        seen.add(question.id)
