"""Files of saved lines: a header with the settings' hash, then a line of JSON for each item."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ba_jax.evals.items import EvalError, Line
from ba_jax.files import write_whole


def read_lines(path: pathlib.Path) -> tuple[dict[str, Any] | None, dict[str, Line]]:
    """Read (the header, id -> line) of a file; (None, {}) if there is none.

    A last line without its newline was cut short by a kill and is left out. Another line that is
    malformed raises EvalError.
    """
    try:
        raw_lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None, {}
    header, lines = None, {}
    for number, raw_line in enumerate(raw_lines, 1):
        try:
            value = json.loads(raw_line)
            if number == 1:
                header = {"made_with": value["made_with"], **value}
            else:
                lines[value["id"]] = value
        except (ValueError, KeyError, TypeError) as error:
            raise EvalError(f"{path}:{number}: no line of an evaluation ({error!r})") from None
    return header, lines


def read_matching_lines(path: pathlib.Path, made_with: str) -> dict[str, Line]:
    """Read a file's lines; none if they were made with other settings."""
    header, lines = read_lines(path)
    return lines if header is not None and header["made_with"] == made_with else {}


def write_lines(path: pathlib.Path, made_with: str, lines: Iterable[Line]) -> None:
    """Write a file of lines atomically."""
    write_whole(path, b"".join(map(_encode, ({"made_with": made_with}, *lines))))


def _encode(value: Mapping[str, Any]) -> bytes:
    # A judge's answer may hold half of a surrogate pair, which UTF-8 cannot encode.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace") + b"\n"


class Journal:
    """A file of lines that grows by batches; `add` returns when they are on the disk."""

    def __init__(self, path: pathlib.Path, made_with: str):
        # Rewritten, since a line that was cut short would spoil the next one.
        write_lines(path, made_with, read_matching_lines(path, made_with).values())
        self._file = path.open("ab")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, lines: Iterable[Line]) -> None:
        """Append a batch of lines."""
        self._file.write(b"".join(map(_encode, lines)))
        self._file.flush()
        os.fsync(self._file.fileno())
