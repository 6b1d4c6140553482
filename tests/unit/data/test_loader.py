"""The loader: order, shares, resumption, and what happens when a worker fails."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

from ba_jax.data.loader import BatchError, Loader, LoaderSettings, host_rows
from tests.processes import is_alive, wait_for


class Batch(NamedTuple):
    values_B: np.ndarray
    nested: tuple[np.ndarray, ...]


class Unpicklable(Exception):
    """Has an argument too many to be rebuilt, and a member that no pickle takes."""

    def __init__(self, first, second):
        super().__init__(first)
        self.member = lambda: second


@dataclasses.dataclass(frozen=True)
class Counting:
    """Rows hold 100 * step + row; fails in a given way at a given step."""

    rows: int = 4
    bad_step: int = -1
    failure: str = ""

    def global_rows(self, step: int) -> int:
        return self.rows

    def build(self, step, rows=None):
        if step == self.bad_step:
            if self.failure == "slow":
                time.sleep(4)
            if self.failure == "raise":
                raise ValueError("no such thing")
            if self.failure == "unpicklable":
                raise Unpicklable("cannot travel", 2)
            if self.failure == "sysexit":
                sys.exit(0)
            if self.failure == "exit":
                os._exit(0)
            if self.failure == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        values_B = np.array([100 * step + row for row in rows])
        return Batch(values_B, (values_B[:, None] * np.ones(3, np.float32),))

    def report(self):
        return {}


def values(loader: Loader) -> list[tuple[int, list[int]]]:
    with loader:
        return [(step, batch.values_B.tolist()) for step, batch in loader]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_steps_come_in_order_with_any_workers(workers):
    result = values(Loader(Counting(), LoaderSettings(workers), start=5, stop=12))
    assert result == [(s, [100 * s + r for r in range(4)]) for s in range(5, 12)]


def test_hosts_share_the_rows_in_order():
    parts = [values(Loader(Counting(6), start=2, stop=4, host=h, hosts=3)) for h in range(3)]
    for step in range(2):
        rows = [value for part in parts for value in part[step][1]]
        assert rows == [100 * (step + 2) + r for r in range(6)]


def test_resuming_at_the_step_it_stopped_at():
    loader = Loader(Counting(), LoaderSettings(workers=1), start=0)
    before = [next(loader)[0] for _ in range(3)]
    resumed = Loader(Counting(), LoaderSettings(workers=0), start=loader.step)
    loader.close()
    with resumed:
        assert before + [next(resumed)[0] for _ in range(2)] == [0, 1, 2, 3, 4]


def test_a_loader_starts_at_any_step():
    with Loader(Counting(), start=10**6) as loader:
        assert next(loader)[0] == 10**6


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("raise", "step 7, host 0: ValueError: no such thing\n(.|\n)*in build"),
        ("unpicklable", "step 7, host 0: Unpicklable: cannot travel"),
        ("sysexit", "step 7, host 0: SystemExit: 0"),
        ("exit", r"a worker died \(process \[\d+"),
        ("kill", r"exit code -9|a worker died \(process"),
    ],
)
def test_a_failing_worker_is_an_error(failure, message):
    loader = Loader(Counting(bad_step=7, failure=failure), LoaderSettings(workers=1), start=5)
    with loader, pytest.raises(BatchError, match=message):
        assert next(loader)[0] == 5
        assert next(loader)[0] == 6
        next(loader)
    assert_no_workers()


def test_a_slow_last_batch_is_no_failure():
    slow = Counting(bad_step=7, failure="slow")
    result = values(Loader(slow, LoaderSettings(workers=1), start=5, stop=8))
    assert [step for step, _ in result] == [5, 6, 7]


def test_without_workers_a_failure_names_the_step_too():
    with Loader(Counting(bad_step=1, failure="raise")) as loader:
        next(loader)
        with pytest.raises(BatchError, match="step 1, host 0: ValueError: no such thing"):
            next(loader)


def test_a_worker_killed_from_outside_is_an_error():
    with Loader(Counting(), LoaderSettings(workers=1)) as loader:
        next(loader)
        (victim,) = multiprocessing.active_children()
        threading.Timer(0.2, lambda: os.kill(victim.pid, signal.SIGKILL)).start()
        with pytest.raises(BatchError, match=r"exit code|a worker died \(process"):
            wait_for(lambda: next(loader) is None)
    assert_no_workers()


def assert_no_workers():
    wait_for(lambda: not multiprocessing.active_children())


def test_closing_ends_the_workers_and_the_iteration():
    loader = Loader(Counting(), LoaderSettings(workers=2))
    next(loader)
    loader.close()
    assert_no_workers()
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_loader import Counting
from ba_jax.data.loader import Loader, LoaderSettings
import multiprocessing
if __name__ == "__main__":
    loader = Loader(Counting(), LoaderSettings(workers=2))
    next(loader)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_training_process_leaves_no_workers(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=os.path.dirname(__file__)))
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_rows_that_do_not_divide():
    with pytest.raises(ValueError, match="4 rows on 3 hosts"):
        Loader(Counting(4), hosts=3)
    with pytest.raises(ValueError, match="host 2 of 2, expected 0 to 1"):
        host_rows(4, 2, 2)
    with pytest.raises(ValueError, match="expected 0 <= start <= stop"):
        Loader(Counting(), start=3, stop=2)
    with pytest.raises(ValueError, match="workers = -1, expected at least 0"):
        LoaderSettings(workers=-1)


def test_no_steps_at_all():
    assert values(Loader(Counting(), LoaderSettings(workers=2), start=3, stop=3)) == []
