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


class LayoutError(ValueError):
    """A benchmark's folder with another layout than its authors'."""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
      where: "file, row NUMBER", for messages.
      number: position in the table, from 1, without a header.
      values: column -> value, a string in CSV.
    """

    where: str
    number: int
    values: Mapping[str, Any]

    def text(self, column: str) -> str:
        """Return a column's text without white space around it.

        Raises:
          LayoutError: an empty column, or another type.
        """
        value = self.values[column]
        if not isinstance(value, str) or not value.strip():
            raise LayoutError(f"{self.where}: column {column!r} holds {value!r}, expected text")
        return value.strip()

    def one_of(self, column: str, known: Sequence[str]) -> str:
        """Return a column's text, one of `known`.

        Raises:
          LayoutError: another text.
        """
        value = str(self.values[column]).strip()
        if value not in known:
            raise LayoutError(
                f"{self.where}: column {column!r} holds {value!r}, expected one of {list(known)}"
            )
        return value

    def file(self, folder: pathlib.Path, name: str) -> pathlib.Path:
        """Return the path of a file that the row names.

        Raises:
          LayoutError: it does not exist, or lies outside the folder.
        """
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise LayoutError(f"{self.where}: {name!r} lies outside {folder}")
        if not path.is_file():
            raise LayoutError(f"{self.where}: no file {path}")
        return path


def read_csv(path: pathlib.Path, columns: Sequence[str]) -> list[TableRow]:
    """Read a CSV file with a header.

    Args:
      path: a file in UTF-8, with or without a byte order mark.
      columns: required columns.

    Raises:
      LayoutError: no such file, a missing column, a row of another length, no rows, no UTF-8.
    """
    _check_file(path, columns)
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = [name.strip() for name in next(lines, [])]
            _check_columns(path, header, columns)
            for number, values in enumerate(lines, 1):
                if not values:
                    continue
                where = f"{path}, row {number}"
                if len(values) != len(header):
                    raise LayoutError(f"{where}: {len(values)} values, expected {len(header)}")
                rows.append(TableRow(where, number, dict(zip(header, values, strict=True))))
    except (csv.Error, UnicodeDecodeError) as error:
        raise LayoutError(f"{path}: no CSV in UTF-8: {error}") from None
    return _check_rows(path, rows)


def read_jsonl(path: pathlib.Path, columns: Sequence[str]) -> list[TableRow]:
    """Read a file with a JSON object in each line.

    Raises:
      LayoutError: no such file, a line that is no object or lacks one of `columns`, no rows.
    """
    _check_file(path, columns)
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise LayoutError(f"{path}: no UTF-8: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, row {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise LayoutError(f"{where}: no JSON: {error}") from None
        if not isinstance(values, dict):
            raise LayoutError(f"{where}: {type(values).__name__}, expected an object")
        _check_columns(where, list(values), columns)
        rows.append(TableRow(where, number, values))
    return _check_rows(path, rows)


def read_parquet(path: pathlib.Path, columns: Sequence[str]) -> Iterator[TableRow]:
    """Read a Parquet file in batches, through pyarrow (a requirement of tensorflow-datasets).

    Raises:
      LayoutError: no such file, no Parquet, a missing column, no rows.
    """
    import pyarrow
    import pyarrow.parquet

    _check_file(path, columns)
    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise LayoutError(f"{path}: no Parquet: {error}") from None
    with table:
        _check_columns(path, table.schema_arrow.names, columns)
        if not table.metadata.num_rows:
            raise LayoutError(f"{path}: no rows")
        number = 0
        for batch in table.iter_batches(batch_size=64):
            for values in batch.to_pylist():
                number += 1
                yield TableRow(f"{path}, row {number}", number, values)


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def parse_list(row: TableRow, column: str) -> tuple[str, ...]:
    """Parse a column with a text, or with a list printed by Python, NumPy or JSON.

    "['a', 'b']", "['a' 'b']" (NumPy's) and '["a", "b"]' are all a and b.

    Raises:
      LayoutError: an empty column, or a list of anything but strings.
    """
    value = row.values[column]
    if isinstance(value, (list, tuple)):
        values = value
    else:
        text = row.text(column)
        if not (text.startswith("[") and text.endswith("]")):
            return (text,)
        inner = text[1:-1]
        if _QUOTED.sub("", inner).strip(" \t\r\n,"):
            raise LayoutError(f"{row.where}: column {column!r} holds {text!r}, expected strings")
        values = [ast.literal_eval(quoted) for quoted in _QUOTED.findall(inner)]
    texts = tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
    if not texts:
        raise LayoutError(f"{row.where}: column {column!r} holds {value!r}, expected texts")
    return texts


def language_of(text: str) -> str:
    """Return "zh" for a text with a Chinese character, else "en"."""
    return "zh" if re.search("[\u3400-\u9fff]", text) else "en"


def _check_file(path: pathlib.Path, columns: Sequence[str]) -> None:
    if not path.is_file():
        raise LayoutError(f"{path}: no such file; expected a table with columns {list(columns)}")


def _check_columns(where: Any, names: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in names]
    if missing:
        raise LayoutError(
            f"{where}: no column {missing}, expected {list(columns)}; found {list(names)}"
        )


def _check_rows(path: pathlib.Path, rows: list[TableRow]) -> list[TableRow]:
    if not rows:
        raise LayoutError(f"{path}: no rows")
    return rows
