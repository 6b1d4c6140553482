"""Results of requests: a line each in results.jsonl, and waves beside it.

Lines are appended as requests are done, so that a run can be resumed. A request that failed has a
line with "error" and counts as done, unless failures are to be retried.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ba_jax.audio import write_audio
from ba_jax.audio.resample import resample
from ba_jax.files import write_whole

RATE = 24000
"""Sampling rate of the saved waves in Hz."""
RESULTS, MADE_WITH = "results.jsonl", "made_with.json"


class ResultsError(ValueError):
    """A folder with other results, or with lines that cannot be read."""


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
      ResultsError: results of other settings, or a damaged line before the last.
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
        if not writes:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        self._path, stamp = self.out / RESULTS, self.out / MADE_WITH
        made_with = json.loads(json.dumps(made_with))
        if overwrite:
            self._path.unlink(missing_ok=True)
            stamp.unlink(missing_ok=True)
        if stamp.is_file():
            before = json.loads(stamp.read_text(encoding="utf-8"))
            keys = {*before, *made_with}
            if changed := sorted(key for key in keys if before.get(key) != made_with.get(key)):
                raise ResultsError(
                    f"{self.out}: its results were made with other {', '.join(changed)}; choose "
                    "another --out, or --overwrite"
                )
        elif self._path.is_file():
            raise ResultsError(
                f"{self.out}: {RESULTS} without {MADE_WITH}; --overwrite discards it"
            )
        write_whole(stamp, json.dumps(made_with, ensure_ascii=False, indent=1) + "\n")
        self.lines = self._read()
        if retry:
            self.lines = {id: line for id, line in self.lines.items() if "error" not in line}
        # Also removes a last line that was cut off when the run was killed.
        write_whole(self._path, "".join(_to_json(line) for line in self.lines.values()))

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.is_file():
            return {}
        texts = self._path.read_text(encoding="utf-8").splitlines()
        lines = {}
        for number, text in enumerate(texts, 1):
            try:
                line = json.loads(text)
                lines[line["id"]] = line
            except (ValueError, KeyError, TypeError) as error:
                if number < len(texts):
                    raise ResultsError(
                        f"{self._path}:{number}: {error!r}, expected a result; --overwrite "
                        "discards all results"
                    ) from None
        return lines

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append the lines of requests."""
        if self._writes:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(_to_json(line) for line in lines))
                file.flush()
                os.fsync(file.fileno())
        self.lines |= {line["id"]: dict(line) for line in lines}

    def wave_path(self, id: str, turn: int | None = None) -> Path:
        """Path of the wave of a request, or of one of its turns; creates its folder."""
        name = id if turn is None else f"{id}-{turn + 1}"
        path = self.out / "audio" / f"{name}.wav"
        if self._writes:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, path: Path, wave_S: np.ndarray, rate: int) -> str:
        """Write a wave at RATE; return its path relative to the folder."""
        if rate != RATE:
            wave_S = resample(wave_S, rate, RATE)
        if self._writes:
            write_audio(path, wave_S, RATE)
        return self.relative(path)

    def relative(self, path: Path) -> str:
        """A path relative to the folder of results."""
        return path.relative_to(self.out).as_posix()


def _to_json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
