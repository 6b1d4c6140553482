"""Tables of benchmarks (CSV, JSON lines, Parquet) as rows that know where they come from."""

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
    """A benchmark's folder that is not laid out as its authors lay it out."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      where: "file, row n", counted from 1 without a header.
      number: n.
      values: column -> value, a string in CSV.
    """

    where: str
    number: int
    values: Mapping[str, Any]

    def text(self, column: str) -> str:
        """A column's text without white space around it.

        Raises:
          LayoutError: nothing in it, or no text.
        """
        value = self.values[column]
        if not isinstance(value, str) or not value.strip():
            raise LayoutError(f"{self.where}: column {column!r} holds {value!r}, expected text")
        return value.strip()

    def one_of(self, column: str, known: Sequence[str]) -> str:
        """A column's text, which is one of `known`.

        Raises:
          LayoutError: another one.
        """
        value = str(self.values[column]).strip()
        if value not in known:
            raise LayoutError(
                f"{self.where}: column {column!r} holds {value!r}, expected one of {list(known)}"
            )
        return value

    def file(self, folder: pathlib.Path, name: str) -> pathlib.Path:
        """A file that the row names.

        Raises:
          LayoutError: it is not there, or not inside the folder.
        """
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise LayoutError(f"{self.where}: {name!r} lies outside {folder}")
        if not path.is_file():
            raise LayoutError(f"{self.where}: no file {path}")
        return path


def read_csv(path: pathlib.Path, columns: Sequence[str]) -> list[Row]:
    """Rows of a CSV file with a header.

    Args:
      path: in UTF-8, with or without a byte order mark.
      columns: that it has to have; it may have more.

    Raises:
      LayoutError: no such file, other columns, a row of another length, no rows, no UTF-8.
    """
    _check_file(path, columns)
    found = []
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
                found.append(Row(where, number, dict(zip(header, values, strict=True))))
    except (csv.Error, UnicodeDecodeError) as error:
        raise LayoutError(f"{path}: no CSV in UTF-8: {error}") from None
    return _some(path, found)


def read_jsonl(path: pathlib.Path, columns: Sequence[str]) -> list[Row]:
    """Rows of a file with a JSON object a line.

    Raises:
      LayoutError: no such file, a line that is no object or lacks one of `columns`, no rows.
    """
    _check_file(path, columns)
    found = []
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
        found.append(Row(where, number, values))
    return _some(path, found)


def read_parquet(path: pathlib.Path, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a Parquet file, read some at a time, through pyarrow (tensorflow-datasets has it).

    Raises:
      LayoutError: no such file, no Parquet, other columns, no rows.
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
                yield Row(f"{path}, row {number}", number, values)


_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def listed(row: Row, column: str) -> tuple[str, ...]:
    """Texts of a column that holds one, or a list printed by Python, NumPy or JSON.

    "['a', 'b']", "['a' 'b']" (NumPy's) and '["a", "b"]' are all a and b.

    Raises:
      LayoutError: nothing in it, or a list of anything but strings.
    """
    value = row.values[column]
    if isinstance(value, (list, tuple)):
        found = value
    else:
        text = row.text(column)
        if not (text.startswith("[") and text.endswith("]")):
            return (text,)
        inner = text[1:-1]
        if _QUOTED.sub("", inner).strip(" \t\r\n,"):
            raise LayoutError(f"{row.where}: column {column!r} holds {text!r}, expected strings")
        found = [ast.literal_eval(quoted) for quoted in _QUOTED.findall(inner)]
    texts = tuple(one.strip() for one in found if isinstance(one, str) and one.strip())
    if not texts:
        raise LayoutError(f"{row.where}: column {column!r} holds {value!r}, expected texts")
    return texts


def language_of(text: str) -> str:
    """ "zh" if there is a Chinese character in it, else "en"."""
    return "zh" if re.search("[\u3400-\u9fff]", text) else "en"


def _check_file(path: pathlib.Path, columns: Sequence[str]) -> None:
    if not path.is_file():
        raise LayoutError(f"{path}: no such file; expected a table with columns {list(columns)}")


def _check_columns(where: Any, found: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in found]
    if missing:
        raise LayoutError(
            f"{where}: no column {missing}, expected {list(columns)}; found {list(found)}"
        )


def _some(path: pathlib.Path, rows: list[Row]) -> list[Row]:
    if not rows:
        raise LayoutError(f"{path}: no rows")
    return rows
