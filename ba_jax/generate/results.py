"""What comes of requests: one line each in results.jsonl, and waves beside it.

Lines are added as requests are done, so that a run that was stopped goes on with those that have
none. What failed has a line with "error"; it counts as done, unless failures are to be tried again.
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
"""Hz of the waves that are written."""
RESULTS, MADE_WITH = "results.jsonl", "made_with.json"


class ResultsError(ValueError):
    """A folder that holds other results, or lines that cannot be read."""


class Results:
    """A folder of results.

    Args:
      out: the folder; made if it is not there.
      made_with: settings and weights that decide the results; another run's must be the same.
      overwrite: discard another run's.
      retry: forget the lines of requests that failed.
      writes: False leaves the folder alone and begins without lines: on hosts that do the same as
        one that writes.

    Raises:
      ResultsError: it holds results of other settings, or a damaged line before the last.
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
        made = json.loads(json.dumps(made_with))
        if overwrite:
            self._path.unlink(missing_ok=True)
            stamp.unlink(missing_ok=True)
        if stamp.is_file():
            before = json.loads(stamp.read_text(encoding="utf-8"))
            if changed := sorted(k for k in {*before, *made} if before.get(k) != made.get(k)):
                raise ResultsError(
                    f"{self.out}: its results were made with other {', '.join(changed)}; give "
                    "another --out, or --overwrite"
                )
        elif self._path.is_file():
            raise ResultsError(
                f"{self.out}: {RESULTS} without {MADE_WITH}; --overwrite discards it"
            )
        write_whole(stamp, json.dumps(made, ensure_ascii=False, indent=1) + "\n")
        self.lines = self._read()
        if retry:
            self.lines = {id: line for id, line in self.lines.items() if "error" not in line}
        # A line that a kill cut in two is gone, too.
        write_whole(self._path, "".join(_line(line) for line in self.lines.values()))

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._path.is_file():
            return {}
        lines = self._path.read_text(encoding="utf-8").splitlines()
        found = {}
        for number, text in enumerate(lines, 1):
            try:
                line = json.loads(text)
                found[line["id"]] = line
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise ResultsError(
                        f"{self._path}:{number}: {error!r}, expected a result; --overwrite "
                        "discards them all"
                    ) from None
        return found

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Adds the results of some requests."""
        if self._writes:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(_line(line) for line in lines))
                file.flush()
                os.fsync(file.fileno())
        self.lines |= {line["id"]: dict(line) for line in lines}

    def wave_path(self, id: str, turn: int | None = None) -> Path:
        """Where the wave of a request, or of a turn of it, is written; its folder is made."""
        name = id if turn is None else f"{id}-{turn + 1}"
        path = self.out / "audio" / f"{name}.wav"
        if self._writes:
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save(self, path: Path, wave_S: np.ndarray, rate: int) -> str:
        """Writes a wave at RATE; its path below the folder."""
        if rate != RATE:
            wave_S = resample(wave_S, rate, RATE)
        if self._writes:
            write_audio(path, wave_S, RATE)
        return self.relative(path)

    def relative(self, path: Path) -> str:
        """A path as the results have it."""
        return path.relative_to(self.out).as_posix()


def _line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
