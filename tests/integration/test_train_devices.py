"""The same run on one device and on eight. Several processes: test_train_hosts.py."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from ba_jax.train import train
from tests.integration import mesh_driver, train_driver
from tests.processes import PATIENCE
from tests.shared_models import share_training_steps
from tests.unit.data import small_corpus
from tests.unit.stages import small_run

STEPS = 5
CHANGES = {"train__steps": STEPS, "data__rows": 8, "eval_data": {}}
EIGHT = {"JAX_NUM_CPU_DEVICES": "8"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def shared_steps():
    with share_training_steps():
        yield


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


def assert_small(differences: dict) -> None:
    limits = {"loss": 1e-5, "grad_norm": 1e-4, "state": 1e-3}
    assert all(differences[name] <= limit for name, limit in limits.items()), differences


def on_eight_devices(dataset, out: pathlib.Path, *stages: str) -> dict:
    """Results of `mesh_driver`."""
    arguments = [str(dataset), str(out), *stages]
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.mesh_driver", *arguments],
        env=os.environ | {"PYTHONPATH": str(train_driver.ROOT)} | mesh_driver.ENVIRONMENT,
        cwd=train_driver.ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def meshes(dataset, tmp_path_factory):
    return on_eight_devices(dataset, tmp_path_factory.mktemp("meshes") / "found.json")


@pytest.mark.parametrize("case", mesh_driver.NAMES)
def test_steps_on_eight_devices(meshes, case):
    """Parameters differ more than losses: Adam divides rounding errors by small moments."""
    assert_small(meshes[case])


@pytest.mark.deep
def test_other_meshes_and_stages_on_eight_devices(dataset, tmp_path):
    """Marked deep: these steps take longest to compile."""
    results = on_eight_devices(dataset, tmp_path / "results.json", *mesh_driver.NAMED)
    assert len(results) == len(mesh_driver.NAMED)
    for differences in results.values():
        assert_small(differences)


@pytest.mark.parametrize("case", mesh_driver.NAMES)
def test_no_device_holds_the_logits_of_all_its_positions(meshes, case):
    """No float32 array is that large."""
    assert meshes[case]["largest"] < meshes[case]["logits"]


@pytest.mark.parametrize("case", [name for name in mesh_driver.NAMES if "lm" in name])
def test_tables_are_gathered_and_reduced_once(meshes, case):
    """Collectives in the loops over targets are no larger than what a chunk's positions need."""
    assert meshes[case]["in_loops"] <= meshes[case]["chunk"]


def test_rows_that_do_not_divide_among_the_devices(meshes):
    assert meshes["uneven"] == "a batch of 6 rows on 8 devices: expected a multiple"
    uneven = "generation.rows = 12 on 8 devices: expected a multiple"
    assert meshes["uneven generation"] == uneven


@pytest.mark.parametrize("case", mesh_driver.ATTENTION)
def test_splash_attention_on_eight_devices(meshes, case):
    """Rows, heads and positions are sharded, and in a second case two devices share a key head."""
    assert max(meshes[case]) < 1e-5


def test_caches_follow_the_mesh(meshes):
    assert meshes["cache"] == [None, "fsdp", "tensor"]


def test_a_run_on_eight_devices(text, tmp_path):
    config, workdir = text
    mesh = {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__sequence": 2}
    meshed = small_run.changed(config, mesh)
    done = train_driver.run(meshed, tmp_path / "run", "term", STEPS - 2, **EIGHT)
    assert done.returncode == 0, done.stderr
    assert max(small_run.metrics(tmp_path / "run")) == STEPS - 1
    # A single device resumes from the checkpoint of eight.
    train(config, tmp_path / "run")
    small_run.assert_near(workdir, tmp_path / "run", STEPS)
