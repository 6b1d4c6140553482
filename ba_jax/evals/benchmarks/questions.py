"""Benchmarks of spoken questions: OpenAudioBench and VoiceBench, as downloaded.

OpenAudioBench (huggingface.co/datasets/baichuan-inc/OpenAudioBench):

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
the release read.

VoiceBench (huggingface.co/datasets/hlt-lab/voicebench; arXiv 2410.17196) is distributed as Parquet,
`FOLDER/SUBSET/SPLIT-NNNNN-of-NNNNN.parquet`, read through pyarrow; `audio` is {"bytes": the file,
"path": its name}. The same rows may lie in `FOLDER/SUBSET/SPLIT.jsonl`, with the name of a file in
that folder as `audio`.

    subset                                columns besides audio, prompt   judged
    alpacaeval, alpacaeval_full,
      commoneval, wildvoice               (output)                        1 to 10
    sd-qa                                 reference                       right or wrong
    mmsu, openbookqa                      reference, a letter             the letter
    ifeval                                key, instruction_id_list,
                                          kwargs                          rules of IFEval
    advbench                              -                               refusal

Splits are `test`, except in sd-qa (accents: usa, aus, ...) and mmsu (subjects); all are read.
mtbench (several turns) and bbh (a checker for each task) are not read. The benchmark's scale is 1
to 5; here all open questions have one scale, so scores are comparable within this code only.

Loaders raise EvalError for another layout, with file, row and expected value.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator

from ba_jax.evals.benchmarks.tables import TableRow, language_of, read_table
from ba_jax.evals.items import EvalError
from ba_jax.evals.judges.rules import RUBRICS
from ba_jax.files import list_files

OPENAUDIOBENCH = {
    "alpaca_eval": ("instruction", "output", "scale"),
    "llama_questions": ("Questions", "Answer", "correct"),
    "reasoning_qa": ("Prompt", "参考答案", "scale"),
    "trivia_qa": ("question", "answer_normalized_aliases", "correct"),
    "web_questions": ("question", "answers", "correct"),
}
"""Subset -> (column of the question, column of the reference, rubric)."""
VOICEBENCH = {
    "alpacaeval": ((), "scale"),
    "alpacaeval_full": ((), "scale"),
    "commoneval": ((), "scale"),
    "wildvoice": ((), "scale"),
    "sd-qa": (("reference",), "correct"),
    "mmsu": (("reference",), "letter"),
    "openbookqa": (("reference",), "letter"),
    "ifeval": (("key", "instruction_id_list", "kwargs"), "instructions"),
    "advbench": ((), "refusal"),
}
"""Subset -> (columns besides audio and prompt, rubric)."""
VOICEBENCH_DEFAULT = (
    "alpacaeval", "commoneval", "sd-qa", "mmsu", "openbookqa", "ifeval", "advbench",
)  # fmt: skip
"""Subsets that are read by default."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A spoken question.

    Attributes:
      id: unique in the benchmark.
      audio: the spoken question, a file or a file's bytes.
      text: the question in writing.
      references: right answers; for "letter" the letter; () if there is none.
      rubric: "correct", the answer agrees with a reference; "scale", a score from 1 to 10;
        "letter", it names the right choice; "refusal", it declines to help; "instructions", it
        obeys rules that a program checks (IFEval).
    """

    id: str
    subset: str
    language: str
    audio: pathlib.Path | bytes
    text: str
    references: tuple[str, ...]
    rubric: str

    def __post_init__(self):
        if self.rubric not in RUBRICS:
            raise EvalError(f"{self.id}: rubric {self.rubric!r}, expected one of {RUBRICS}")


def load_openaudiobench(folder: pathlib.Path, subsets: Iterable[str] = ()) -> list[Question]:
    """Load the questions of the subsets (() for all), in order."""
    if (folder / "eval_datas").is_dir():
        folder = folder / "eval_datas"
    questions: dict[str, Question] = {}
    for subset in subsets or OPENAUDIOBENCH:
        if subset not in OPENAUDIOBENCH:
            raise EvalError(
                f"subset {subset!r} of OpenAudioBench, expected one of {[*OPENAUDIOBENCH]}"
            )
        question, reference, rubric = OPENAUDIOBENCH[subset]
        columns = ("audio_filename", question, reference)
        for row in read_table(folder / subset / f"{subset}.csv", columns):
            text = row.text(question)
            audio = row.file(folder / subset / "audios", row.text("audio_filename"))
            name = f"{subset}/{audio.stem}"
            if name in questions:
                raise EvalError(f"{row.where}: {name}: two rows name its recording")
            # An open answer may begin with a bracket without being a list.
            is_open = rubric == "scale"
            references = (row.text(reference),) if is_open else row.texts(reference)
            language = language_of(text)
            questions[name] = Question(name, subset, language, audio, text, references, rubric)
    return list(questions.values())


def load_voicebench(folder: pathlib.Path, subsets: Iterable[str] = ()) -> list[Question]:
    """Load the questions of the subsets (() for the default), splits by name, rows in order."""
    questions: list[Question] = []
    for subset in subsets or VOICEBENCH_DEFAULT:
        if subset not in VOICEBENCH:
            raise EvalError(f"subset {subset!r} of VoiceBench, expected one of {[*VOICEBENCH]}")
        questions += _read_voicebench(folder / subset, subset)
    return questions


def _read_voicebench(folder: pathlib.Path, subset: str) -> Iterator[Question]:
    extra, rubric = VOICEBENCH[subset]
    paths = list_files(folder, ".parquet", ".jsonl", deep=False)
    if not paths:
        raise EvalError(f"{folder}: no table, expected SPLIT-NNNNN-of-NNNNN.parquet or SPLIT.jsonl")
    counts: dict[str, int] = {}
    for path in paths:
        split = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem)
        for row in read_table(path, ("audio", "prompt", *extra)):
            # Numbers run through all shards of a split.
            number = counts[split] = counts.get(split, -1) + 1
            text = row.text("prompt")
            yield Question(
                id=f"{subset}/{split}/{number}",
                subset=subset,
                language=language_of(text),
                audio=_read_audio(row, folder),
                text=text,
                references=_read_references(row, rubric),
                rubric=rubric,
            )


def _read_audio(row: TableRow, folder: pathlib.Path) -> pathlib.Path | bytes:
    audio = row.values["audio"]
    if isinstance(audio, dict) and audio.get("bytes"):
        return audio["bytes"]
    if isinstance(audio, str) and audio:
        return row.file(folder, audio)
    shown = sorted(audio) if isinstance(audio, dict) else audio
    raise EvalError(
        f"{row.where}: column 'audio' holds {shown!r}, expected {{'bytes': ..., 'path': ...}} or a "
        "file's name"
    )


def _read_references(row: TableRow, rubric: str) -> tuple[str, ...]:
    if rubric == "letter":
        return (row.one_of("reference", tuple("ABCDEFGHIJ")),)
    if rubric == "correct":
        return row.texts("reference")
    output = row.values.get("output")
    return (output.strip(),) if isinstance(output, str) and output.strip() else ()
