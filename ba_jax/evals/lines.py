"""Files of saved lines: a header with the settings' hash, then a line of JSON for each item."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from ba_jax import json_lines
from ba_jax.evals.items import Line
from ba_jax.files import write_whole


def read_lines(path: pathlib.Path) -> tuple[str | None, dict[str, Line]]:
    """Read (the settings' hash, id -> line) of a file; (None, {}) without a file or its header.

    Damaged lines are left out, with a warning.
    """
    header, *lines = json_lines.read(path, "made_with", "id") or [{}]
    if "made_with" not in header:
        return None, {}
    return header["made_with"], {line["id"]: line for line in lines if "id" in line}


def read_matching_lines(path: pathlib.Path, made_with: str) -> dict[str, Line]:
    """Read a file's lines; none if they were made with other settings."""
    before, lines = read_lines(path)
    return lines if before == made_with else {}


def write_lines(path: pathlib.Path, made_with: str, lines: Iterable[Line]) -> None:
    """Write a file of lines atomically."""
    write_whole(path, b"".join(map(json_lines.encode, ({"made_with": made_with}, *lines))))


class Journal:
    """A file of lines that grows by batches; `add` returns when they are on the disk."""

    def __init__(self, path: pathlib.Path, made_with: str):
        # Rewritten, without a line that was cut short.
        write_lines(path, made_with, read_matching_lines(path, made_with).values())
        self._path = path

    def add(self, lines: Iterable[Line]) -> None:
        """Append a batch of lines."""
        json_lines.append(self._path, lines)
