"""Tables of benchmarks (CSV, JSON lines, Parquet) as rows that know their file and number."""

from __future__ import annotations

import ast
import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ba_jax.evals.items import EvalError
from ba_jax.speech.text_norm import is_han, unify


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table; its methods raise EvalError for a value that is not the expected one.

    Attributes:
      where: "file, row NUMBER", for messages.
      number: position in the table, from 1, without a header.
      values: column -> value, a string in CSV.
    """

    where: str
    number: int
    values: Mapping[str, Any]

    def text(self, column: str) -> str:
        """Return a column's text, which is not empty, without white space around it."""
        value = self.values[column]
        if not isinstance(value, str) or not unify(value).strip():
            raise EvalError(f"{self.where}: column {column!r} holds {value!r}, expected text")
        return value.strip()

    def one_of(self, column: str, known: Sequence[str]) -> str:
        """Return a column's text, one of `known`, of any width."""
        value = unify(str(self.values[column])).strip()
        if value not in known:
            raise EvalError(
                f"{self.where}: column {column!r} holds {value!r}, expected one of {list(known)}"
            )
        return value

    def texts(self, column: str) -> tuple[str, ...]:
        """Parse a column with a text, or with a list printed by Python, NumPy or JSON.

        "['a', 'b']", "['a' 'b']" (NumPy's) and '["a", "b"]' are all a and b.
        """
        value = self.values[column]
        if isinstance(value, (list, tuple)):
            values = value
        else:
            text = self.text(column)
            if not (text.startswith("[") and text.endswith("]")):
                return (text,)
            if _QUOTED.sub("", text[1:-1]).strip(" \t\r\n,"):
                raise EvalError(f"{self.where}: column {column!r} holds {text!r}, expected strings")
            try:
                values = [ast.literal_eval(quoted) for quoted in _QUOTED.findall(text)]
            except (SyntaxError, ValueError) as error:  # a bad escape, a line's end
                raise EvalError(
                    f"{self.where}: column {column!r} holds {text!r}, expected strings ({error})"
                ) from None
        texts = tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
        if not texts:
            raise EvalError(f"{self.where}: column {column!r} holds {value!r}, expected texts")
        return texts

    def file(self, folder: pathlib.Path, name: str) -> pathlib.Path:
        """Return the path of a file that the row names, which exists inside the folder."""
        path = folder / name
        try:
            is_inside = path.resolve().is_relative_to(folder.resolve())
            is_file = path.is_file()
        except (OSError, ValueError) as error:  # too long, a null character, half a surrogate pair
            raise EvalError(
                f"{self.where}: {name!r:.80} is no file's name: {error!s:.80}"
            ) from None
        if not is_inside:
            raise EvalError(f"{self.where}: {name!r} lies outside {folder}")
        if not is_file:
            raise EvalError(f"{self.where}: no file {path}")
        return path


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def read_table(path: pathlib.Path, columns: Sequence[str]) -> Iterator[TableRow]:
    """Read a table by its suffix: .csv with a header, .jsonl or .parquet.

    Raises:
      EvalError: no such file, another format, a row without one of the `columns`, no rows.
    """
    if not path.is_file():
        raise EvalError(f"{path}: no such file; expected a table with columns {list(columns)}")
    read = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[
        path.suffix.lower()
    ]
    number = 0
    for number, values in read(path):
        where = f"{path}, row {number}"
        if missing := [name for name in columns if name not in values]:
            raise EvalError(
                f"{where}: no column {missing}, expected {list(columns)}; found {list(values)}"
            )
        yield TableRow(where, number, values)
    if not number:
        raise EvalError(f"{path}: no rows, expected a table with columns {list(columns)}")


_Rows = Iterator[tuple[int, Mapping[str, Any]]]


def _read_csv(path: pathlib.Path) -> _Rows:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            for number, values in enumerate(lines, 1):
                if values and len(values) != len(header):
                    raise EvalError(
                        f"{path}, row {number}: {len(values)} values, expected {len(header)}"
                    )
                if values:
                    yield number, dict(zip(header, values, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise EvalError(f"{path}: no CSV in UTF-8: {error}") from None


def _read_jsonl(path: pathlib.Path) -> _Rows:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise EvalError(f"{path}: not UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EvalError(f"{path}, row {number}: no JSON: {error}") from None
        if not isinstance(values, dict):
            name = type(values).__name__
            raise EvalError(f"{path}, row {number}: {name}, expected an object")
        yield number, values


def _read_parquet(path: pathlib.Path) -> _Rows:
    """Read through pyarrow, a requirement of tensorflow-datasets."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise EvalError(f"{path}: no Parquet: {error}") from None
    with table:
        batches = table.iter_batches(batch_size=64)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def language_of(text: str) -> str:
    """Return "zh" for a text with a Chinese character, else "en"."""
    return "zh" if any(map(is_han, text)) else "en"
