"""Checkpoints of a run: retention, refusals, damage, interrupted and failed writes."""

from __future__ import annotations

import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ba_jax.checkpoints import checksums, manager
from ba_jax.checkpoints.arrays import check_files, load_variables
from ba_jax.checkpoints.layout import CheckpointError, complete_steps, weights_folder
from ba_jax.checkpoints.manager import Checkpoints, CheckpointSettings
from tests.processes import PATIENCE

ROOT = pathlib.Path(__file__).resolve().parents[3]
NOTE = {"stage": "toy", "seed": 0}


def weights(value: float, width: int = 3):
    return {"params": {"llm": {"embedding": jnp.full((4, width), value)}}}


def train(value: float):
    return {"step": jnp.asarray(int(value)), "optimizer": ({"a": jnp.full(2, value)}, ())}


def expected(tree):
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def save(checkpoints: Checkpoints, step: int, loss: float | None = None) -> None:
    metrics = None if loss is None else {"eval/loss": loss}
    checkpoints.save(step, weights(step), train(step), NOTE, metrics)


def restore(folder, step: int):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(step, expected(weights(0)), expected(train(0)))


def test_restore_returns_what_was_saved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        save(checkpoints, 3)
        save(checkpoints, 3)  # a second time: the checkpoint exists
        checkpoints.wait()
        assert checkpoints.latest() == 3
        restored, rest, note = checkpoints.restore(3, expected(weights(0)), expected(train(0)))
    jax.tree.map(np.testing.assert_array_equal, restored, weights(3))
    jax.tree.map(np.testing.assert_array_equal, rest, train(3))
    assert note == {"stage": "toy", "seed": 0, "step": 3}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (CheckpointSettings(keep_last=1), [5]),
        (CheckpointSettings(keep_last=2), [4, 5]),
        (CheckpointSettings(keep_last=1, keep_best=1), [2, 5]),
        (CheckpointSettings(keep_last=1, keep_best=2), [2, 4, 5]),
    ],
)
def test_last_and_best_are_kept(tmp_path, settings, kept):
    losses = {1: 0.9, 2: 0.1, 3: None, 4: 0.5, 5: 0.7}
    with Checkpoints(tmp_path, settings) as checkpoints:
        for step, loss in losses.items():
            save(checkpoints, step, loss)
    assert complete_steps(tmp_path / "checkpoints") == kept


def test_the_best_checkpoint_is_kept_over_a_restart(tmp_path):
    settings = CheckpointSettings(keep_last=1, keep_best=1)
    for steps in ({1: 0.2, 2: 0.5}, {3: 0.4, 4: 0.3}):
        with Checkpoints(tmp_path, settings) as checkpoints:
            for step, loss in steps.items():
                save(checkpoints, step, loss)
    assert complete_steps(tmp_path / "checkpoints") == [1, 4]


def test_an_unknown_best_metric_is_named_after_saving(tmp_path):
    with pytest.raises(
        CheckpointError, match="'eval/los': expected .*'eval/loss'.*saved at step 2"
    ):
        with Checkpoints(
            tmp_path, CheckpointSettings(keep_best=1, best_metric="eval/los")
        ) as checkpoints:
            save(checkpoints, 2, 0.5)
    np.testing.assert_array_equal(restore(tmp_path, 2)[1]["step"], 2)


def test_bad_settings():
    for wrong in ({"every": -1}, {"keep_last": 0}, {"keep_best": -1}):
        with pytest.raises(ValueError, match="expected every >= 0, keep_last >= 1, keep_best >= 0"):
            CheckpointSettings(**wrong)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with checkpoints 1 and 2; to be copied."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder, CheckpointSettings(keep_last=2)) as checkpoints:
        save(checkpoints, 1)
        save(checkpoints, 2)
    return folder


def test_other_shapes_and_other_trees_are_refused(run):
    with Checkpoints(run, CheckpointSettings(keep_last=2)) as checkpoints:
        with pytest.raises(CheckpointError, match=r"misshapen .*expected \(4, 5\), got \(4, 3\)"):
            checkpoints.restore(2, expected(weights(0, 5)), expected(train(0)))
        more = {"params": {**weights(0)["params"], "vocoder": {"x": jnp.zeros(2)}}}
        with pytest.raises(CheckpointError, match=r"missing params/vocoder/x \(2,\)"):
            checkpoints.restore(2, expected(more), expected(train(0)))
        few = {"step": train(0)["step"]}
        with pytest.raises(CheckpointError, match="1 arrays that this run has not.*another config"):
            checkpoints.restore(2, expected(weights(0)), expected(few))
        with pytest.raises(CheckpointError, match="3"):
            checkpoints.restore(3, expected(weights(0)), expected(train(0)))


def test_an_interrupted_write_is_ignored(run, tmp_path):
    """A killed Orbax leaves a folder whose name says so."""
    work = tmp_path / "run"
    shutil.copytree(run, work)
    folder = work / "checkpoints"
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "3.orbax-checkpoint-tmp" / "train")
    assert complete_steps(folder) == [1, 2]
    assert weights_folder(work) == folder / "2" / "weights"
    with Checkpoints(work, CheckpointSettings(keep_last=2)) as checkpoints:
        assert checkpoints.latest() == 2
        save(checkpoints, 3)
    assert complete_steps(folder) == [2, 3]
    np.testing.assert_array_equal(restore(work, 3)[1]["step"], 3)


def empty(folder: pathlib.Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def without(*patterns: str):
    """Remove what the patterns match, and the checksums."""

    def change(folder: pathlib.Path) -> None:
        for pattern in (checksums.FILE, *patterns):
            for path in sorted(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def shortened(pattern: str, length: int = 0):
    """Shorten the files that the pattern matches; without checksums."""

    def change(folder: pathlib.Path) -> None:
        (folder / checksums.FILE).unlink()
        for path in sorted(folder.glob(pattern)):
            path.write_bytes(path.read_bytes()[:length])

    return change


def replaced(by):
    """Replace the folder by something else."""

    def change(folder: pathlib.Path) -> None:
        shutil.rmtree(folder)
        by(folder)

    return change


DAMAGES = {
    "empty": (empty, "2/note/metadata: No such file"),
    "checksums alone": (lambda f: [shutil.rmtree(p) for p in f.iterdir() if p.is_dir()], "missing"),
    "no weights": (without("weights"), "2/weights: no such folder"),
    "no train": (without("train"), "2/train: no such folder"),
    "no note": (without("note"), "2/note/metadata: No such file"),
    "no tree": (without("train/_METADATA"), "2/train: neither it .* holds _METADATA"),
    "no manifest": (without("weights/manifest.ocdbt"), "embedding cannot be opened: NOT_FOUND"),
    "no chunks": (without("train/d", "train/*/d"), "2/train: array .* cannot be opened"),
    "empty chunks": (shortened("weights/**/d/*"), "2/weights: array .* cannot be opened"),
    "cut chunks": (shortened("train/**/d/*", 100), "2/train: array .* cannot be opened"),
    "empty tree": (shortened("weights/_METADATA"), "2/weights/_METADATA: not Orbax metadata"),
    "cut tree": (shortened("train/_METADATA", 99), "2/train/_METADATA: not Orbax metadata"),
    "cut note": (shortened("note/metadata", 9), "2/note/metadata: expected a JSON object"),
    "cut sizes": (shortened("train/array_metadatas/*", 9), "process_0: expected a JSON object"),
    "cut list": (shortened("_CHECKPOINT_METADATA", 9), "_CHECKPOINT_METADATA: expected a JSON"),
    "a file": (replaced(lambda f: f.write_text("x")), "2: is not a folder"),
    "a dead link": (replaced(lambda f: f.symlink_to("gone")), "2: is not a folder"),
    "a loop": (replaced(lambda f: f.symlink_to(f.name)), "2: is not a folder"),
    "a link to another": (replaced(lambda f: f.symlink_to("1")), "2: holds step 1"),
    "a copy of another": (replaced(lambda f: shutil.copytree(f.parent / "1", f)), "holds step 1"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_last_step_is_set_aside(run, tmp_path, name, caplog):
    """Without its checksums too, and whatever has its name; nothing is deleted."""
    work = tmp_path / "run"
    shutil.copytree(run, work)
    damage, message = DAMAGES[name]
    damage(work / "checkpoints" / "2")
    left = sorted(path.name for path in (work / "checkpoints" / "2").glob("**/*"))
    caplog.set_level(logging.WARNING, "absl")  # other tests set it
    with Checkpoints(work, CheckpointSettings(keep_last=2)) as checkpoints:
        assert checkpoints.latest() == 1
    aside = work / "checkpoints" / "damaged-2"
    (line,) = [record.getMessage() for record in caplog.records if "moved" in record.getMessage()]
    assert re.search(message + f".*; moved to {aside}, step 1 is the last good one$", line), line
    assert os.path.lexists(aside) and sorted(path.name for path in aside.glob("**/*")) == left


def test_other_names_are_no_steps(run, tmp_path):
    """Orbax skips them too; they stay."""
    work = tmp_path / "run"
    shutil.copytree(run, work)
    folder = work / "checkpoints"
    (folder / "1").rename(tmp_path / "elsewhere")
    (folder / "1").symlink_to(tmp_path / "elsewhere")  # a good checkpoint on another disk
    names = {"2 (copy)", "0002", "\u0663", "\u00b2", "-1", "2.0", "2_5", "lost+found"}
    for name in names:
        (folder / name).mkdir()
    for name in (".DS_Store", "._2"):
        (folder / name).write_text("x")
    (folder / "2" / "weights" / ".DS_Store").write_text("x")
    assert complete_steps(folder) == [1, 2]
    with Checkpoints(work, CheckpointSettings(keep_last=2)) as checkpoints:
        assert checkpoints.latest() == 2
    assert {path.name for path in folder.iterdir()} == names | {"1", "2", ".DS_Store", "._2"}


def test_another_process_follows_the_first(run, tmp_path, monkeypatch):
    """It checks the steps that process 0 lists, gets its answer, and renames nothing."""
    work = tmp_path / "run"
    shutil.copytree(run, work)
    (work / "checkpoints" / "3").mkdir()  # process 0 does not see it yet
    problem = b"3/train/d: missing"  # process 0 checked that file
    gathered = iter([problem, b""])

    def gather(message):
        assert not message.any()
        first = np.zeros_like(message)
        first[: len(line)] = np.frombuffer(line := next(gathered), np.uint8)
        return np.stack([first, message])

    waits = []
    monkeypatch.setattr(manager.jax, "process_count", lambda: 2)
    monkeypatch.setattr(manager.jax, "process_index", lambda: 1)
    monkeypatch.setattr(manager.sharding, "text_from_first", lambda text: "[1, 2]")
    monkeypatch.setattr(manager.multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(manager.multihost_utils, "sync_global_devices", waits.append)
    manager._set_damaged_aside(work / "checkpoints")
    assert waits == ["ba_jax damaged 2", "ba_jax moved aside"]
    assert complete_steps(work / "checkpoints") == [1, 2, 3]


def flip(work: pathlib.Path, step: int, item: str) -> pathlib.Path:
    """Flip a bit in the largest file of an item."""
    files = (work / "checkpoints" / str(step) / item).rglob("[!_]*")
    file = max((file for file in files if file.is_file()), key=lambda file: file.stat().st_size)
    flip_in(file)
    return file


def flip_in(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("item", ["weights", "train", "note"])
def test_a_flipped_bit_falls_back_to_the_checkpoint_before(run, tmp_path, item, caplog):
    work = tmp_path / "run"
    shutil.copytree(run, work)
    file = flip(work, 2, item)
    caplog.set_level(logging.WARNING, "absl")  # other tests set it
    with Checkpoints(work, CheckpointSettings(keep_last=2)) as checkpoints:
        assert checkpoints.latest() == 1
        aside = work / "checkpoints" / "damaged-2"
        assert f"{file}: " in caplog.text and f"moved to {aside}, step 1 is" in caplog.text
        # It can be saved again, and be damaged again.
        save(checkpoints, 2)
    assert aside.is_dir() and complete_steps(work / "checkpoints") == [1, 2]
    np.testing.assert_array_equal(restore(work, 2)[1]["step"], 2)
    flip(work, 2, item)
    with Checkpoints(work, CheckpointSettings(keep_last=2)) as checkpoints:
        assert checkpoints.latest() == 1
    assert (work / "checkpoints" / "damaged-2-2").is_dir()


def test_damaged_metrics_fall_back_to_another_checkpoint(tmp_path):
    """Orbax reads the metrics of all checkpoints when it lists them."""
    settings = CheckpointSettings(keep_last=2, keep_best=1)
    whole, work = tmp_path / "whole", tmp_path / "run"
    with Checkpoints(whole, settings) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2, 0.4)
    assert len(list((whole / "checkpoints").rglob(checksums.FILE))) == 2
    for step in (1, 2):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        (work / "checkpoints" / str(step) / "metrics" / "metrics").write_bytes(b"")
        with Checkpoints(work, settings) as checkpoints:
            assert checkpoints.latest() == 3 - step
        assert (work / "checkpoints" / f"damaged-{step}").is_dir()


def test_without_an_intact_checkpoint_nothing_is_moved(run, tmp_path):
    work = tmp_path / "run"
    shutil.copytree(run, work)
    folder = work / "checkpoints"
    flip(work, 1, "train")
    file = flip(work, 2, "weights")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{file}: .*every .* damaged, steps .1, 2."):
            Checkpoints(work, CheckpointSettings(keep_last=2))
    assert complete_steps(folder) == [1, 2]
    shutil.rmtree(folder / "1")
    empty(folder / "2")
    with pytest.raises(CheckpointError, match="2/note/metadata: No such.*damaged, steps .2.: expe"):
        Checkpoints(work)
    (folder / "2").rename(folder / "damaged-2")
    with pytest.raises(CheckpointError, match=f"{folder}: holds damaged checkpoints alone"):
        Checkpoints(work)


def test_readers_of_weights_refuse_a_flipped_bit(run, tmp_path):
    work = tmp_path / "run"
    shutil.copytree(run, work)
    flip(work, 2, "train")
    load_variables(weights_folder(work))  # readers of weights ignore `train`
    folder = weights_folder(work)
    for file in (file for file in sorted(folder.rglob("*")) if file.is_file()):  # indices too
        flip_in(file)
        for read in (load_variables, check_files, manager.check_weights):
            with pytest.raises(CheckpointError, match=f"{file}: .* expected another of the run"):
                read(folder)
        flip_in(file)
    load_variables(work / "checkpoints" / "1")


def test_lost_checksums_are_named_and_the_checkpoint_is_used(run, tmp_path, caplog):
    work = tmp_path / "run"
    shutil.copytree(run, work)
    file = work / "checkpoints" / "2" / "checksums.json"
    file.unlink()
    caplog.set_level(logging.WARNING, "absl")  # other tests set it
    with Checkpoints(work, CheckpointSettings(keep_last=2)) as checkpoints:
        assert checkpoints.latest() == 2
    for read in (check_files, manager.check_weights):
        read(weights_folder(work))
    assert caplog.text.count(f"{file}: missing, so a changed bit would not be noticed") == 3


FULL_DISK = """
import resource, signal, sys
import jax.numpy as jnp
from ba_jax.checkpoints.layout import CheckpointError
from ba_jax.checkpoints.manager import Checkpoints, CheckpointSettings

def save(checkpoints, step, rows):
    # Random values, which do not compress.
    import jax
    values = jax.random.normal(jax.random.key(step), (rows, 1024))
    checkpoints.save(step, {"params": {"a": values}}, {"step": jnp.asarray(step)}, {"stage": "s"})

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing gives an error, as a full disk does
with Checkpoints(sys.argv[1], CheckpointSettings(keep_last=3)) as checkpoints:
    save(checkpoints, 1, 512)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    for then in ("wait", "save"):
        try:
            save(checkpoints, 2, 512)
            checkpoints.wait() if then == "wait" else save(checkpoints, 3, 512)
        except CheckpointError as error:
            print(then, error)
        else:
            print("no error")
    print("latest", checkpoints.latest())
"""


def test_a_full_disk(tmp_path):
    """A limit on file sizes fails in the same system calls; the complete checkpoint stays."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith(("wait", "save", "no"))]
    assert len(lines) == 2, done.stdout + done.stderr
    for line in lines:
        assert f"{tmp_path}/checkpoints" in line and "could not be written" in line
        assert "Complete ones: [1]" in line
    assert complete_steps(tmp_path / "checkpoints") == [1]
    tree = {"params": {"a": jnp.zeros((512, 1024))}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        restored, _, _ = checkpoints.restore(1, expected(tree), expected({"step": jnp.asarray(0)}))
        np.testing.assert_array_equal(
            restored["params"]["a"], jax.random.normal(jax.random.key(1), (512, 1024))
        )
        # Once there is room again, saving works.
        checkpoints.save(2, tree, {"step": jnp.asarray(2)}, NOTE)
    assert complete_steps(tmp_path / "checkpoints") == [2]


def test_a_failed_background_write_is_reported_at_the_next_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep_last=3))
    save(checkpoints, 1)
    checkpoints.wait()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    # The last call of the writing thread.
    monkeypatch.setattr("os.rename", fail)
    monkeypatch.setattr("pathlib.Path.rename", fail)
    with pytest.raises(CheckpointError, match=r"No space left.*Complete ones: \[1\]"):
        save(checkpoints, 2)
        save(checkpoints, 3)
    monkeypatch.undo()
    assert complete_steps(tmp_path / "checkpoints") == [1]
