"""What lies in a dataset for a purpose, counted once: lengths, and a fixed division into groups.

Counting reads every record but decodes no audio. It runs over processes, and is kept in a folder if
one is given, under a name that depends on everything it depends on.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ba_jax.data.record import Record, RecordError, RecordSource

VERSION = 1  # of what counting means; part of the stored files' names
_RUN = 2048  # records that a process counts at a time


class Measured(Protocol):
    """What of a record is counted: called with its number, gives rows of integers.

    Raises what `skipped` names for a record that is left out.
    """

    def __call__(self, record: Record) -> list[tuple[int, ...]]:
        """Any number of rows, all of one width."""
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
    measure: Measured,
    width: int,
    *,
    key: Any,
    on_error: str = "fail",
    workers: int = 0,
    cache: str = "",
    progress: Callable[[int], None] | None = None,
) -> Count:
    """Measures every record of a source.

    Args:
      source: the records.
      measure: picklable; what it raises as `NotForTask` is a reason to leave the record out.
      width: of its rows.
      key: JSON; all that `measure` depends on beside the records.
      on_error: "fail" or "skip" (and count) damaged records.
      workers: processes; 0 counts here.
      cache: folder to keep the result in, "" for none.
      progress: called with the number of records counted since the last call.

    Raises:
      RecordError: a damaged record, if `on_error` says so.
    """
    path = _path(source, key, width, on_error, cache) if cache else None
    if path is not None and path.is_file():
        with np.load(path, allow_pickle=False) as stored:
            left_out = json.loads(str(stored["left_out"]))
            return Count(stored["records_N"], stored["rows_NK"], left_out)
    starts = range(0, len(source), _RUN)
    jobs = [
        (source, measure, start, min(start + _RUN, len(source)), width, on_error)
        for start in starts
    ]
    parts = []
    for part in _run(jobs, workers):
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


def _run(jobs: list[tuple], workers: int):
    if workers < 1 or len(jobs) < 2:
        yield from map(_count_run, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_count_run, jobs)


def _count_run(job: tuple):
    from ba_jax.data.examples import NotForTask

    source, measure, start, stop, width, on_error = job
    records, rows = [], []
    left_out: collections.Counter[str] = collections.Counter()
    for number in range(start, stop):
        try:
            found = measure(source[number])
        except NotForTask as reason:
            left_out[str(reason)] += 1
            continue
        except RecordError as error:
            if on_error == "fail":
                raise
            logging.warning("left out: %s", error)
            left_out["damaged"] += 1
            continue
        rows.extend(found)
        records.extend([number] * len(found))
    array = np.asarray(rows, np.int64).reshape(-1, width)
    return np.asarray(records, np.int64), array, left_out, stop - start


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


def _store(path: pathlib.Path, result: Count) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several hosts may count the same: each writes its own file, the last rename wins.
    part = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
    with open(part, "wb") as file:
        np.savez(
            file,
            records_N=result.records_N,
            rows_NK=result.rows_NK,
            left_out=json.dumps(result.left_out),
        )
    part.replace(path)
