"""Write files atomically, and name the file in error messages."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def with_path(error: OSError, path: Path) -> OSError:
    """Copy an OSError of `write` with the file name, which it lacks (a full disk, for example)."""
    return OSError(error.errno, error.strerror, str(path))


def write_whole(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a file atomically, creating its folders; text is encoded as UTF-8.

    If several processes write the same file, the last one wins.

    Raises:
      OSError: the file cannot be written (a full disk); names the file.
      UnicodeEncodeError: text with half of a surrogate pair.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise with_path(error, path) from error


def unused(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def first_line(error: BaseException) -> str:
    """First line of an error message; the class name of an error without one."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
