"""Reading the text files that list a corpus, which may hold anything: bad lines are counted."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ba_jax.corpora.sources.base import Rejected, Rejection

MAX_LINE = 1 << 24
"""Bytes of the longest line that is read."""
_BOM = b"\xef\xbb\xbf"


class SourceError(ValueError):
    """A corpus that is not there or not in the layout that was named."""


def require_folder(value: str, what: str) -> Path:
    """The folder of that name.

    Raises:
      SourceError: there is none.
    """
    path = Path(value)
    if not value or not path.is_dir():
        raise SourceError(f"{what} = {value!r}: no such folder")
    return path


def require_file(path: Path, layout: str) -> Path:
    """The path of a file without which a layout makes no sense.

    Raises:
      SourceError: there is none.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file, expected as part of {layout}")
    return path


def read_lines(path: Path) -> Iterator[tuple[str, str] | Rejection]:
    """The lines of a UTF-8 file, with or without a byte-order mark, without their ends.

    Yields:
      ("file:line", text), or a Rejection for a line that is no UTF-8 or is over MAX_LINE bytes.

    Raises:
      SourceError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                where = f"{path}:{number}"
                if len(line) == MAX_LINE and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_LINE)
                    yield Rejection(where, "line too long", f"expected under {MAX_LINE} bytes")
                    continue
                if number == 1:
                    line = line.removeprefix(_BOM)
                line = line.rstrip(b"\r\n")
                try:
                    yield where, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    bad = line[error.start : error.start + 1].hex()
                    detail = f"byte 0x{bad} at position {error.start}, expected UTF-8"
                    yield Rejection(where, "not UTF-8", detail)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error})") from error


def read_rows(
    path: Path,
    columns: Sequence[str] | None = None,
    *,
    separator: str = "\t",
    required: Sequence[str] = (),
    escaped: bool = False,
) -> Iterator[tuple[str, Mapping[str, str]] | Rejection]:
    """The rows of a table of text, one a line; quotation marks are text.

    Args:
      path: the file.
      columns: their names, if the file does not begin with them.
      separator: between columns.
      required: columns that a header must name.
      escaped: a backslash before a separator, or before another, makes it text.

    Yields:
      ("file:line", column -> value), or a Rejection of a line that is not one.

    Raises:
      SourceError: the file cannot be read, or its header lacks a column.
    """
    is_first = True
    for line in read_lines(path):
        if isinstance(line, Rejection):
            if is_first and columns is None:
                raise SourceError(f"{line.where}: header {line.reason} ({line.detail})")
            yield line
            continue
        where, text = line
        if escaped and "\\" in text:
            try:
                row = next(
                    csv.reader([text], delimiter=separator, quoting=csv.QUOTE_NONE, escapechar="\\")
                )
            except csv.Error as error:
                yield Rejection(where, "not a row", f"{error}: {text[:80]!r}")
                continue
        else:
            row = text.split(separator)
        if is_first:
            is_first = False
            if columns is None:
                columns = row
                if missing := sorted(set(required) - set(columns)):
                    raise SourceError(f"{where}: columns {columns}, expected also {missing}")
                continue
        if not text.strip():
            continue
        if len(row) != len(columns):
            detail = f"{len(row)} columns, expected {len(columns)}: {text[:80]!r}"
            yield Rejection(where, "wrong number of columns", detail)
            continue
        yield where, dict(zip(columns, row, strict=True))


def check_unicode(value: str, name: str) -> str:
    """The value, if it can be stored as UTF-8.

    Raises:
      Rejected: it holds half of a surrogate pair, as JSON's "\\ud800" gives.
    """
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{name} holds {value[error.start]!r}, expected whole characters"
        raise Rejected("lone surrogate", detail) from None
    return value


def inside(root: Path, name: str, *, allow_absolute: bool = False) -> str:
    """The path of an existing regular file under a root.

    Args:
      root: all files lie below it, symbolic links resolved.
      name: relative to the root.
      allow_absolute: an absolute name is taken as it is, wherever it leads.

    Raises:
      Rejected: an absolute name, one that leaves the root, or no such file.
    """
    check_unicode(name, "path")
    if not name or "\0" in name:
        raise Rejected("bad path", f"path {name!r}, expected a file's name")
    if os.path.isabs(name):
        if not allow_absolute:
            raise Rejected("absolute path", f"path {name!r}, expected one relative to {root}")
        path = name
    else:
        path = os.path.join(root, name)
        real, real_root = os.path.realpath(path), os.path.realpath(root)
        if os.path.commonpath([real, real_root]) != real_root:
            raise Rejected("path leaves the root", f"path {name!r} leads to {real}, not {root}")
    if not os.path.exists(path):
        raise Rejected("missing file", f"{path}: no such file")
    if not os.path.isfile(path):
        raise Rejected("missing file", f"{path}: not a regular file")
    return str(path)
