"""A run on two processes, then two or four, then one, on other meshes; interrupted in between."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from ba_jax.checkpoints import checksums
from ba_jax.checkpoints.layout import complete_steps
from ba_jax.data.batches import open_batches
from ba_jax.data.hash import batch_hash, row_digests
from ba_jax.data.loader import host_rows
from ba_jax.data.record import RecordSource
from ba_jax.distributed import LOST
from ba_jax.train import train
from tests.integration import train_driver
from tests.processes import PATIENCE
from tests.shared_models import share_training_steps
from tests.unit.data import small_corpus
from tests.unit.stages import small_run

STEPS, ROWS = 8, 8
FIRST = {"replica": 1, "fsdp": 2, "tensor": 1}
SECOND = {
    2: {"replica": 2, "fsdp": 1, "tensor": 1},
    4: {"replica": 2, "fsdp": 2, "tensor": 1},
}
"""Number of processes -> mesh of the second run."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def shared_steps():
    with share_training_steps():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "small"
    dataset = small_corpus.write_dataset(folder, small_run.records())
    changes = {"train__steps": STEPS, "data__rows": ROWS, "eval_data": {}}
    return small_run.text_run(dataset, **changes, checkpoint__every=2, checkpoint__keep_last=2)


@pytest.fixture(scope="module")
def single(config, tmp_path_factory):
    """The workdir of a run of one process on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "single"
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.deep)])
def moved(request, config, tmp_path_factory):
    """(workdir, results of the first run, step it reached, of the second, step it reached)."""
    hosts = request.param
    workdir = tmp_path_factory.mktemp("moved") / "run"
    cache = {"data__index_cache": str(workdir.parent / "counts")}
    config = small_run.changed(config, cache)
    # Kill the coordinator while step 4 is saved.
    first = train_driver.together(
        small_run.changed(config, {"mesh": FIRST}), workdir, 2, {0: ("kill", 4)}, "--heartbeat=10"
    )
    for host in range(2):
        read_log(workdir, host).rename(read_log(workdir, host, "first"))
    (*_, killed) = complete_steps(workdir / "checkpoints")
    assert not (workdir / "done").exists()
    second = train_driver.together(
        small_run.changed(config, {"mesh": SECOND[hosts]}), workdir, hosts, {hosts - 1: ("term", 5)}
    )
    (*_, stopped) = complete_steps(workdir / "checkpoints")
    assert not (workdir / "done").exists()
    train(config, workdir)
    return workdir, first, killed, second, stopped


def read_log(workdir: pathlib.Path, host: int, run: str = "reads") -> pathlib.Path:
    """The file of the records that a host reads."""
    return workdir.with_name(f"{workdir.name}-{run}-{host}.jsonl")


def test_killed_process_ends_the_other(moved):
    _, (first, second), killed, *_ = moved
    assert killed in (2, 4)
    assert first.returncode == -signal.SIGKILL
    assert second.returncode == LOST, second.stderr
    reason, resume = second.stderr.splitlines()[-2:]
    assert re.match(r"ba_jax\.train: .*another (process|one) was lost", reason), reason
    assert resume.startswith("to resume: python -m ba_jax.train ") and "--process=1" in resume


def test_signal_to_one_process_stops_all_at_the_same_step(moved):
    *_, second, stopped = moved
    assert 6 <= stopped < STEPS
    hosts = len(second)
    for number, done in enumerate(second):
        assert done.returncode == 0, done.stderr
        assert f"process {number} of {hosts} (from flags): 1 of {hosts} cpu devices" in done.stderr
        assert f"stopped at step {stopped}; rerun the same command to resume" in done.stderr
        assert "to resume: python -m ba_jax.train " in done.stderr.splitlines()[-1]


def test_losses_and_parameters_equal_those_of_one_process(single, moved):
    workdir = moved[0]
    assert (workdir / "done").read_text() == f"{STEPS}\n" == (single / "done").read_text()
    small_run.assert_near(single, workdir, STEPS)


def test_each_host_builds_its_rows_of_every_batch(config, moved):
    """Hashes equal those of rows built here, also after a change of the number of hosts."""
    workdir, _, killed, second, stopped = moved
    batches = open_batches(config["data"], config["model"])
    for host in range(len(second)):
        lines = (workdir / f"batches-{host}.csv").read_text().splitlines()[1:]
        hashes = dict(line.split(",") for line in lines)
        expected = {
            str(step): batch_hash(row_digests(batches.build(step, host_rows(ROWS, host, hosts))))
            for hosts, steps in ((2, range(killed)), (len(second), range(killed, stopped)))
            if host < hosts
            for step in steps
        }
        assert hashes == expected, host


def test_each_host_reads_only_its_share(config, moved, monkeypatch):
    workdir, _, killed, second, stopped = moved
    hosts = len(second)

    def reads_of(host: int, run: str = "reads"):
        before, *lines = map(json.loads, read_log(workdir, host, run).read_text().splitlines())
        return before, {step: (rows, reads) for step, rows, reads in lines}

    # Process 0 counted the records, once for all runs.
    counted = [reads_of(host, "first")[0] for host in range(2)]
    assert counted[0] > 0 and counted[1] == 0
    shares = [reads_of(host) for host in range(hosts)]
    assert [before for before, _ in shares] == [0] * hosts

    batches, reads = open_batches(config["data"], config["model"]), []
    get = RecordSource.__getitem__
    monkeypatch.setattr(
        RecordSource, "__getitem__", lambda self, index: reads.append(index) or get(self, index)
    )
    for step in range(killed, stopped):
        reads.clear()
        batches.build(step)
        assert sum(built[step][1] for _, built in shares) == len(reads)
        for host, (_, built) in enumerate(shares):
            assert built[step][0] == list(host_rows(ROWS, host, hosts))
    assert all(min(built) == killed for _, built in shares)


def test_process_that_hangs_is_ended(config, tmp_path):
    """Its heartbeat continues, so only the timeout notices."""
    changes = {"train__step_timeout_seconds": 6.0, "train__steps": 6}
    done = train_driver.run(small_run.changed(config, changes), tmp_path / "run", "hang", 5)
    assert done.returncode == LOST, done.stderr
    reason, resume = done.stderr.splitlines()[-2:]
    assert reason.startswith(
        "ba_jax.train: what follows the checkpoint of step 4 took longer than 6"
    )
    assert resume.startswith("to resume: python -m ba_jax.train ")
    assert "train_driver.py" in done.stderr  # where it hung
    assert complete_steps(tmp_path / "run" / "checkpoints") == [2, 4]


def test_run_killed_while_saving_resumes_exactly(config, tmp_path):
    """Killed at 4 moments (20 with BA_JAX_DEEP=1): complete checkpoints stay, and runs resume."""
    seeds = [str(seed) for seed in range(20 if os.environ.get("BA_JAX_DEEP") else 4)]
    config = small_run.changed(config, {"checkpoint__every": 1, "data__rows": 4})
    train(config, tmp_path / "whole")
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tests.integration.kill_driver", str(tmp_path / "config.json")]
    done = subprocess.run(
        [*command, str(tmp_path), *seeds],
        env=os.environ | {"PYTHONPATH": str(train_driver.ROOT)},
        cwd=train_driver.ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    ended = [line for line in done.stdout.splitlines() if line.startswith("killed")]
    assert ended == [f"killed {seed} -9" for seed in seeds], done.stderr
    interrupted = 0
    for seed in seeds:
        folder = tmp_path / seed / "checkpoints"
        interrupted += any(not path.name.isdecimal() for path in folder.iterdir())
        kept = complete_steps(folder)[-2:]  # one before them may be half removed
        assert kept and all(checksums.damage(folder / str(step)) is None for step in kept)
        train(config, tmp_path / seed)
        assert not list(folder.glob("damaged-*"))
        for name in ("metrics.csv", "batches.csv"):
            assert (tmp_path / seed / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        small_run.assert_equal(
            small_run.saved(tmp_path / "whole", STEPS), small_run.saved(tmp_path / seed, STEPS)
        )
    print(f"{interrupted} of {len(seeds)} were killed before a checkpoint was complete")
    assert interrupted
