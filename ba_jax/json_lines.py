"""Files of JSON, an object a line, that grow and that a kill may cut short."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ba_jax.files import with_path

# JSON allows these inside a string; other programs take them for ends of lines.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def encode(value: Any) -> bytes:
    """Encode a value as a line of UTF-8.

    Halves of surrogate pairs, which bytes of a file's name and bad JSON give, become JSON escapes.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_LINE_ENDS)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def read(path: Path, *keys: str) -> list[dict[str, Any]]:
    """Read a file's objects that hold text under one of the keys; [] if there is no file.

    Another line (a kill cuts the last one short) is left out, with a warning.
    """
    try:
        raw_lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    lines = []
    for number, raw_line in enumerate(raw_lines, 1):
        if not raw_line.strip():
            continue
        try:
            line = json.loads(raw_line)
            if not any(isinstance(line.get(key), str) for key in keys):
                raise ValueError(f"no {' or '.join(keys)}")
            lines.append(line)
        except (ValueError, AttributeError, RecursionError) as error:
            logging.warning("%s:%d: a damaged line is left out: %r", path, number, error)
    return lines


def append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines; they are on the disk when this returns.

    Raises:
      OSError: the file cannot be written (a full disk); names the file.
    """
    data = b"".join(map(encode, lines))
    try:
        with open(path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # ends a line that was cut short
                    data = b"\n" + data
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise with_path(error, path) from error
