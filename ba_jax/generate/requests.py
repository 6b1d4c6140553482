"""Requests from files, folders and JSONL lists.

task                   a file                 a folder              a line of JSONL
asr, translate,        a recording            all recordings in it  {"audio": path}
  reconstruct
tts                    .txt, a text a line    all .txt in it        {"text": ...}
chat                   a recording, or .txt,  all of both in it     {"turns": [{"audio": path},
                       a question a line                              {"text": ...}, ...]}, or one
                                                                      question as above

A line of JSONL may also have "id" (names the outputs; default its number), "language" ("en",
"zh"), "system" (prompt of a chat) and "meta" (anything; copied to the result). Its paths are
relative to the file's folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ba_jax.audio.read import AUDIO_SUFFIXES
from ba_jax.data.record import LANGUAGES
from ba_jax.files import list_files

TASKS = ("asr", "tts", "translate", "chat", "reconstruct")
HEARS = ("asr", "translate", "reconstruct")
"""Tasks whose requests are recordings."""
_KEYS = {"id", "language", "meta"}


class RequestError(ValueError):
    """Input without requests, or with two requests of one id."""


@dataclasses.dataclass(frozen=True)
class UserTurn:
    """A user's turn: a recording (its path), or a text."""

    audio: str = ""
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request.

    Attributes:
      id: names the outputs; may hold "/".
      where: file, or file and line.
      language: language of the speech or text.
      turns: one or more for a chat, one for the other tasks.
      system: system prompt of a chat.
      meta: copied to the result.
      refusal: reason why the request is invalid; then `turns` may be empty.
    """

    id: str
    where: str
    language: str
    turns: tuple[UserTurn, ...] = ()
    system: str = ""
    meta: Any = None
    refusal: str = ""


def read_requests(
    task: str, source: str | os.PathLike, language: str, system: str = ""
) -> list[Request]:
    """All requests of a file or folder, in order.

    An invalid line becomes a request with a refusal, so that it is reported like a failure.

    Args:
      task: one of TASKS.
      source: see the module.
      language, system: language and system prompt of requests that name none.

    Raises:
      RequestError: no such file or folder, one that the task cannot use, no requests, or two
        requests of one id.
    """
    if task not in TASKS:
        raise RequestError(f"task {task!r}, expected one of {TASKS}")
    if language not in LANGUAGES:
        raise RequestError(f"language {language!r}, expected one of {LANGUAGES}")
    source = Path(source)
    suffixes = _suffixes(task)
    if source.is_dir():
        paths = list_files(source, *suffixes)
        if not paths:
            raise RequestError(f"{source}: no {', '.join(suffixes)} files, expected at least one")
        requests = [
            request
            for path in paths
            for request in _from_file(path, path.relative_to(source), language, system)
        ]
    elif not source.is_file():
        raise RequestError(f"{source}: no such file or folder")
    elif source.suffix.lower() == ".jsonl":
        requests = list(_from_list(task, source, language, system))
    elif source.suffix.lower() in suffixes:
        requests = list(_from_file(source, Path(source.name), language, system))
    else:
        raise RequestError(f"{source}: {task} takes {', '.join((*suffixes, '.jsonl'))}")
    if not requests:
        raise RequestError(f"{source}: no request in it, expected at least one")
    places: dict[str, str] = {}
    for request in requests:
        if request.id in places:
            raise RequestError(
                f"{request.where}: id {request.id!r} is also that of {places[request.id]}"
            )
        places[request.id] = request.where
    return requests


def has_recordings(task: str, requests: Sequence[Request]) -> bool:
    """Whether a request holds a recording."""
    return task in HEARS or any(turn.audio for request in requests for turn in request.turns)


def _suffixes(task: str) -> tuple[str, ...]:
    if task in HEARS:
        return AUDIO_SUFFIXES
    return (".txt",) if task == "tts" else (*AUDIO_SUFFIXES, ".txt")


def _from_file(path: Path, name: Path, language: str, system: str) -> Iterator[Request]:
    """The request of a recording, or those of a text file's lines; ids are made from `name`."""
    stem = name.with_suffix("").as_posix()
    if path.suffix.lower() != ".txt":
        turn = UserTurn(audio=os.fspath(path))
        yield Request(stem, os.fspath(path), language, (turn,), system)
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: {error}, expected a text file in UTF-8") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in numbered:
        id = stem if len(numbered) == 1 else f"{stem}-{number}"
        yield Request(id, f"{path}:{number}", language, (UserTurn(text=line),), system)


def _from_list(task: str, path: Path, language: str, system: str) -> Iterator[Request]:
    """The requests of a JSONL file's lines."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where, id = f"{path}:{number}", f"{number:06d}"
            try:
                fields = json.loads(line)
                if not isinstance(fields, dict):
                    raise ValueError(f"{type(fields).__name__}, expected an object")
                id = _check_id(fields.get("id", id))
                yield _from_fields(task, fields, id, where, path.parent, language, system)
            except ValueError as error:
                yield Request(id, where, language, refusal=str(error))


def _from_fields(
    task: str,
    fields: Mapping[str, Any],
    id: str,
    where: str,
    folder: Path,
    language: str,
    system: str,
) -> Request:
    """The request of a JSON object.

    Raises:
      ValueError: naming the field that is wrong.
    """
    allowed = _KEYS | {"audio", "text", "turns", "system"}
    if task != "chat":
        allowed = _KEYS | {"audio" if task in HEARS else "text"}
    if unknown := sorted(set(fields) - allowed):
        raise ValueError(f"keys {unknown}: {task} takes {sorted(allowed)}")
    language = fields.get("language", language)
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}, expected one of {LANGUAGES}")
    turns = fields.get("turns")
    if turns is None:
        turns = [{key: fields[key] for key in ("audio", "text") if key in fields}]
    elif "audio" in fields or "text" in fields:
        raise ValueError("both turns and a single question, expected one of them")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"turns {turns!r}, expected a list of at least one")
    user_turns = tuple(_user_turn(turn, folder) for turn in turns)
    system = fields.get("system", system)
    if not isinstance(system, str):
        raise ValueError(f"system {system!r}, expected text")
    return Request(id, where, language, user_turns, system, fields.get("meta"))


def _user_turn(turn: Any, folder: Path) -> UserTurn:
    """A turn of a JSON list; its path is relative to `folder`."""
    if not isinstance(turn, dict) or len(turn) != 1 or not set(turn) <= {"audio", "text"}:
        raise ValueError(f'{turn!r}, expected {{"audio": path}} or {{"text": ...}}')
    ((kind, value),) = turn.items()
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{kind} {value!r}, expected text that is not empty")
    return UserTurn(audio=os.fspath(folder / value)) if kind == "audio" else UserTurn(text=value)


def _check_id(value: Any) -> str:
    """Return an id that names a file below the folder of results."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"id {value!r}, expected text")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\0" in value or "\\" in value:
        raise ValueError(f"id {value!r}, expected a name, or a relative path with '/'")
    return value
