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
relative to the file's folder, or absolute; `~` and variables are expanded. Files are in UTF-8; a
line ends at a line feed alone.

A line or file that is no request, and one whose id another has, becomes a `Request` with a refusal:
it fails alone, and is reported with its place.
"""

from __future__ import annotations

import codecs
import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ba_jax.audio.read import AUDIO_SUFFIXES
from ba_jax.config import expected, local_path
from ba_jax.data.record import LANGUAGES
from ba_jax.data.text_tokenizer import check_unicode
from ba_jax.files import list_files

TASKS = ("asr", "tts", "translate", "chat", "reconstruct")
HEARS = ("asr", "translate", "reconstruct")
"""Tasks whose requests are recordings."""
_KEYS = {"id", "language", "meta"}
_DEEPEST = 100
"""Most levels of lists and objects in a request's meta."""


class RequestError(ValueError):
    """Input without requests, or that cannot be read as text."""


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
    """All requests of a file or folder, in order, each with an id of its own.

    Args:
      task: one of TASKS.
      source: see the module.
      language, system: language and system prompt of requests that name none.

    Raises:
      RequestError: no such file or folder, one that the task cannot use, or no requests.
    """
    if task not in TASKS:
        raise RequestError(f"task {expected(task, TASKS)}")
    if language not in LANGUAGES:
        raise RequestError(f"language {language!r}, expected one of {LANGUAGES}")
    source = Path(source)
    suffixes = _suffixes(task)
    if source.is_dir():
        paths = list_files(source, *suffixes)
        if not paths:
            raise RequestError(f"{source}: no {', '.join(suffixes)} files, expected at least one")
        requests = []
        for path in paths:
            name = path.relative_to(source)
            try:
                requests += _from_file(path, name, language, system)
            except RequestError as error:
                refusal = str(error).removeprefix(f"{path}: ")
                requests.append(Request(_id_of(name), os.fspath(path), language, refusal=refusal))
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
    return _with_own_ids(requests)


def _with_own_ids(requests: Sequence[Request]) -> list[Request]:
    """Refuse requests whose id another before them has, under a new id; refused ones own none."""
    ids = {request.id for request in requests}
    owners: dict[str, Request] = {}
    for request in requests:
        if not request.refusal:
            owners.setdefault(request.id, request)
    repeats = collections.Counter()
    own = []
    for request in requests:
        owner = owners.setdefault(request.id, request)
        if owner is not request:
            reason = request.refusal or f"id {request.id!r:.80} is also that of {owner.where}"
            id = request.id
            while id in ids:
                repeats[request.id] += 1
                id = f"{request.id} ({repeats[request.id] + 1})"
            ids.add(id)
            request = dataclasses.replace(request, id=id, refusal=reason)
        own.append(request)
    return own


def has_recordings(task: str, requests: Sequence[Request]) -> bool:
    """Whether a request holds a recording."""
    return task in HEARS or any(turn.audio for request in requests for turn in request.turns)


def _suffixes(task: str) -> tuple[str, ...]:
    if task in HEARS:
        return AUDIO_SUFFIXES
    return (".txt",) if task == "tts" else (*AUDIO_SUFFIXES, ".txt")


def _id_of(name: Path) -> str:
    """Id of a file's requests."""
    return name.with_suffix("").as_posix()


def _from_file(path: Path, name: Path, language: str, system: str) -> Iterator[Request]:
    """The request of a recording, or those of a text file's lines; ids are made from `name`.

    Raises:
      RequestError: a text file that cannot be read.
    """
    stem = _id_of(name)
    if path.suffix.lower() != ".txt":
        turn = UserTurn(audio=os.fspath(path))
        yield Request(stem, os.fspath(path), language, (turn,), system)
        return
    lines = _read_lines(path)
    for number, line in lines:
        id = stem if len(lines) == 1 else f"{stem}-{number}"
        where = f"{path}:{number}"
        if isinstance(line, UnicodeDecodeError):
            yield Request(id, where, language, refusal=f"{line}, expected UTF-8")
        else:
            yield Request(id, where, language, (UserTurn(text=line),), system)


def _from_list(task: str, path: Path, language: str, system: str) -> Iterator[Request]:
    """The requests of a JSONL file's lines."""
    for number, line in _read_lines(path):
        where, id = f"{path}:{number}", f"{number:06d}"
        try:
            if isinstance(line, UnicodeDecodeError):
                raise line
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError(f"{type(fields).__name__}, expected an object")
            id = _check_id(fields.get("id", id))
            yield _from_fields(task, fields, id, where, path.parent, language, system)
        except (ValueError, RecursionError) as error:
            yield Request(id, where, language, refusal=str(error))


def _read_lines(path: Path) -> list[tuple[int, str | UnicodeDecodeError]]:
    """Number and text of a file's lines that are not blank; an error for a line not in UTF-8.

    Raises:
      RequestError: a file that cannot be read, or is in UTF-16.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: {error}, expected a text file in UTF-8") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and b"\0" in data:
        raise RequestError(f"{path}: begins as UTF-16, expected a text file in UTF-8")
    lines = []
    for number, raw_line in enumerate(data.split(b"\n"), 1):
        try:
            # A mark of UTF-8 also begins a file that others were appended to.
            line = raw_line.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            line = error
        if line:
            lines.append((number, line))
    return lines


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
        raise ValueError(f"keys {unknown!s:.80}: {task} takes {sorted(allowed)}")
    language = fields.get("language", language)
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r:.80}, expected one of {LANGUAGES}")
    turns = fields.get("turns")
    if turns is None:
        turns = [{key: fields[key] for key in ("audio", "text") if key in fields}]
    elif "audio" in fields or "text" in fields:
        raise ValueError("both turns and a single question, expected one of them")
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"turns {turns!r:.80}, expected a list of at least one")
    user_turns = tuple(_user_turn(turn, folder) for turn in turns)
    system = fields.get("system", system)
    if not isinstance(system, str):
        raise ValueError(f"system {system!r:.80}, expected text")
    meta = _check_meta(fields.get("meta"))
    return Request(id, where, language, user_turns, check_unicode(system, "system"), meta)


def _user_turn(turn: Any, folder: Path) -> UserTurn:
    """A turn of a JSON list; its path is relative to `folder` or absolute."""
    if not isinstance(turn, dict) or len(turn) != 1 or not set(turn) <= {"audio", "text"}:
        raise ValueError(f'{turn!r:.80}, expected {{"audio": path}} or {{"text": ...}}')
    ((kind, value),) = turn.items()
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{kind} {value!r:.80}, expected text that is not empty")
    if kind == "text":
        return UserTurn(text=check_unicode(value))
    path = os.path.join(folder, value)
    return UserTurn(audio=path if os.path.exists(path) else os.path.join(folder, local_path(value)))


def _check_id(value: Any) -> str:
    """Return an id that names a file below the folder of results."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"id {value!r:.80}, expected text")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\0" in value or "\\" in value:
        raise ValueError(f"id {value!r:.80}, expected a name, or a relative path with '/'")
    return value


def _check_meta(value: Any) -> Any:
    """Return a value that JSON holds whole: without NaN, and no deeper than can be read back."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"meta: {error}") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"meta of over {_DEEPEST} levels")
        lists = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        )
        level = [inner for outer in lists for inner in outer]
    return value
