"""Feeds a training loop: a host's share of the batches from a step on, built ahead by workers.

A batch is a pure function of its step (`PackedBatches`, `AudioBatches`), so the position is the
step alone: to resume, open a loader at that step, with any number of hosts and workers. Grain runs
the workers. What fails in one arrives here as an error that names the step, within seconds,
whatever was raised and however the worker ended.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

_STEPS = 1 << 60  # a source without end
_POLL_SECONDS = 1.0
_CLOSE_SECONDS = 2.0


class BatchError(RuntimeError):
    """A batch that could not be built: the step, the host, what was raised and where."""


class Batches(Protocol):
    """What a loader takes: see `PackedBatches` and `AudioBatches`."""

    def global_rows(self, step: int) -> int:
        """Rows of the global batch at a step."""
        ...

    def build(self, step: int, rows: Sequence[int] | None = None) -> Any:
        """Rows (default: all) of the global batch at a step."""
        ...

    def ids(self, step: int, rows: Sequence[int] | None = None) -> list[list[str]]:
        """Of each row (default: all), the names of its examples."""
        ...

    def report(self) -> dict[str, dict]:
        """What is in it."""
        ...


@dataclasses.dataclass(frozen=True)
class LoaderSettings:
    """How batches are built ahead.

    Attributes:
      workers: processes of this host; 0: a thread of the training process.
      prefetch: batches that each of them builds ahead.
    """

    workers: int = 0
    prefetch: int = 2

    def __post_init__(self):
        if self.workers < 0 or self.prefetch < 1:
            raise ValueError(f"{self}: expected workers >= 0 and prefetch >= 1")


def host_rows(global_rows: int, host: int, hosts: int) -> range:
    """A host's rows of the global batch: an equal share, in one piece, in the hosts' order.

    Raises:
      ValueError: rows that do not divide among the hosts, or a host that does not exist.
    """
    if hosts < 1 or not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts}, expected 0 to {max(hosts, 1) - 1}")
    if global_rows % hosts:
        raise ValueError(f"{global_rows} rows on {hosts} hosts: expected a multiple of the hosts")
    share = global_rows // hosts
    return range(host * share, (host + 1) * share)


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Travels in a batch's place: Grain would wait forever for an error that does not pickle."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Steps:
    """A Grain source without end: step -> (step, this host's rows of its batch).

    From `stop` on there is nothing to build. (If the source ended there, Grain would end each
    worker once it was done, and a worker that ended early could not be told from one that died.)
    """

    batches: Batches
    host: int
    hosts: int
    stop: int

    def __len__(self) -> int:
        return _STEPS

    def __getitem__(self, step: int):
        if step >= self.stop:
            return step, None
        try:
            rows = host_rows(self.batches.global_rows(step), self.host, self.hosts)
            return step, self.batches.build(step, rows)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: Grain takes exit code 0 for no failure
            where = "".join(traceback.format_exception(error))
            kind = type(error).__name__
            return step, _Failure(f"step {step}, host {self.host}: {kind}: {error}\n{where}")


class Loader(Iterator[tuple[int, Any]]):
    """Iterates over (step, batch); batches hold this host's rows.

    Close it, or use it in a `with`, to end its workers at once. Workers are spawned: a script that
    uses them needs its `if __name__ == "__main__":`.

    Args:
      batches: what to load.
      settings: how.
      start, stop: first step, and the one after the last (None: no end).
      host, hosts: which share of the rows.

    Raises:
      ValueError: steps, or a host, that make no sense, or rows that do not divide.
      BatchError: from `next`, for a batch that cannot be built or a worker that died.
    """

    def __init__(
        self,
        batches: Batches,
        settings: LoaderSettings = LoaderSettings(),
        *,
        start: int = 0,
        stop: int | None = None,
        host: int = 0,
        hosts: int = 1,
    ):
        if start < 0 or (stop is not None and stop < start):
            raise ValueError(f"steps {start} to {stop}: expected 0 <= start <= stop")
        host_rows(batches.global_rows(start), host, hosts)
        self.settings = settings
        self.step = start
        """The next step: all that a checkpoint needs of the data."""
        self._stop = _STEPS if stop is None else stop
        self._source = _Steps(batches, host, hosts, self._stop)
        self._iterator = None
        self._pids: tempfile.TemporaryDirectory | None = None
        self._closed = False

    def _open(self):
        import grain

        steps = grain.MapDataset.source(self._source)[self.step :]
        if self.settings.workers:
            _mark_flags_as_parsed()
            self._pids = tempfile.TemporaryDirectory(prefix="ba_jax-loader-")
            options = grain.MultiprocessingOptions(
                num_workers=min(self.settings.workers, self._stop - self.step),
                per_worker_buffer_size=self.settings.prefetch,
            )
            # The workers are the parallelism: no threads in them.
            one_by_one = steps.to_iter_dataset(grain.ReadOptions(num_threads=0))
            iterator = iter(one_by_one.mp_prefetch(options, _Worker(self._pids.name)))
        else:
            ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self.settings.prefetch)
            iterator = iter(steps.to_iter_dataset(ahead))
        iterator.start_prefetch()
        return iterator

    def __next__(self) -> tuple[int, Any]:
        if self._closed or self.step >= self._stop:
            self.close()
            raise StopIteration
        if self._iterator is None:
            self._iterator = self._open()
        try:
            step, batch = self._wait(_in_thread(next, self._iterator))
        except Exception as error:
            expected = self.step
            self.close()
            if isinstance(error, BatchError):
                raise
            raise BatchError(f"step {expected}: {error}") from error
        if isinstance(batch, _Failure):
            self.close()
            raise BatchError(batch.text)
        self.step = step + 1
        return step, batch

    def _dead_workers(self) -> list[int]:
        """Process ids of workers that have ended."""
        if self._pids is None:
            return []
        multiprocessing.active_children()  # reaps
        return sorted(int(pid) for pid in os.listdir(self._pids.name) if not _is_alive(int(pid)))

    def _wait(self, found: concurrent.futures.Future):
        dead_before = False
        while True:
            try:
                return found.result(timeout=_POLL_SECONDS)
            except concurrent.futures.TimeoutError:
                # Dead for a whole poll, and still no batch: what it had built has been used up.
                dead = self._dead_workers()
                if dead and dead_before:
                    raise BatchError(
                        f"step {self.step}: a worker died (process {dead}), expected a batch"
                    ) from None
                dead_before = bool(dead)

    def close(self) -> None:
        """Ends the workers; the loader gives nothing more."""
        self._closed = True
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            # Grain's own end waits without end for a worker that left with exit code 0.
            patience = _CLOSE_SECONDS if self._dead_workers() else _CLOSE_SECONDS * 10
            concurrent.futures.wait([_in_thread(iterator.close)], timeout=patience)
        if self._pids is not None:
            self._pids.cleanup()
            self._pids = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _in_thread(function, *args) -> concurrent.futures.Future:
    """Runs in a thread that can be abandoned: the interpreter does not wait for it at its end."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # goes to whoever waits, StopIteration too
            future.set_exception(error)

    threading.Thread(target=run, name="ba_jax-loader", daemon=True).start()
    return future


@dataclasses.dataclass(frozen=True)
class _Worker:
    """Runs at the start of each worker: leaves its process id in a folder, for the loader to watch.

    Grain takes a worker that ends with exit code 0 for one that works. And it leaves workers behind
    when the training process is killed: these here end with it. A signal to the whole group, as
    SLURM sends it, is the training process's to answer: it needs batches until all hosts stop.
    """

    folder: str

    def __call__(self, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        pathlib.Path(self.folder, str(os.getpid())).touch()
        threading.Thread(target=self._watch, name="ba_jax-parent-watch", daemon=True).start()

    def _watch(self) -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _mark_flags_as_parsed() -> None:
    """Grain's workers read absl's flags, which only `app.run` parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
