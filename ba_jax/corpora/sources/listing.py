"""Read the files that list a corpus; they may hold anything, and bad lines are counted.

A file that cannot be read raises SourceError, a bad value in a line Rejected.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError

MAX_LINE = 1 << 24
"""Bytes of the longest line that is read."""
_BOM = b"\xef\xbb\xbf"
_MAX_FILE_SECONDS = 48 * 3600.0  # longer lengths in a table are not believed
_Content = TypeVar("_Content")


def require_folder(value: str | Path, name: str) -> Path:
    """The folder that a config names; SourceError if there is none."""
    if not value or not Path(value).is_dir():
        raise SourceError(f"{name} = {str(value)!r}: no such folder")
    return Path(value)


def require_file(path: Path, layout: str) -> Path:
    """The path of a file that a layout requires; SourceError if it does not exist."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file, expected as part of {layout}")
    return path


def sorted_files(folders: Iterable[Path], pattern: str) -> list[Path]:
    """Files below folders, in order, without the "._" files that macOS leaves."""
    paths = [path for folder in folders for path in folder.rglob(pattern)]
    return sorted(path for path in paths if not path.name.startswith("._"))


def list_items(
    lines: Iterable[tuple[str, _Content] | Rejection],
    make_item: Callable[[str, _Content], Item | None],
) -> Iterator[Item | Rejection]:
    """Make an item of each good line; bad lines pass through.

    `make_item` maps ("file:line", content) to an item; None skips the line, `Rejected` counts it.
    """
    for line in lines:
        if isinstance(line, Rejection):
            yield line
            continue
        where, content = line
        try:
            item = make_item(where, content)
        except Rejected as rejected:
            item = rejected.at(where)
        if item is not None:
            yield item


def read_lines(path: Path) -> Iterator[tuple[str, str] | Rejection]:
    """The lines of a UTF-8 file, with or without a byte-order mark, without their ends.

    Yields:
      ("file:line", text), or a Rejection for a line that is not UTF-8 or is over MAX_LINE bytes.
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
    """The rows of a text table, one per line; quotation marks are plain text.

    Args:
      path: the file.
      columns: names of the columns; None reads them from the first line.
      separator: between columns.
      required: columns that the first line must name.
      escaped: a backslash makes a following separator or backslash plain text.

    Yields:
      ("file:line", column -> value), or a Rejection of a malformed line.
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


def parse_object(text: str) -> dict[str, Any]:
    """A line of a JSONL file."""
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed JSON", f"{error}: {text[:80]!r}") from None
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        raise Rejected("malformed JSON", f"a {kind}, expected an object: {text[:80]!r}")
    return fields


def _refuse_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def parse_seconds(value: str, scale: float = 1.0) -> float:
    """A length from a table times `scale`, or 0 if it is not a sensible number."""
    try:
        number = float(value) * scale
    except ValueError:
        return 0.0
    return number if 0 < number < _MAX_FILE_SECONDS else 0.0


def check_unicode(value: str, name: str) -> str:
    """Reject a value with half of a surrogate pair, which JSON's "\\ud800" encodes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        detail = f"{name} holds {value[error.start]!r}, expected whole characters"
        raise Rejected("lone surrogate", detail) from None
    return value


def find_inside(root: Path, name: str, *, allow_absolute: bool = False) -> str:
    """The path of an existing regular file under a root, symbolic links resolved.

    `allow_absolute` accepts absolute names, wherever they lead.
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
