"""Write files atomically, and say in error messages which file is wrong, and in what way."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any


def with_path(error: OSError, path: Path) -> OSError:
    """Copy an OSError of `write` with the file name, which it lacks (a full disk, for example)."""
    return OSError(error.errno, error.strerror, str(path))


# Beginnings of files that stand where a download should.
_STAND_INS = {
    b"version https://git-lfs": "a pointer of git-lfs; `git lfs pull` fetches the file",
    b"<!doctype html": "a web page, no download",
    b"<html": "a web page, no download",
    b"entry not found": "the answer of a server, no download",
    b"<?xml": "the answer of a server, no download",
}


def stand_in(head: bytes) -> str:
    """Describe a file that stands where a download should, from its first bytes; "" for others."""
    head = head.lstrip().lower()
    return next((text for start, text in _STAND_INS.items() if head.startswith(start)), "")


def missing(path: str | os.PathLike) -> str:
    """Message for a path that is no file, with the target of a broken link."""
    if os.path.islink(path):
        return f"{path}: a link to {os.readlink(path)}, which is no file"
    return f"{path}: no such file"


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


def is_litter(name: str) -> bool:
    """Whether a system left a file or folder of this name: `._a.wav`, `.DS_Store`, `Thumbs.db`."""
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini", "__macosx")


def list_files(folder: str | os.PathLike, *suffixes: str, deep: bool = True) -> list[Path]:
    """The files below a folder whose names end in one of the suffixes, in any case, in order.

    Linked folders are followed, each real folder is searched once. Hidden files and folders, and
    others that a system leaves beside a user's (`is_litter`), are left out. A link that leads
    nowhere is listed, so that reading it reports it. A folder that is not there has no files.

    Args:
      suffixes: in lower case.
      deep: search the folders in it too.

    Raises:
      OSError: a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    paths, searched = [], set()
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        if real in searched:
            folders.clear()
            continue
        searched.add(real)
        # Linked folders last: a file is listed under its real name if that is in the folder too.
        wanted = [name for name in folders if deep and not is_litter(name)]
        folders[:] = sorted(wanted, key=lambda n: (os.path.islink(os.path.join(root, n)), n))
        for name in names:
            path = Path(root, name)
            if name.lower().endswith(suffixes) and not is_litter(name):
                if path.is_file() or not path.exists():
                    paths.append(path)
    return sorted(paths)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, see `write_whole`."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    # A lone surrogate from a file's name becomes its JSON escape.
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def first_line(error: BaseException) -> str:
    """First line of an error message; the class name of an error without one."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
