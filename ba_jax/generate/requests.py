"""What is asked for: files, folders and JSONL lists as requests.

task                   a file                 a folder              a line of JSONL
asr, translate,        a recording            all recordings in it  {"audio": path}
  reconstruct
tts                    .txt, a text a line    all .txt in it        {"text": ...}
chat                   a recording, or .txt,  all of both in it     {"turns": [{"audio": path},
                       a question a line                              {"text": ...}, ...]}, or one
                                                                      question as above

A line of JSONL may also have "id" (of what is written; default its number), "language" ("en",
"zh"), of chat "system" (a prompt) and "meta" (anything; copied to the result). Paths in it are
relative to the file's folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ba_jax.data.record import LANGUAGES

TASKS = ("asr", "tts", "translate", "chat", "reconstruct")
HEARS = ("asr", "translate", "reconstruct")
"""Tasks of a recording."""
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3")
_KEYS = {"id", "language", "meta"}


class RequestError(ValueError):
    """Input that holds no requests, or two of one name."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What a user says: a recording (its path), or a text."""

    audio: str = ""
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing to do.

    Attributes:
      id: names what is written; may hold "/".
      where: file, or file and line.
      language: of the speech or text.
      turns: of chat, one or more; of the other tasks one.
      system: prompt of a chat.
      meta: copied to the result.
      refusal: why it cannot be done; then `turns` may be empty.
    """

    id: str
    where: str
    language: str
    turns: tuple[Turn, ...] = ()
    system: str = ""
    meta: Any = None
    refusal: str = ""


def read_requests(
    task: str, source: str | os.PathLike, language: str, system: str = ""
) -> list[Request]:
    """All requests of a file or folder, in order.

    A line that makes no sense is a request with a refusal: it is counted and reported like one that
    fails, and the others are not touched.

    Args:
      task: one of TASKS.
      source: as the module says.
      language, system: of requests that name none.

    Raises:
      RequestError: no such file or folder, one that the task cannot use, no requests, or two of one
        id.
    """
    if task not in TASKS:
        raise RequestError(f"task {task!r}, expected one of {TASKS}")
    if language not in LANGUAGES:
        raise RequestError(f"language {language!r}, expected one of {LANGUAGES}")
    source = Path(source)
    suffixes = _suffixes(task)
    if source.is_dir():
        paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        if not paths:
            raise RequestError(f"{source}: no {', '.join(suffixes)} in it")
        found = [
            request
            for path in paths
            for request in _of_file(path, path.relative_to(source), language, system)
        ]
    elif not source.is_file():
        raise RequestError(f"{source}: no such file or folder")
    elif source.suffix.lower() == ".jsonl":
        found = list(_of_lines(task, source, language, system))
    elif source.suffix.lower() in suffixes:
        found = list(_of_file(source, Path(source.name), language, system))
    else:
        raise RequestError(f"{source}: {task} takes {', '.join((*suffixes, '.jsonl'))}")
    if not found:
        raise RequestError(f"{source}: nothing in it, expected at least one request")
    places: dict[str, str] = {}
    for request in found:
        if request.id in places:
            raise RequestError(
                f"{request.where}: id {request.id!r} is that of {places[request.id]} too"
            )
        places[request.id] = request.where
    return found


def _suffixes(task: str) -> tuple[str, ...]:
    if task in HEARS:
        return AUDIO_SUFFIXES
    return (".txt",) if task == "tts" else (*AUDIO_SUFFIXES, ".txt")


def _of_file(path: Path, name: Path, language: str, system: str) -> Iterator[Request]:
    stem = name.with_suffix("").as_posix()
    if path.suffix.lower() != ".txt":
        turn = Turn(audio=os.fspath(path))
        yield Request(stem, os.fspath(path), language, (turn,), system)
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: {error}, expected a text file in UTF-8") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in numbered:
        own = stem if len(numbered) == 1 else f"{stem}-{number}"
        yield Request(own, f"{path}:{number}", language, (Turn(text=line),), system)


def _of_lines(task: str, path: Path, language: str, system: str) -> Iterator[Request]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where, own = f"{path}:{number}", f"{number:06d}"
            try:
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise ValueError(f"{type(fields).__name__}, expected an object")
                own = _checked_id(fields.get("id", own))
                yield _of_fields(task, fields, own, where, path.parent, language, system)
            except ValueError as error:
                yield Request(own, where, language, refusal=str(error))


def _of_fields(
    task: str,
    fields: Mapping[str, Any],
    own: str,
    where: str,
    folder: Path,
    language: str,
    system: str,
) -> Request:
    allowed = _KEYS | {"audio", "text", "turns", "system"}
    if task != "chat":
        allowed = _KEYS | {"audio" if task in HEARS else "text"}
    if unknown := sorted(set(fields) - allowed):
        raise ValueError(f"keys {unknown}: {task} takes {sorted(allowed)}")
    spoken = fields.get("language", language)
    if spoken not in LANGUAGES:
        raise ValueError(f"language {spoken!r}, expected one of {LANGUAGES}")
    given = fields.get("turns")
    if given is None:
        given = [{key: fields[key] for key in ("audio", "text") if key in fields}]
    elif "audio" in fields or "text" in fields:
        raise ValueError("both turns and a single question, expected one of them")
    if not isinstance(given, list) or not given:
        raise ValueError(f"turns {given!r}, expected a list of at least one")
    turns = tuple(_turn(turn, folder) for turn in given)
    prompt = fields.get("system", system)
    if not isinstance(prompt, str):
        raise ValueError(f"system {prompt!r}, expected text")
    return Request(own, where, spoken, turns, prompt, fields.get("meta"))


def _turn(given: Any, folder: Path) -> Turn:
    if not isinstance(given, dict) or len(given) != 1 or not set(given) <= {"audio", "text"}:
        raise ValueError(f'{given!r}, expected {{"audio": path}} or {{"text": ...}}')
    ((kind, value),) = given.items()
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{kind} {value!r}, expected text that is not empty")
    return Turn(audio=os.fspath(folder / value)) if kind == "audio" else Turn(text=value)


def _checked_id(value: Any) -> str:
    """An id that names a file below the folder of results."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"id {value!r}, expected text")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\0" in value or "\\" in value:
        raise ValueError(f"id {value!r}, expected a name, or a relative path with '/'")
    return value
