"""Recordings of an evaluation as files, OUT/audio/SUITE/ID.wav."""

from __future__ import annotations

import pathlib
import re

from ba_jax.audio import AudioError, read_audio, write_audio
from ba_jax.data.examples import stable_hash
from ba_jax.data.record import Part
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure

_LONGEST_NAME = 120


class Recordings:
    """Saves and loads waves; paths are relative to `folder`, the evaluation's.

    With `writes` False nothing is written: another host does the same work, and writes.
    """

    def __init__(self, folder: pathlib.Path, writes: bool = True):
        self._folder, self._writes = folder, writes

    def save(self, suite: str, name: str, wave: Wave | None) -> str:
        """Write a wave; returns its path, "" for None."""
        if wave is None:
            return ""
        path = _make_path(suite, name)
        if self._writes:
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_audio(self._folder / path, wave.wave_S, wave.rate)
        return path

    def save_reference(self, part: Part, name: str) -> str:
        """Write a part's recording; returns its path, "" if the recording cannot be read."""
        path = _make_path("reference", name)
        if (self._folder / path).is_file():
            return path
        try:
            return self.save("reference", name, Wave(*read_audio(part.audio)))
        except AudioError:
            return ""

    def load(self, path: str) -> Wave | Failure | None:
        """Read a saved wave; None for "", which stands for no speech."""
        try:
            return Wave(*read_audio(self._folder / path)) if path else None
        except AudioError as error:
            return Failure(str(error))


def _make_path(suite: str, name: str) -> str:
    """Make a recording's path; ids may hold any character."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
    if plain != name or not name or name.startswith(".") or len(name) > _LONGEST_NAME:
        plain = f"{plain.strip('.')[:_LONGEST_NAME]}-{stable_hash(name):08x}"
    return f"audio/{suite}/{plain}.wav"


def read_part(audio: pathlib.Path | bytes, role: str = "") -> Part | Failure:
    """Make a part of a benchmark's recording, a file or its bytes; fails if it cannot be read."""
    try:
        data = audio if isinstance(audio, bytes) else audio.read_bytes()
        wave_S, rate = read_audio(data)
    except (AudioError, OSError) as error:
        return Failure(f"recording: {error}")
    return Part(audio=data, seconds=len(wave_S) / rate, role=role)
