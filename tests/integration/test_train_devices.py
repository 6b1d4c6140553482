"""The same run on one device and on eight; of processes see test_train_hosts.py."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from ba_jax.train import train
from tests.integration import train_driver
from tests.unit.data import small_corpus
from tests.unit.steps import small_run

STEPS = 5
CHANGES = {"train__steps": STEPS, "data__rows": 8, "eval_data": {}}
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "small"
    return small_corpus.write_dataset(folder, small_run.records())


@pytest.fixture(scope="module")
def text(dataset, tmp_path_factory):
    """(config, workdir) of a run on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    config = small_run.text_run(dataset, **CHANGES)
    train(config, workdir)
    return config, workdir


def assert_near(one: pathlib.Path, two: pathlib.Path, names: tuple[str, ...]) -> None:
    for name in names:
        here, there = small_run.metrics(one, name), small_run.metrics(two, name)
        assert sorted(here) == sorted(there) == list(range(1, STEPS + 1)), name
        values = np.array([list(here.values()), list(there.values())])
        np.testing.assert_allclose(values[1], values[0], rtol=1e-5, err_msg=name)
    arrays, others = small_run.saved(one, STEPS), small_run.saved(two, STEPS)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(others[name], array, rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(
    "mesh",
    [
        {"replica": 8},
        {"replica": 1, "fsdp": 4, "tensor": 2},
        {"replica": 2, "fsdp": 2, "tensor": 2},
    ],
    ids=str,
)
def test_text_on_eight_devices(text, tmp_path, mesh):
    config, workdir = text
    changes = {f"mesh__{axis}": size for axis, size in mesh.items()}
    config = small_run.changed(config, changes)
    done = train_driver.run(config, tmp_path / "run", **EIGHT)
    assert done.returncode == 0, done.stderr
    assert_near(workdir, tmp_path / "run", ("loss", "grad_norm", "text_accuracy"))
    # What eight devices saved, one goes on from, and the other way round.
    more = {"train__steps": STEPS + 1, "mesh": {"replica": -1, "fsdp": 1, "tensor": 1}}
    assert int(train(small_run.changed(config, more), tmp_path / "run").step) == STEPS + 1


def test_codebooks_on_eight_devices(dataset, tmp_path):
    """Statistics, restarts and replaced items do not depend on where the rows are."""
    config = small_run.tokenizer_run(dataset, **CHANGES)
    train(config, tmp_path / "one")
    done = train_driver.run(config, tmp_path / "eight", **EIGHT)
    assert done.returncode == 0, done.stderr
    assert_near(tmp_path / "one", tmp_path / "eight", ("loss",))


def test_rows_that_do_not_divide_among_the_devices(dataset, tmp_path):
    config = small_run.text_run(dataset, data__rows=6, train__steps=2)
    done = train_driver.run(config, tmp_path / "run", **EIGHT)
    assert done.returncode == 1
    assert "a batch of 6 rows on 8 devices: expected a multiple; nothing was saved" in done.stderr
