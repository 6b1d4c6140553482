"""The global batch is the same for any number of hosts and workers, with real processes."""

from __future__ import annotations

import re
import sys
import time
import types

import pytest
from ml_collections import ConfigDict

from ba_jax.data import hash
from ba_jax.data.batches import open_batches
from ba_jax.data.hash import batch_hash, global_hashes, parse_steps, row_digests
from ba_jax.data.loader import Loader, LoaderSettings
from configs import lm_stage2, mixtures, models
from tests.processes import finish, start


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Records are counted once: every process opens the data."""
    result = lm_stage2.get_config("nano").to_dict()
    result["data"] |= {"rows": 4, "index_cache": str(tmp_path_factory.mktemp("counts"))}
    return result


@pytest.fixture(scope="module")
def expected(config):
    """step -> hash, built here without a loader."""
    batches = open_batches(config["data"], config["model"])
    return {s: batch_hash(row_digests(batches.build(s))) for s in (*range(100, 103), 10**6)}


@pytest.mark.deep
@pytest.mark.parametrize(("hosts", "workers"), [(1, 2), (1, 4), (2, 1), (4, 0)])
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
    batches = open_batches(data, config["model"])
    here = {step: batch_hash(row_digests(batches.build(step))) for step in range(2)}
    assert here == dict(global_hashes(config, range(2), hosts=2)) and here[0] != here[1]


def test_command_line(config, expected):
    """Two hosts with a worker each."""
    words = [
        *(sys.executable, "-m", "ba_jax.data.hash", "--config=configs/lm_stage2.py:nano"),
        *(f"--config.data.{name}={config['data'][name]}" for name in ("rows", "index_cache")),
        *("--steps=100:103", "--hosts=2", "--workers=1"),
    ]
    out, _ = finish(start(words))
    assert out == "".join(f"{step} {expected[step]}\n" for step in (100, 101, 102))
    assert re.fullmatch(r"[0-9a-f]{64}", expected[100])
    assert expected[100] != expected[101] != expected[102]


def test_an_error_ends_the_command(config, monkeypatch, capfd):
    config = config | {"data": config["data"] | {"rows": 3}}
    values = types.SimpleNamespace(config=ConfigDict(config), steps="0:1", hosts=2, workers=0)
    monkeypatch.setattr(hash, "flags", types.SimpleNamespace(FLAGS=values))
    assert hash.main([]) == 1
    out, err = capfd.readouterr()
    assert "3 rows on 2 hosts: expected a multiple" in err and out == ""


def test_parse_steps():
    assert parse_steps("100:105") == range(100, 105)
    for text in ("5", "5:", "a:b", "5:4", "-1:3"):
        with pytest.raises(ValueError, match="expected first:last"):
            parse_steps(text)
