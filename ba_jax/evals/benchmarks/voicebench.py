"""VoiceBench (huggingface.co/datasets/hlt-lab/voicebench; arXiv 2410.17196).

Distributed as Parquet, `FOLDER/SUBSET/SPLIT-NNNNN-of-NNNNN.parquet`, read through pyarrow; `audio`
is {"bytes": the file, "path": its name}. The same rows may lie in `FOLDER/SUBSET/SPLIT.jsonl`, with
the name of a file in that folder as `audio`.

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
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator

from ba_jax.evals.benchmarks import tables
from ba_jax.evals.benchmarks.question import Question
from ba_jax.evals.benchmarks.tables import LayoutError

SUBSETS = {
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
DEFAULT = ("alpacaeval", "commoneval", "sd-qa", "mmsu", "openbookqa", "ifeval", "advbench")
"""Subsets that are read by default."""

LETTERS = tuple("ABCDEFGHIJ")

_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")


def load(folder: str | pathlib.Path, subsets: Iterable[str] = DEFAULT) -> list[Question]:
    """Load the questions of the subsets, splits by name, rows in order.

    Raises:
      LayoutError: an unknown subset, no table, a missing column, a row without a prompt, a
        reference or a recording; the message has file, row and expected value.
    """
    questions = []
    for subset in subsets:
        if subset not in SUBSETS:
            raise LayoutError(f"subset {subset!r} of VoiceBench, expected one of {[*SUBSETS]}")
        questions += _read_subset(pathlib.Path(folder) / subset, subset)
    return questions


def _read_subset(folder: pathlib.Path, subset: str) -> Iterator[Question]:
    extra, rubric = SUBSETS[subset]
    columns = ("audio", "prompt", *extra)
    counts: dict[str, int] = {}
    for path, split in _find_tables(folder):
        reader = tables.read_parquet if path.suffix == ".parquet" else tables.read_jsonl
        for row in reader(path, columns):
            # Numbers run through all shards of a split.
            number = counts[split] = counts.get(split, -1) + 1
            text = row.text("prompt")
            yield Question(
                id=f"{subset}/{split}/{number}",
                subset=subset,
                language=tables.language_of(text),
                audio=_audio(row, folder),
                text=text,
                references=_references(row, rubric),
                rubric=rubric,
                metadata={"split": split}
                | {k: v for k, v in row.values.items() if k not in ("audio", "prompt")},
            )


def _find_tables(folder: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    paths = []
    for path in sorted(folder.glob("*")):
        if path.suffix == ".parquet":
            shard = _SHARD.fullmatch(path.stem)
            paths.append((path, shard["split"] if shard else path.stem))
        elif path.suffix == ".jsonl":
            paths.append((path, path.stem))
    if not paths:
        raise LayoutError(
            f"{folder}: no table, expected SPLIT-NNNNN-of-NNNNN.parquet or SPLIT.jsonl"
        )
    return paths


def _audio(row: tables.TableRow, folder: pathlib.Path) -> pathlib.Path | bytes:
    audio = row.values["audio"]
    if isinstance(audio, dict) and audio.get("bytes"):
        return audio["bytes"]
    if isinstance(audio, str) and audio:
        return row.file(folder, audio)
    shown = sorted(audio) if isinstance(audio, dict) else audio
    raise LayoutError(
        f"{row.where}: column 'audio' holds {shown!r}, expected {{'bytes': ..., 'path': ...}} or a "
        "file's name"
    )


def _references(row: tables.TableRow, rubric: str) -> tuple[str, ...]:
    if rubric == "letter":
        return (row.one_of("reference", LETTERS),)
    if rubric == "correct":
        return tables.parse_list(row, "reference")
    output = row.values.get("output")
    return (output.strip(),) if isinstance(output, str) and output.strip() else ()
