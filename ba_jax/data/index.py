"""What lies in a dataset for a purpose, counted once: lengths, and a fixed division into groups.

Counting reads every record but decodes no audio. It runs over processes, and is kept in a folder if
one is given, under a name that depends on everything it depends on.
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
from typing import Any, Protocol

import numpy as np

from ba_jax.data.examples import NotForTask
from ba_jax.data.record import Record, RecordError, RecordSource, check_record

VERSION = 2  # of what counting means; part of the stored files' names
_RUN = 2048  # records that a process counts at a time


class Measure(Protocol):
    """What of a record is counted."""

    def __call__(self, record: Record) -> list[tuple[int, ...]]:
        """Any number of rows of integers, all of one width.

        Raises:
          NotForTask: a reason to leave the record out, whatever `on_error` says.
          RecordError: a damaged record.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Count:
    """Rows of integers of all records.

    Attributes:
      records_N: the record that each row is of.
      rows_NK: the rows.
      left_out: reason -> records.
    """

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
    """Measures every record of a source, once it is known to be well formed.

    Args:
      source: the records.
      measure: picklable.
      width: of its rows.
      key: JSON; all that `measure` depends on beside the records.
      on_error: "fail" or "skip" (and count) damaged records.
      workers: processes; 0 counts here.
      cache: folder to keep the result in, "" for none.
      progress: called with the number of records counted since the last call.

    Raises:
      RecordError: a damaged record, if `on_error` says so, or a process that died.
    """
    path = _path(source, key, width, on_error, cache) if cache else None
    if path is not None and (stored := _load(path)) is not None:
        return stored
    counter = _Counter(source, measure, width, on_error)
    parts = []
    for part in _run(counter, workers):
        parts.append(part)
        if progress is not None:
            progress(part[3])
    left_out: collections.Counter[str] = collections.Counter()
    for part in parts:
        left_out.update(part[2])
    result = Count(
        np.concatenate([part[0] for part in parts] or [np.zeros(0, np.int64)]),
        np.concatenate([part[1] for part in parts] or [np.zeros((0, width), np.int64)]),
        dict(sorted(left_out.items())),
    )
    if path is not None:
        _store(path, result)
    return result


@dataclasses.dataclass(frozen=True)
class _Counter:
    source: RecordSource
    measure: Measure
    width: int
    on_error: str

    def __call__(self, run: range):
        """(records_N, rows_NK, left out, how many records) of a run of records."""
        records, rows = [], []
        left_out: collections.Counter[str] = collections.Counter()
        for number in run:
            try:
                found = self._measured(number)
            except NotForTask as reason:
                left_out[str(reason)] += 1
                continue
            except RecordError as error:
                if self.on_error == "fail":
                    raise
                logging.warning("left out: %s", error)
                left_out["damaged"] += 1
                continue
            rows.extend(found)
            records.extend([number] * len(found))
        array = np.asarray(rows, np.int64).reshape(-1, self.width)
        return np.asarray(records, np.int64), array, left_out, len(run)

    def _measured(self, number: int):
        record = self.source[number]
        try:
            return self.measure(check_record(record))
        except RecordError as error:
            source = self.source
            raise RecordError(
                f"{source.directory}: split {source.split!r}, record {number}: {error}"
            ) from None


_counter: _Counter | None = None  # a counting process's own


def _begin(counter: _Counter) -> None:
    global _counter
    _counter = counter


def _count_here(run: range):
    return _counter(run)


def _run(counter: _Counter, workers: int) -> Iterator[tuple]:
    records = len(counter.source)
    runs = [range(i, min(i + _RUN, records)) for i in range(0, records, _RUN)]
    if workers < 1 or len(runs) < 2:
        yield from map(counter, runs)
        return
    # Each process is given the counter once: it may hold a large tokenizer.
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(runs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(counter,),
    ) as pool:
        try:
            yield from pool.map(_count_here, runs)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RecordError(
                f"{counter.source.directory}: a process that counted its records died: {error}"
            ) from None


def _path(source: RecordSource, key: Any, width: int, on_error: str, cache: str) -> pathlib.Path:
    what = {
        "version": VERSION,
        "dataset": hashlib.sha256(
            (source.directory / "dataset_info.json").read_bytes()
        ).hexdigest(),
        "shards": [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in sorted(source.directory.glob(f"*-{source.split}.array_record*"))
        ],
        "split": source.split,
        "width": width,
        "on_error": on_error,
        "key": key,
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return pathlib.Path(cache) / f"count-{digest[:32]}.npz"


def _load(path: pathlib.Path) -> Count | None:
    """What `_store` wrote; None if there is nothing, or nothing that can be read."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            left_out = json.loads(str(stored["left_out"]))
            return Count(stored["records_N"], stored["rows_NK"], left_out)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logging.warning("%s: counting again, as it cannot be read: %r", path, error)
        return None


def _store(path: pathlib.Path, result: Count) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several hosts may count the same: each writes its own file, the last rename wins.
    part = path.with_name(f"{path.name}.{secrets.token_hex(6)}.incomplete")
    with open(part, "wb") as file:
        np.savez(
            file,
            records_N=result.records_N,
            rows_NK=result.rows_NK,
            left_out=json.dumps(result.left_out),
        )
    part.replace(path)
