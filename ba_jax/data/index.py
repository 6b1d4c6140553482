"""Measurements of all records of a dataset, such as the length of each example, taken once.

Counting reads every record but decodes no audio. It runs in several processes, and its result can
be cached in a folder under a name that depends on everything that the result depends on.
"""

from __future__ import annotations

import collections
import concurrent.futures.process
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import pathlib
import secrets
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ba_jax.data.examples import NotForTask
from ba_jax.data.record import Record, RecordError, RecordSource, check_record

VERSION = 2  # of the meaning of a count; part of the cached files' names
_RUN = 2048  # records of one task of a process


Measure = Callable[[Record], list[tuple[int, ...]]]
"""Measures a record: any number of rows of integers, all of one width.

It raises NotForTask to leave the record out, RecordError for a damaged one.
"""


@dataclasses.dataclass(frozen=True)
class Count:
    """Measurements of all records: each row's record, its integers; reason -> records left out."""

    records_N: np.ndarray
    rows_NK: np.ndarray
    left_out: dict[str, int]


def count(
    source: RecordSource,
    measure: Measure,
    width: int,
    *,
    key: Any,
    on_error: str = "fail",
    workers: int = 0,
    cache: str = "",
    progress: Callable[[int], None] | None = None,
) -> Count:
    """Check every record of a source and measure it.

    Args:
      width: number of integers in a row of `measure`.
      key: JSON; everything that `measure` depends on beside the records.
      on_error: "fail" or "skip" (and count) damaged records.
      workers: processes; 0 counts in this one.
      cache: folder for the result; "" caches nothing.
      progress: called with the number of records counted since the last call.
    """
    path = _cache_path(source, key, width, on_error, cache) if cache else None
    if path is not None and (stored := _load(path)) is not None:
        return stored
    records, rows = [np.zeros(0, np.int64)], [np.zeros((0, width), np.int64)]
    left_out: collections.Counter[str] = collections.Counter()
    for part, size in _count_runs(_Counter(source, measure, width, on_error), workers):
        records.append(part.records_N)
        rows.append(part.rows_NK)
        left_out.update(part.left_out)
        if progress is not None:
            progress(size)
    result = Count(np.concatenate(records), np.concatenate(rows), dict(sorted(left_out.items())))
    if path is not None:
        _store(path, result)
    return result


@dataclasses.dataclass(frozen=True)
class _Counter:
    source: RecordSource
    measure: Measure
    width: int
    on_error: str

    def __call__(self, run: range) -> tuple[Count, int]:
        """Measure a run of records; also returns their number."""
        records, rows = [], []
        left_out: collections.Counter[str] = collections.Counter()
        for number in run:
            try:
                measured = self._measure(number)
            except NotForTask as reason:
                left_out[str(reason)] += 1
                continue
            except RecordError as error:
                if self.on_error == "fail":
                    raise
                logging.warning("left out: %s", error)
                left_out["damaged"] += 1
                continue
            rows.extend(measured)
            records.extend([number] * len(measured))
        rows_NK = np.asarray(rows, np.int64).reshape(-1, self.width)
        return Count(np.asarray(records, np.int64), rows_NK, left_out), len(run)

    def _measure(self, number: int) -> list[tuple[int, ...]]:
        record = self.source[number]
        try:
            return self.measure(check_record(record))
        except RecordError as error:
            source = self.source
            raise RecordError(
                f"{source.directory}: split {source.split!r}, record {number}: {error}"
            ) from None


_counter: _Counter | None = None  # of a worker process


def _set_counter(counter: _Counter) -> None:
    global _counter
    _counter = counter


def _count_run(run: range) -> tuple[Count, int]:
    return _counter(run)


def _count_runs(counter: _Counter, workers: int) -> Iterator[tuple[Count, int]]:
    records = len(counter.source)
    runs = [range(i, min(i + _RUN, records)) for i in range(0, records, _RUN)]
    if workers < 1 or len(runs) < 2:
        yield from map(counter, runs)
        return
    # The counter is sent once to each process: it may hold a large tokenizer.
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(runs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_set_counter,
        initargs=(counter,),
    ) as pool:
        try:
            yield from pool.map(_count_run, runs)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RecordError(
                f"{counter.source.directory}: a process that counts its records died: {error}"
            ) from None


def _cache_path(
    source: RecordSource, key: Any, width: int, on_error: str, cache: str
) -> pathlib.Path:
    identity = {
        "version": VERSION,
        "dataset": hashlib.sha256(
            (source.directory / "dataset_info.json").read_bytes()
        ).hexdigest(),
        "shards": [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(source.directory.glob(f"[!.]*-{source.split}.array_record*"))
        ],
        "split": source.split,
        "width": width,
        "on_error": on_error,
        "key": key,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return pathlib.Path(cache) / f"count-{digest[:32]}.npz"


def _load(path: pathlib.Path) -> Count | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            left_out = json.loads(str(stored["left_out"]))
            return Count(stored["records_N"], stored["rows_NK"], left_out)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s: cannot be read, counting again: %r", path, error)
        return None


def _store(path: pathlib.Path, result: Count) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several hosts may count the same records: each writes its own file, the last rename wins.
    part = path.with_name(f"{path.name}.{secrets.token_hex(6)}.incomplete")
    with open(part, "wb") as file:
        np.savez(
            file,
            records_N=result.records_N,
            rows_NK=result.rows_NK,
            left_out=json.dumps(result.left_out),
        )
    part.replace(path)
