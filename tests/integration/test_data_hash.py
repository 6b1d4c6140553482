"""The global batch is the same for any number of hosts and workers, with real processes."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import time

import pytest

from ba_jax.data.batches import open_batches
from ba_jax.data.hash import batch_hash, global_hashes, parse_steps, row_digests
from ba_jax.data.loader import Loader, LoaderSettings
from configs import lm_stage2, mixtures, models
from tests.processes import PATIENCE

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config():
    result = lm_stage2.get_config("nano").to_dict()
    result["data"]["rows"] = 4
    return result


@pytest.fixture(scope="module")
def expected(config):
    """step -> hash, built here without a loader."""
    batches = open_batches(config["data"], config["model"])
    return {s: batch_hash(row_digests(batches.build(s))) for s in (*range(100, 103), 10**6)}


@pytest.mark.parametrize(
    ("hosts", "workers"),
    [
        pytest.param(1, 2, marks=pytest.mark.slow),
        *(pytest.param(*pair, marks=pytest.mark.deep) for pair in ((1, 4), (2, 1), (4, 0))),
    ],
)
def test_hosts_and_workers_change_nothing(config, expected, hosts, workers):
    result = dict(global_hashes(config, range(100, 103), hosts, workers))
    assert result == {step: expected[step] for step in range(100, 103)}
    assert len(set(result.values())) == 3


def test_resuming_anywhere_gives_the_same_batches(config, expected):
    batches = open_batches(config["data"], config["model"])
    with Loader(batches, start=98) as loader:
        for _ in range(3):
            next(loader)
        position = loader.step
    assert position == 101
    with Loader(batches, LoaderSettings(workers=1), start=position) as loader:
        step, batch = next(loader)
    assert (step, batch_hash(row_digests(batch))) == (101, expected[101])


def test_late_steps_take_no_longer_to_build(config, expected):
    batches = open_batches(config["data"], config["model"])
    batches.build(0)  # opens the files

    def seconds(step: int) -> float:
        start = time.process_time()
        assert batch_hash(row_digests(batches.build(step))) == expected[step]
        return time.process_time() - start

    assert seconds(10**6) < 3 * seconds(100)


def test_seed_and_mixture_change_the_batch(config, expected):
    for key, value in (("seed", 1), ("rows", 5), ("row_length", 480)):
        other = open_batches(config["data"] | {key: value}, config["model"])
        assert batch_hash(row_digests(other.build(100))) != expected[100]


def test_audio_batches_are_the_same_for_two_hosts():
    data = mixtures.get_config("audio_nano").to_dict()
    config = {"data": data, "model": models.get_config("nano").to_dict()}
    first = dict(global_hashes(config, range(3), hosts=1))
    assert first == dict(global_hashes(config, range(3), hosts=2)) and len(set(first.values())) == 3


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ba_jax.data.hash", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def test_command_line(config, expected):
    done = run(
        "--config=configs/lm_stage2.py:nano",
        "--config.data.rows=4",
        "--steps=100:102",
        "--hosts=2",
        "--workers=1",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"100 {expected[100]}\n101 {expected[101]}\n"
    assert re.fullmatch(r"[0-9a-f]{64}", expected[100])


def test_an_error_ends_the_command():
    done = run("--config=configs/lm_stage2.py:nano", "--config.data.rows=3", "--hosts=2")
    assert done.returncode != 0
    assert "3 rows on 2 hosts: expected a multiple" in done.stderr and done.stdout == ""


def test_parse_steps():
    assert parse_steps("100:105") == range(100, 105)
    for text in ("5", "5:", "a:b", "5:4", "-1:3"):
        with pytest.raises(ValueError, match="expected first:last"):
            parse_steps(text)
