"""Shards made by processes on this machine: the standard library's process pool.

Beyond `ProcessPoolExecutor` it shows progress within shards, tells at which item a worker died, and
ends the workers at once when the run is interrupted or killed. `beam` is the way to many machines.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import tqdm

from ba_jax.corpora.shards import Job, PrepareError, ShardPlan, make_shard
from ba_jax.corpora.sources.base import Source

_POLL = 0.2  # seconds between two updates of the progress bar
_worker: dict[str, Any] = {}  # arguments of this process, if it is a worker


def make_shards(
    plan: ShardPlan, jobs: Sequence[Job], directory: Path, workers: int, show_progress: bool
) -> None:
    """Make shards in worker processes, or in this process if `workers` is 0."""
    with tqdm.tqdm(
        total=plan.items,
        initial=plan.items - sum(len(job.items) for job in jobs),
        unit="item",
        desc=plan.source.name,
        disable=not show_progress,
        dynamic_ncols=True,
    ) as bar:
        if workers > 0 and jobs:
            _run_pool(plan, jobs, directory, min(workers, len(jobs)), bar)
        else:
            for job in jobs:
                make_shard(job, plan.source, directory, plan.fingerprint, bar.update)


def _run_pool(
    plan: ShardPlan, jobs: Sequence[Job], directory: Path, workers: int, bar: tqdm.tqdm
) -> None:
    context = multiprocessing.get_context("spawn")
    items_done = context.Value("q", 0)
    first = bar.n
    executor = concurrent.futures.ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_start_worker,
        initargs=(plan.source, directory, plan.fingerprint, items_done),
    )
    running = {}
    processes: list[multiprocessing.Process] = []
    try:
        running = {executor.submit(_make_shard, job): job for job in jobs}
        processes = list(executor._processes.values())
        while running:
            finished, _ = concurrent.futures.wait(
                running, _POLL, concurrent.futures.FIRST_COMPLETED
            )
            bar.update(first + items_done.value - bar.n)
            for future in finished:
                if failure := future.result():
                    raise PrepareError(f"{failure}; complete shards are kept")
                del running[future]
    except BrokenProcessPool as error:
        _stop(executor, processes)
        raise PrepareError(_describe_death(running.values(), directory, processes)) from error
    finally:
        bar.update(first + items_done.value - bar.n)
        _stop(executor, processes)


def _stop(
    executor: concurrent.futures.ProcessPoolExecutor, processes: Sequence[multiprocessing.Process]
) -> None:
    """End a pool at once; the next run makes unfinished shards again."""
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(5)
        if process.exitcode is None:
            process.kill()
            process.join()


def _describe_death(
    jobs: Iterable[Job], directory: Path, processes: Sequence[multiprocessing.Process]
) -> str:
    """The workers that died and their items: all futures of a broken pool fail, claims tell."""
    codes = {process.pid: process.exitcode for process in processes}
    # The pool ends the surviving workers with SIGTERM.
    dead = [pid for pid, code in codes.items() if code not in (0, -signal.SIGTERM)]
    deaths = []
    for job in jobs:
        claim = job.claim_path(directory)
        if claim.is_file():
            line, _, _ = claim.read_text(encoding="utf-8", errors="replace").partition("\n")
            pid, _, item = line.partition(" ")
            if pid and (int(pid) in dead or not dead):
                code = codes.get(int(pid))
                deaths.append(
                    f"process {pid} (exit code {code}) at item {item} of {job.describe()}"
                )
    place = "; ".join(deaths) or "before it began a shard"
    return (
        f"a worker process died (killed, out of memory, or a crash in native code): {place}. "
        "Complete shards are kept: run the same command again to resume"
    )


def _start_worker(source: Source, directory: Path, fingerprint: str, items_done) -> None:
    # The main process stops its workers; if it is killed, they end by themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.update(
        source=source, directory=directory, fingerprint=fingerprint, items_done=items_done
    )


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _make_shard(job: Job) -> str | None:
    """Make a shard in a worker; returns the failure as text: errors may not be picklable."""

    def progress() -> None:
        with _worker["items_done"].get_lock():
            _worker["items_done"].value += 1

    try:
        make_shard(job, _worker["source"], _worker["directory"], _worker["fingerprint"], progress)
    except Exception as error:
        return f"{job.describe()}: {error}"
    return None
