"""Small corpora in the layouts of the public ones, and the runs that tests make of them."""

from __future__ import annotations

import json
import os
import pathlib
import struct

import numpy as np

from ba_jax.audio import write_audio
from ba_jax.corpora import runner
from ba_jax.corpora.sources.base import Rejection
from ba_jax.data.record import Record, RecordSource

RATE = 16000


def tone(seconds: float = 0.5, hertz: float = 220.0, rate: int = RATE) -> np.ndarray:
    """A wave (S,), float32."""
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def put(path: pathlib.Path, wave=None, rate: int = RATE, format: str | None = None, **tone_args):
    """Write an audio file with its folders; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = tone(rate=rate, **tone_args) if wave is None else wave
    write_audio(path, wave, rate, format)
    return path


def put_text(path: pathlib.Path, text: str | bytes) -> pathlib.Path:
    """Write a text file with its folders, strings as UTF-8; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


def wav_bytes(samples: np.ndarray, rate: int, channels: int = 1) -> bytes:
    """A 16-bit or float WAV file with any header."""
    coding, bits = (3, 32) if samples.dtype == np.float32 else (1, 16)
    data = samples.tobytes()
    frame = channels * bits // 8
    return (
        struct.pack("<4sI4s", b"RIFF", len(data) + 36, b"WAVE")
        + struct.pack("<4sIHHIIHH", b"fmt ", 16, coding, channels, rate, rate * frame, frame, bits)
        + struct.pack("<4sI", b"data", len(data))
        + data
    )


def manifest(folder: pathlib.Path, *lines: dict | str | bytes, name: str = "m.jsonl"):
    """Write a manifest of objects and of raw lines; returns its path."""
    rows = [
        json.dumps(line, ensure_ascii=False) if isinstance(line, dict) else line for line in lines
    ]
    data = [row if isinstance(row, bytes) else row.encode("utf-8") for row in rows]
    return put_text(folder / name, b"\n".join(data) + b"\n")


def config(kind: str, items_per_shard: int = 3, max_rejected: float = 1.0, **source):
    """A run's config; `folder` and `path` may be paths."""
    fields = {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in source.items()
    }
    return runner.config_from(
        {
            "kind": kind,
            "source": fields,
            "items_per_shard": items_per_shard,
            "max_rejected": max_rejected,
        }
    )


def listed(run: runner.PrepareConfig) -> tuple[dict[str, object], list[Rejection]]:
    """List a run: id -> item, and rejections, duplicates among them."""
    plan = runner.make_plan(run)
    return {item.id: item for job in plan.jobs for item in job.items}, list(plan.rejected)


def made(run: runner.PrepareConfig, out: pathlib.Path) -> tuple[dict[str, Record], list[dict]]:
    """Run it in this process: id -> record as read back, and all rejections."""
    report = runner.prepare(run, out, workers=0)
    records = {}
    for split in report["splits"]:
        if report["splits"][split]["records"]:
            records |= {record.id: record for record in RecordSource(out, split)}
    assert len(records) == report["records"]
    return records, rejected(out)


def rejected(out: pathlib.Path) -> list[dict]:
    """The rejections of a run."""
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text("utf-8").splitlines()]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
