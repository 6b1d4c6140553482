"""Results of requests: a line each in results.jsonl, and waves beside it.

Lines are appended as requests are done, so that a run can be resumed. A request that failed has a
line with "error" and counts as done, unless failures are to be retried. Nothing in the folder
changes before the first requests are done: a start that fails leaves it as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ba_jax import json_lines
from ba_jax.audio import AudioError, write_audio
from ba_jax.audio.resample import resample
from ba_jax.files import with_path, write_json, write_whole

RATE = 24000
"""Sampling rate of the saved waves in Hz."""
RESULTS, MADE_WITH = "results.jsonl", "made_with.json"
_LONGEST_NAME = 200
"""Bytes of an id that names files; a file system takes 255, suffixes included."""


class ResultsError(ValueError):
    """A folder with other results."""


class Results:
    """A folder of results.

    Args:
      out: the folder; created if it does not exist.
      made_with: settings and weights that the results depend on; must be those of earlier results.
      overwrite: discard earlier results.
      retry: drop the lines of requests that failed.
      writes: False: do not touch the folder and begin without lines, on hosts that repeat the work
        of one that writes.

    Raises:
      ResultsError: results of other settings.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        made_with: Mapping[str, Any],
        *,
        overwrite: bool = False,
        retry: bool = False,
        writes: bool = True,
    ):
        self.out, self._writes = Path(out), writes
        self.lines: dict[str, dict[str, Any]] = {}
        self._owners: dict[str, str] = {}
        self._is_begun = False
        if not writes:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        self._path, self._stamp = self.out / RESULTS, self.out / MADE_WITH
        self._made_with = json.loads(json.dumps(made_with))
        if not overwrite:
            self._check_settings()
            self.lines = {line["id"]: line for line in json_lines.read(self._path, "id")}
        if retry:
            self.lines = {id: line for id, line in self.lines.items() if "error" not in line}
        for id in self.lines:
            self._name(id)

    def _check_settings(self) -> None:
        """Raise ResultsError if there are results of other settings."""
        if not self._path.is_file() or not self._path.stat().st_size:
            return
        try:
            before = dict(json.loads(self._stamp.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise ResultsError(
                f"{self.out}: {RESULTS} without {MADE_WITH} ({error}); --overwrite discards it"
            ) from None
        keys = {*before, *self._made_with}
        if changed := sorted(key for key in keys if before.get(key) != self._made_with.get(key)):
            raise ResultsError(
                f"{self.out}: its results were made with other {', '.join(changed)}; choose "
                "another --out, or --overwrite"
            )

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append the lines of requests.

        Raises:
          OSError: names the file that cannot be written.
        """
        if self._writes:
            if not self._is_begun:
                # Rewritten, without lines that were cut short or are to be made again.
                write_whole(self._path, b"".join(map(json_lines.encode, self.lines.values())))
                write_json(self._stamp, self._made_with)
                self._is_begun = True
            json_lines.append(self._path, lines)
        self.lines |= {line["id"]: dict(line) for line in lines}

    def wave_path(self, id: str, turn: int | None = None) -> Path:
        """Path of the wave of a request, or of one of its turns; creates its folder."""
        name = self._name(id)
        path = self.out / "audio" / (f"{name}.wav" if turn is None else f"{name}-{turn + 1}.wav")
        if self._writes:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _name(self, id: str) -> str:
        """Name of a request's files, which no other request has, whatever the file system."""
        name = _file_name(id)
        key = unicodedata.normalize("NFC", name).casefold()
        return name if self._owners.setdefault(key, id) == id else _hashed_name(id)

    def save(self, path: Path, wave_S: np.ndarray, rate: int) -> str:
        """Write a wave at RATE; return its path relative to the folder.

        Raises:
          AudioError: a wave that is empty or holds NaN.
          OSError: names the file that cannot be written.
        """
        if rate != RATE:
            wave_S = resample(wave_S, rate, RATE)
        if self._writes:
            try:
                write_audio(path, wave_S, RATE)
            except AudioError as error:
                if isinstance(error.__cause__, OSError):
                    raise with_path(error.__cause__, path) from error
                raise
        return self.relative(path)

    def relative(self, path: Path) -> str:
        """A path relative to the folder of results."""
        return path.relative_to(self.out).as_posix()


def _file_name(id: str) -> str:
    """Path of an id's file: the id itself if every file system takes it, else with a hash."""
    *folders, _ = parts = id.split("/")
    if (
        id.isprintable()
        and len(id.encode("utf-8")) <= _LONGEST_NAME
        and all(part and part == part.strip(". ") for part in parts)
        and not any(folder.lower().endswith((".wav", ".partial")) for folder in folders)
    ):
        return id
    return _hashed_name(id)


def _hashed_name(id: str) -> str:
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    plain = re.sub("[^A-Za-z0-9_-]+", "_", id)[: _LONGEST_NAME // 4]
    return f"{plain}-{digest}"
