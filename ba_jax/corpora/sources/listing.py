"""Read the files that list a corpus; they may hold anything, and bad lines are counted.

A file that cannot be read raises SourceError, a bad value in a line Rejected.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ba_jax.config import ConfigError, local_path
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, SourceError
from ba_jax.data.record import drop_invisible
from ba_jax.files import list_files

MAX_LINE = 1 << 24
"""Bytes of the longest line that is read."""
_BOM = b"\xef\xbb\xbf"
MAX_SECONDS = 1e6
"""Bound on the seconds that a corpus states, ten days: no recording is as long."""
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


def find_files(folder: Path, *suffixes: str) -> list[Path]:
    """`list_files`; SourceError for a folder that cannot be read."""
    try:
        return list_files(folder, *suffixes)
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror})") from error


def find_recordings(
    folders: Iterable[Path], suffix: str
) -> tuple[dict[str, Path], list[Rejection]]:
    """Map the name of each recording below folders to its path; reject those of a name again."""
    paths: dict[str, Path] = {}
    doubles = []
    for path in (path for folder in folders for path in find_files(folder, suffix)):
        if paths.setdefault(path.stem, path) is not path:
            detail = f"{path.stem!r} is also at {paths[path.stem]}"
            doubles.append(Rejection(str(path), "duplicate id", detail))
    return paths, doubles


def clean_text(text: str) -> str:
    """A transcript without invisible characters and the white space at its ends."""
    return drop_invisible(text).strip()


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
    """The lines of a UTF-8 file, without byte-order marks before them and without their ends.

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
                # Files that were joined have one in each part.
                line = line.removeprefix(_BOM).rstrip(b"\r\n")
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
    needed: Sequence[str],
    *,
    columns: Sequence[str] | None = None,
    separator: str = "\t",
    escaped: bool = False,
) -> Iterator[tuple[str, Mapping[str, str]] | Rejection]:
    """The rows of a text table, one per line, by the names of their columns.

    Most corpora have tables without quoting, where quotation marks are text. They are undone in a
    row that a CSV writer would write just so (marks round the values with a mark or a separator,
    marks inside doubled), and in all rows of a table whose header has marks round every name.

    Args:
      path: the file.
      needed: columns that the table must have.
      columns: names of the columns of a table without a header. A first line with the names of the
        needed ones is a header all the same. None: there must be one.
      separator: between columns.
      escaped: a backslash makes the next character text.

    Yields:
      ("file:line", column -> value), or a Rejection of a malformed line.
    """
    is_first, quoted = True, False
    for line in read_lines(path):
        if isinstance(line, Rejection):
            if is_first and columns is None:
                raise SourceError(f"{line.where}: header {line.reason} ({line.detail})")
            yield line
            continue
        where, text = line
        if not text.strip():
            continue
        if is_first:
            names = text.split(separator)
            quoted = all(len(name) > 1 and name[0] == name[-1] == '"' for name in names)
        try:
            row = _split(text, separator, quoted, escaped and "\\" in text)
        except csv.Error as error:
            yield Rejection(where, "not a row", f"{error}: {text[:80]!r}")
            continue
        if is_first:
            is_first = False
            names = [name.strip() for name in row]
            if columns is None or set(needed) <= set(names):
                columns = names
                shown = f"{where}: columns {str(names)[:200]}"
                if missing := sorted(set(needed) - set(names)):
                    raise SourceError(f"{shown}, expected also {missing}")
                if twice := sorted(name for name in set(needed) if names.count(name) > 1):
                    raise SourceError(f"{shown}, expected {twice} once")
                continue
        if len(row) != len(columns):
            detail = f"{len(row)} columns, expected {len(columns)}: {text[:80]!r}"
            yield Rejection(where, "wrong number of columns", detail)
            continue
        yield where, dict(zip(columns, row, strict=True))
    if is_first and columns is None:
        raise SourceError(f"{path}: is empty, expected columns {list(needed)}")


def _split(text: str, separator: str, quoted: bool, escaped: bool) -> list[str]:
    """The values of a row; `quoted` if its table is known to have quoting."""
    if escaped:
        none = csv.QUOTE_NONE
        return next(csv.reader([text], delimiter=separator, quoting=none, escapechar="\\"))
    plain = text.split(separator)
    if '"' not in text:
        return plain
    try:
        row = next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        if quoted:
            raise
        return plain
    line = io.StringIO()
    csv.writer(line, delimiter=separator, lineterminator="").writerow(row)
    return row if quoted or line.getvalue() == text else plain


def parse_seconds(value: str, scale: float = 1.0) -> float:
    """A length from a table times `scale`; 0 for a blank one."""
    if not value.strip():
        return 0.0
    try:
        seconds = float(value) * scale
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < MAX_SECONDS:
        raise Rejected("bad times", f"length {value[:80]!r}, expected a number over 0")
    return seconds


def parse_object(text: str) -> dict[str, Any]:
    """A line of a JSONL file."""
    try:
        fields = _line_decoder().decode(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed JSON", f"{error}: {text[:80]!r}") from None
    if not isinstance(fields, dict):
        raise Rejected("malformed JSON", f"{ascii(fields)[:80]}, expected an object")
    return fields


def read_json(path: Path) -> Any:
    """The content of a JSON file, with any NaN and infinities in it; SourceError if it has none."""
    try:
        data = path.read_bytes()
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_to_object)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        detail = f"byte 0x{data[error.start]:02x} at position {error.start}, expected UTF-8"
        raise SourceError(f"{path}:{line}: {detail}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: no JSON ({error})") from None


class _RepeatedKey:
    """Stands for a JSON object with two values of a key, so that it alone is refused."""

    def __init__(self, key: str):
        self.key = key

    def __repr__(self):
        return f"an object with {self.key!r} twice"


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _RepeatedKey:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    keys = [key for key, _ in pairs]
    return _RepeatedKey(next(key for key in keys if keys.count(key) > 1))


@functools.cache
def _line_decoder() -> json.JSONDecoder:
    def refuse(name: str):
        raise ValueError(f"{name} is not JSON")

    return json.JSONDecoder(parse_constant=refuse, object_pairs_hook=_to_object)


def check_fields(
    fields: Any,
    known: Mapping[str, tuple[type, ...]],
    *,
    needed: Sequence[str] = (),
    extra_keys: bool = False,
    name: str = "",
) -> dict[str, Any]:
    """The values of a JSON object by its keys; null is as if the key were absent.

    Args:
      known: key -> the types that its value may have.
      needed: keys that must have a value.
      extra_keys: leave out keys that are not known, instead of rejecting the object.
      name: of the object, for messages: "segment 3: ".
    """
    if not isinstance(fields, dict):
        raise Rejected("bad value", f"{name}{ascii(fields)[:80]}, expected an object")
    values = {key: value for key, value in fields.items() if value is not None}
    unknown = [key for key in values if key not in known]
    if unknown and not extra_keys:
        detail = f"{name}{sorted(unknown)}, expected some of {sorted(known)}"
        raise Rejected("unknown key", ascii(detail)[1:-1])
    for key in unknown:
        del values[key]
    for key in needed:
        if key not in values:
            _refuse_value(name + key, "null" if key in fields else "missing", known[key])
    for key, value in values.items():
        types = known[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            _refuse_value(name + key, ascii(value)[:80], types)
        if isinstance(value, str):
            check_unicode(value, name + key)
    return values


def _refuse_value(name: str, content: str, types: Iterable[type]) -> NoReturn:
    expected = " or ".join(t.__name__ for t in types)
    raise Rejected("bad value", f"{name} {content}, expected {expected}")


def check_unicode(value: str, name: str) -> str:
    """Reject a value with half of a surrogate pair: JSON's "\\ud800", a file name not in UTF-8."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = value[error.start]
        # Python's sign of a byte in the name of a file.
        byte = f" (byte 0x{ord(half) - 0xDC00:02x})" if "\udc80" <= half <= "\udcff" else ""
        detail = f"{name} holds {half!r}{byte}, expected whole characters"
        raise Rejected("lone surrogate", detail) from None
    return value


def find_inside(root: Path, name: str, *, allow_absolute: bool = False) -> str:
    """The path of an existing regular file under a root, symbolic links resolved.

    The suffix may be in another case: "a.wav" finds a.WAV if there is no a.wav. `allow_absolute`
    accepts absolute names, wherever they lead, and expands `~` and variables in a name that is not
    a file's.
    """
    check_unicode(name, "path")
    if not name or "\0" in name or re.match(r"file:|\w+://", name):
        raise Rejected("bad path", f"path {name!r}, expected a file's name")
    if os.path.basename(name).startswith("._"):
        raise Rejected("bad path", f"path {name!r}, a file that macOS leaves beside another")
    if allow_absolute and not os.path.exists(os.path.join(root, name)):
        try:
            name = local_path(name)
        except ConfigError as error:
            raise Rejected("bad path", str(error)) from None
    is_absolute = os.path.isabs(name)
    if is_absolute and not allow_absolute:
        raise Rejected("absolute path", f"path {name!r}, expected one relative to {root}")
    path = os.path.join(root, name)
    is_file = os.path.isfile(path)
    if not is_file:
        stem, suffix = os.path.splitext(path)
        cases = (suffix.lower(), suffix.upper(), suffix[:1] + suffix[1:].capitalize())
        path = next((stem + case for case in cases if os.path.isfile(stem + case)), path)
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    if not is_absolute and os.path.commonpath([real, real_root]) != real_root:
        raise Rejected("path leaves the root", f"path {name!r} leads to {real}, not {root}")
    if not is_file and not os.path.isfile(path):
        problem = "not a regular file" if os.path.exists(path) else "no such file"
        raise Rejected("missing file", f"{path}: {problem}")
    return str(path)
