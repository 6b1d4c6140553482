"""Iteration over a host's share of the batches, prefetched by workers.

A batch is a pure function of its step (`PackedBatches`, `AudioBatches`), so the position is the
step: to resume, open a loader at that step, with any number of hosts and workers. Grain runs the
workers. A failure in a worker arrives here within seconds as an error that names the step, whatever
was raised and however the worker ended.
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

from ba_jax.config import check_at_least

_STEPS = 1 << 60  # length of an endless source
_POLL_SECONDS = 1.0
_CLOSE_SECONDS = 2.0


class BatchError(RuntimeError):
    """A batch that could not be built; names the step, the host, the error and its traceback."""


class Batches(Protocol):
    """Batches that a loader iterates over, see `PackedBatches` and `AudioBatches`."""

    def global_rows(self, step: int) -> int:
        """Number of rows of the global batch at a step."""
        ...

    def build(self, step: int, rows: Sequence[int] | None = None) -> Any:
        """Build rows (default: all) of the global batch at a step."""
        ...

    def ids(self, step: int, rows: Sequence[int] | None = None) -> list[list[str]]:
        """List the names of each row's examples (default: all rows)."""
        ...

    def report(self) -> dict[str, dict]:
        """Figures of each member."""
        ...


@dataclasses.dataclass(frozen=True)
class LoaderSettings:
    """Settings of prefetching.

    Attributes:
      workers: processes of this host; 0: a thread of the training process.
      prefetch: batches that each worker builds ahead.
    """

    workers: int = 0
    prefetch: int = 2

    def __post_init__(self):
        check_at_least(self, workers=0, prefetch=1)


def host_rows(global_rows: int, host: int, hosts: int) -> range:
    """Rows of the global batch that a host builds: equal, contiguous shares in the hosts' order."""
    if hosts < 1 or not 0 <= host < hosts:
        raise ValueError(f"host {host} of {hosts}, expected 0 to {max(hosts, 1) - 1}")
    if global_rows % hosts:
        raise ValueError(f"{global_rows} rows on {hosts} hosts: expected a multiple of the hosts")
    share = global_rows // hosts
    return range(host * share, (host + 1) * share)


@dataclasses.dataclass(frozen=True)
class _Failure:
    """Sent in place of a batch: Grain would wait forever for an error that does not pickle."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Steps:
    """An endless Grain source: step -> (step, this host's rows of its batch).

    It builds nothing from `stop` on. (If it ended there, Grain would end each worker early, and a
    worker that ended could not be told from one that died.)
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

    Steps run from `start` to before `stop` (None: no end). Close it, or use it in a `with`, to end
    its workers at once. Workers are spawned: a script that uses them needs
    `if __name__ == "__main__":`. A batch that cannot be built, or a worker that died, raises
    BatchError from `next`.
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
        """The next step: the data position of a checkpoint."""
        self._stop = _STEPS if stop is None else stop
        self._source = _Steps(batches, host, hosts, self._stop)
        self._iterator = None
        self._workers: WorkerWatch | None = None
        self._closed = False

    def _open(self):
        import grain

        steps = grain.MapDataset.source(self._source)[self.step :]
        if self.settings.workers:
            _mark_flags_as_parsed()
            self._workers = WorkerWatch()
            options = grain.MultiprocessingOptions(
                num_workers=min(self.settings.workers, self._stop - self.step),
                per_worker_buffer_size=self.settings.prefetch,
            )
            # The workers are the parallelism: no threads in them.
            one_by_one = steps.to_iter_dataset(grain.ReadOptions(num_threads=0))
            iterator = iter(one_by_one.mp_prefetch(options, self._workers.initializer))
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
        return self._workers.find_dead() if self._workers else []

    def _wait(self, batch: concurrent.futures.Future):
        dead_before = False
        while True:
            try:
                return batch.result(timeout=_POLL_SECONDS)
            except concurrent.futures.TimeoutError:
                # Dead for a whole poll, and still no batch: those that it had built are used up.
                dead = self._dead_workers()
                if dead and dead_before:
                    raise BatchError(
                        f"step {self.step}: a worker died (process {dead}), expected a batch"
                    ) from None
                dead_before = bool(dead)

    def close(self) -> None:
        """End the workers and the iteration."""
        self._closed = True
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            # Grain's close waits forever for a worker that ended with exit code 0.
            timeout = _CLOSE_SECONDS if self._dead_workers() else _CLOSE_SECONDS * 10
            concurrent.futures.wait([_in_thread(iterator.close)], timeout=timeout)
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _in_thread(function, *args) -> concurrent.futures.Future:
    """Call a function in a thread that the interpreter does not wait for at its end."""
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:  # raised in the waiting thread, StopIteration too
            future.set_exception(error)

    threading.Thread(target=run, name="ba_jax-loader", daemon=True).start()
    return future


def _mark_flags_as_parsed() -> None:
    """Let Grain's workers read absl's flags, which only `app.run` parses."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


# --- worker processes ----------------------------------------------------------------------------


class WorkerWatch:
    """Finds workers that ended: Grain takes a worker that ends with exit code 0 for a working one.

    Each worker calls `initializer` at its start, which leaves its process id in a folder.
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="ba_jax-loader-")
        self.initializer = _Initializer(self._folder.name)

    def find_dead(self) -> list[int]:
        """Process ids of workers that have ended."""
        multiprocessing.active_children()  # reaps
        return sorted(pid for pid in map(int, os.listdir(self._folder.name)) if not _is_alive(pid))

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()


@dataclasses.dataclass(frozen=True)
class _Initializer:
    """Prepares a worker process: it ends with its parent and leaves signals to it.

    Grain leaves workers behind when the training process is killed. A signal to the whole group, as
    SLURM sends it, is for the training process, which needs batches until all hosts stop.
    """

    folder: str

    def __call__(self, *_) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        pathlib.Path(self.folder, str(os.getpid())).touch()
        threading.Thread(target=self._end_with_parent, name="ba_jax-parent", daemon=True).start()

    def _end_with_parent(self) -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
