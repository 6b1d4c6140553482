"""Whole runs: bit-exact resume, signals, and errors before and during training."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ba_jax import run as run_module
from ba_jax import train as train_module
from ba_jax.checkpoints.layout import CheckpointError, complete_steps
from ba_jax.config import ConfigError
from ba_jax.data.batches import open_batches
from ba_jax.data.packed import PackedBatches
from ba_jax.data.record import RecordError
from ba_jax.distributed import Signals
from ba_jax.optim import OptimError
from ba_jax.resume import ChangedSettingsError
from ba_jax.stages.base import StageError
from ba_jax.stages.lm import TextLMStage
from ba_jax.train import TrainError, train
from tests.integration import train_driver
from tests.shared_models import share_training_steps
from tests.unit.data import small_corpus
from tests.unit.stages import small_run
from tests.unit.stages.small_run import assert_equal, metrics, saved, text_run

STEPS = 8
EVERYTHING = {
    "train__accumulation_steps": 2,
    "train__evaluate_every": 4,
    "optimizer__ema_decay": 0.9,
    "checkpoint__every": 2,
    "checkpoint__keep_last": 2,
}
"""Changes to a config so that a run has every kind of state."""


@pytest.fixture(scope="module", autouse=True)
def shared_steps():
    with share_training_steps():
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "small"
    return small_corpus.write_dataset(folder, small_run.records(), shards=2)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """(config, workdir) of an undisturbed run of 8 steps."""
    config = text_run(dataset, **EVERYTHING)
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    state = train(config, workdir)
    assert int(state.step) == STEPS
    return config, workdir


@pytest.fixture
def copied(whole, tmp_path):
    """(config, workdir) of a copy of the finished run."""
    config, workdir = whole
    shutil.copytree(workdir, tmp_path / "run")
    return config, tmp_path / "run"


@pytest.fixture
def at_step(monkeypatch):
    """`at_step(number, function)`: call a function when the batch of that step arrives."""

    def set_hook(number, function):
        add = run_module.BatchHashes.add

        def add_and_call(self, step, batch):
            add(self, step, batch)
            if step == number:
                function()

        monkeypatch.setattr(run_module.BatchHashes, "add", add_and_call)

    return set_hook


def assert_same_run(workdir, other) -> None:
    """Losses, batches and final parameters are bit-identical."""
    for name in ("metrics.csv", "batches.csv"):
        assert (workdir / name).read_bytes() == (other / name).read_bytes(), name
    assert_equal(saved(workdir, STEPS), saved(other, STEPS))


def test_run_learns_and_writes_its_files(whole):
    config, workdir = whole
    losses = metrics(workdir)
    assert sorted(losses) == list(range(1, STEPS + 1)) and losses[STEPS] < losses[1] - 0.3
    assert sorted(metrics(workdir, "eval/loss")) == [4, 8]
    assert complete_steps(workdir / "checkpoints") == [6, 8]
    names = {"grad_norm/llm", "grad_norm", "learning_rate", "text", "text_accuracy"}
    assert all(len(metrics(workdir, name)) == STEPS for name in names)
    assert "tokens_per_second" in (workdir / "timings.csv").read_text()
    assert list((workdir / "tensorboard").glob("events*"))
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == STEPS
    assert len((workdir / "batches.csv").read_text().splitlines()) == STEPS + 1
    assert not (workdir / "profile").exists()
    assert (workdir / "done").read_text() == f"{STEPS}\n"


def test_run_killed_before_the_first_checkpoint_starts_again(whole, tmp_path):
    """Killed later, at random moments: test_train_hosts."""
    config, workdir = whole
    done = train_driver.run(config, tmp_path / "run", "kill", 1)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert complete_steps(tmp_path / "run" / "checkpoints") == []
    train(config, tmp_path / "run")
    assert_same_run(workdir, tmp_path / "run")


def test_sigterm_ends_the_command_after_saving(whole, tmp_path):
    """No checkpoint is due at step 5."""
    config, workdir = whole
    done = train_driver.run(config, tmp_path / "run", "term", 4)
    assert done.returncode == 0, done.stderr
    assert "stopped at step 5; rerun the same command to resume" in done.stderr
    assert done.stderr.splitlines()[-1].partition("to resume: python -m ba_jax.train ")[2]
    assert_stopped_run_resumes(whole, tmp_path / "run")


def test_interrupt_saves_and_the_run_resumes_exactly(whole, tmp_path, at_step):
    config, _ = whole
    handlers = [signal.getsignal(number) for number in Signals.NUMBERS]
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert int(train(config, tmp_path / "run").step) == 5
    assert handlers == [signal.getsignal(number) for number in Signals.NUMBERS]
    assert_stopped_run_resumes(whole, tmp_path / "run")


def assert_stopped_run_resumes(whole, workdir) -> None:
    """A run that was stopped at step 5 resumes exactly."""
    assert not (workdir / "done").exists()
    assert complete_steps(workdir / "checkpoints")[-1] == 5
    assert max(metrics(workdir)) == 5
    train(whole[0], workdir)
    assert_same_run(whole[1], workdir)


def test_full_disk_keeps_complete_checkpoints(whole, tmp_path):
    config, workdir = whole
    done = train_driver.run(config, tmp_path / "run", "full", 4)
    assert done.returncode == 1
    # TensorStore's threads write to stderr at the same time.
    lines = [line for line in done.stderr.splitlines() if "ba_jax.train: " in line]
    assert len(lines) == 1, done.stderr
    steps = complete_steps(tmp_path / "run" / "checkpoints")
    assert f"{tmp_path}/run/checkpoints: checkpoint" in lines[0] and "written" in lines[0]
    assert steps and f"Complete ones: {steps}" in lines[0]
    assert "ba_jax/train.py" not in done.stderr  # no traceback of ours
    train(config, tmp_path / "run")
    assert_same_run(workdir, tmp_path / "run")


def test_finished_run_does_nothing(copied):
    config, workdir = copied
    files = ("metrics.csv", "timings.csv", "batches.csv", "config.json")
    before = {name: (workdir / name).read_bytes() for name in files}
    state = train(config, workdir)
    assert int(state.step) == STEPS
    assert {name: (workdir / name).read_bytes() for name in files} == before
    assert complete_steps(workdir / "checkpoints") == [6, 8]


def test_resume_with_more_steps_and_other_settings(copied):
    """Those of the optimizer may change; those of the data are accepted or refused."""
    config, workdir = copied
    before = (workdir / "metrics.csv").read_text()
    changes = {"train__steps": 9, "optimizer__clip_norm": 0.0, "optimizer__weight_decay": 0.0}
    assert int(train(small_run.changed(config, changes), workdir).step) == 9
    assert (workdir / "metrics.csv").read_text().startswith(before)
    assert max(metrics(workdir)) == 9 and complete_steps(workdir / "checkpoints")[-1] == 9
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 9
    with pytest.raises(ConfigError, match="is at step 9, train.steps = 8: expected at least"):
        train(config, workdir)
    changes |= {"train__steps": 10, "data__mixture__text__weight": 2.0}
    with pytest.raises(ChangedSettingsError, match=r"\n  data.mixture.text.weight: 1.0 -> 2.0\n"):
        train(small_run.changed(config, changes), workdir)
    state = train(small_run.changed(config, changes), workdir, accept_changes=True)
    assert int(state.step) == 10
    history = json.loads((workdir / "config.json").read_text())["history"]
    assert [(record["step"], sorted(record["changes"])) for record in history] == [
        (8, ["optimizer.clip_norm", "optimizer.weight_decay", "train.steps"]),
        (9, ["data.mixture.text.weight", "train.steps"]),
    ]


# --- errors during training ----------------------------------------------------------------------


@pytest.fixture
def not_finite(monkeypatch):
    """The loss of step 5 (number 4) is not a number."""
    loss = TextLMStage.loss

    def broken(self, variables, arrays, totals, key, step):
        value, aux = loss(self, variables, arrays, totals, key, step)
        return value * jnp.where(step == 4, jnp.nan, 1.0), aux

    monkeypatch.setattr(TextLMStage, "loss", broken)


def test_loss_that_is_not_finite_stops_and_names_the_batch(dataset, tmp_path, not_finite):
    config = text_run(dataset, checkpoint__every=3)
    with pytest.raises(TrainError) as error:
        train(config, tmp_path)
    file = tmp_path / "not_finite-step5.json"
    text = str(error.value)
    assert "step 5: grad_norm, grad_norm/llm, loss not finite" in text and str(file) in text
    report = json.loads(file.read_text())
    ids = open_batches(config["data"], config["model"]).ids(4)
    assert report["rows"] == ids and ids[0][0] in text and report["metrics"]["loss"] == "nan"
    # The step that was running is kept; the failed one changed nothing.
    (last,) = complete_steps(tmp_path / "checkpoints")
    assert last == 6 and text.endswith("saved at step 6")
    assert all(np.isfinite(a).all() for a in saved(tmp_path, last).values() if a.dtype.kind == "f")
    assert sorted(metrics(tmp_path)) == [1, 2, 3, 4, 6]
    train(config, tmp_path)
    assert sorted(metrics(tmp_path)) == [1, 2, 3, 4, 6, 7, 8]


def test_loss_spike_stops_and_is_not_saved(dataset, tmp_path, monkeypatch):
    loss = TextLMStage.loss

    def jumping(self, variables, arrays, totals, key, step):
        value, aux = loss(self, variables, arrays, totals, key, step)
        return value * jnp.where(step == 5, 3.0, 1.0), aux

    monkeypatch.setattr(TextLMStage, "loss", jumping)
    changes = {
        "checkpoint__every": 2,
        "train__spike_standard_deviations": 6.0,
        "train__spike_window_steps": 3,
    }
    config = text_run(dataset, **changes)
    with pytest.raises(TrainError) as error:
        train(config, tmp_path)
    file = tmp_path / "spike-step6.json"
    text = str(error.value)
    assert re.search(r"step 6: loss \d+\.\d+ after 3 of mean .* expected at most", text), text
    assert str(file) in text and text.endswith("saved at step 4")
    report = json.loads(file.read_text())
    assert report["rows"] == open_batches(config["data"], config["model"]).ids(5)
    # Step 7 was running; neither step is saved or logged.
    assert complete_steps(tmp_path / "checkpoints") == [4]
    assert not (tmp_path / "done").exists()
    monkeypatch.undo()
    train(config, tmp_path)
    assert sorted(metrics(tmp_path)) == list(range(1, STEPS + 1))


def test_damaged_checkpoint_is_set_aside_and_the_run_resumes_exactly(copied, whole):
    config, workdir = copied
    folder = workdir / "checkpoints" / str(STEPS)
    file = max((folder / "train").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    train(config, workdir)
    assert (workdir / "checkpoints" / f"damaged-{STEPS}").is_dir()
    assert_same_run(whole[1], workdir)


def test_too_large_learning_rate_stops(dataset, tmp_path):
    """Gradients overflow; the saved values are finite."""
    config = text_run(dataset, optimizer__learning_rate=1e30, optimizer__warmup_steps=0)
    with pytest.raises(TrainError, match="not finite, the step changed nothing"):
        train(config, tmp_path)
    (last,) = complete_steps(tmp_path / "checkpoints")
    assert all(np.isfinite(a).all() for a in saved(tmp_path, last).values() if a.dtype.kind == "f")


def test_worker_that_dies(dataset, tmp_path, at_step):
    config = text_run(dataset, train__steps=60, loader__workers=1)

    def kill_workers():
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid, signal.SIGKILL)

    at_step(3, kill_workers)
    with pytest.raises(TrainError, match=r"after step \d+: step \d+: .*; saved at step \d+"):
        train(config, tmp_path)
    (last,) = complete_steps(tmp_path / "checkpoints")
    assert last >= 4 and max(metrics(tmp_path)) == last
    assert multiprocessing.active_children() == []


def build_wrapper(monkeypatch, change):
    build = PackedBatches.build

    def built(self, step, rows=None):
        return change(build(self, step, rows)) if step == 4 else build(self, step, rows)

    monkeypatch.setattr(PackedBatches, "build", built)


def test_damaged_record(dataset, tmp_path, monkeypatch):
    def fail(batch):
        raise RecordError("small-train.array_record-00000-of-00002: record 3: damaged")

    build_wrapper(monkeypatch, fail)
    with pytest.raises(TrainError, match="RecordError: small-train.*record 3: damaged"):
        train(text_run(dataset), tmp_path)
    assert complete_steps(tmp_path / "checkpoints") == [4]
    assert max(metrics(tmp_path)) == 4
    monkeypatch.undo()
    train(text_run(dataset), tmp_path)
    assert sorted(metrics(tmp_path)) == list(range(1, 9))


def test_batch_without_loss_positions(dataset, tmp_path, monkeypatch):
    def silent(batch):
        rows = batch.rows
        none = np.zeros_like(rows.text_target_BL)
        return batch._replace(rows=rows._replace(text_target_BL=none, audio_target_BL=none))

    build_wrapper(monkeypatch, silent)
    with pytest.raises(TrainError, match="no loss positions.*saved at step 4"):
        train(text_run(dataset), tmp_path)
    assert complete_steps(tmp_path / "checkpoints") == [4]


def test_unexpected_error_saves_too(dataset, tmp_path, at_step):
    def fail():
        raise ZeroDivisionError("a mistake")

    at_step(3, fail)
    with pytest.raises(ZeroDivisionError):
        train(text_run(dataset), tmp_path)
    assert complete_steps(tmp_path / "checkpoints") == [3]


# --- errors before training ----------------------------------------------------------------------


def other_sizes(config):
    return small_run.changed(config, {"model__llm__ffn_width": 32})


def test_invalid_config_is_refused_before_training(dataset, whole, tmp_path):
    config, workdir = whole
    fresh = text_run(dataset)
    frozen = {"optimizer__rules": (("llm/lm_head", 1.0), (".*", None))}
    cases = [
        (OptimError, "freeze all 15 parameters", {"optimizer__rules": ((".*", None),)}),
        (OptimError, "no rule covers", {"optimizer__rules": (("llm/lm_head", 1.0),)}),
        (CheckpointError, "misshapen params/llm", {"init__llm": str(workdir)}),
        (CheckpointError, "no such folder", {"init__llm": str(tmp_path / "none")}),
        (ConfigError, "expected one of", {"init__lm": "x"}),
        (ConfigError, "expected one of", {"stage__name": "lmm"}),
        (ConfigError, "unknown keys", {"train__stps": 3}),
        (ConfigError, "expected one of", {"data__kind": "x"}),
        (RecordError, "nowhere", {"data__folder": str(tmp_path / "nowhere")}),
        (ValueError, "expected sizes whose product", {"mesh__replica": 3}),
    ]
    for kind, message, changes in cases:
        wrong = small_run.changed(fresh, changes)
        if "misshapen" in message:
            wrong = other_sizes(wrong)
        with pytest.raises(kind, match=message):
            train(wrong, tmp_path / "run")
        assert complete_steps(tmp_path / "run" / "checkpoints") == []
    assert int(train(small_run.changed(fresh, frozen | {"train__steps": 1}), tmp_path / "ok").step)
    with pytest.raises(ConfigError, match="gs://bucket/run: expected a path"):
        train(fresh, "gs://bucket/run")


def test_rows_that_do_not_divide_into_microbatches(dataset, tmp_path):
    with pytest.raises(TrainError, match="4 rows, train.accumulation_steps = 3.*nothing was saved"):
        train(text_run(dataset, train__accumulation_steps=3), tmp_path)


def test_workdir_of_another_config_is_refused_and_unchanged(copied):
    config, workdir = copied
    before = (workdir / "metrics.csv").read_bytes()
    for changes, message in (
        ({"model__llm__ffn_width": 32}, "misshapen"),
        ({"optimizer__rules": (("llm/embedding", None), (".*", 1.0))}, "not"),
        ({"stage": {"name": "lm"}}, "missing|random|frozen"),
    ):
        other = small_run.changed(config, changes)
        with pytest.raises(ChangedSettingsError, match=next(iter(changes)).replace("__", ".")):
            train(other, workdir)
        with pytest.raises((CheckpointError, StageError), match=message):
            train(other, workdir, accept_changes=True)
    assert (workdir / "metrics.csv").read_bytes() == before
    assert complete_steps(workdir / "checkpoints") == [6, 8]
    assert int(train(config, workdir).step) == STEPS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__stps": 3}, r"config.train: unknown keys \['stps'\]"),
        ({"optimizer__rules": ((".*", None),)}, "nothing to train"),
        ({"init__llm": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_command_prints_errors_in_a_line(dataset, tmp_path, monkeypatch, capfd, changes, message):
    values = types.SimpleNamespace(
        config=ConfigDict(text_run(dataset, **changes)),
        workdir=str(tmp_path / "run"),
        accept_changes=False,
        distributed=False,
    )
    monkeypatch.setattr(train_module, "flags", types.SimpleNamespace(FLAGS=values))
    monkeypatch.setattr(train_module.distributed, "initialize_from_flags", lambda command: None)
    with pytest.raises(SystemExit) as error:
        train_module.main(["train"])
    text = f"{error.value}\n{capfd.readouterr().err}"
    assert re.search(f"^ba_jax.train: .*{message}", text, re.DOTALL | re.MULTILINE)


def test_workdir_that_is_a_file(dataset, tmp_path, monkeypatch):
    (tmp_path / "run").write_text("x")
    with pytest.raises(OSError, match="run"):
        train(text_run(dataset), tmp_path / "run")


# --- on demand -----------------------------------------------------------------------------------


def test_profiler_traces_and_the_best_checkpoint(dataset, tmp_path, at_step):
    """A trace at a step and another on SIGUSR1; the best checkpoint is kept."""
    changes = {
        "train__profile_start_step": 1,
        "train__profile_steps": 1,
        "train__evaluate_every": 2,
    }
    changes |= {
        "checkpoint__every": 2,
        "checkpoint__keep_best": 1,
        "checkpoint__best_metric": "eval/text",
    }

    def ask():
        time.sleep(1.1)  # a trace's folder is named by the second
        os.kill(os.getpid(), signal.SIGUSR1)

    at_step(5, ask)
    train(text_run(dataset, **changes), tmp_path)
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 2 and all(trace.stat().st_size > 1000 for trace in traces)
    evaluated = metrics(tmp_path, "eval/text")
    best = min(evaluated, key=evaluated.get)
    assert complete_steps(tmp_path / "checkpoints") == sorted({best, 8})


def test_later_stage_starts_from_a_run(whole, dataset, tmp_path):
    """It starts from the EMA weights, and frozen parameters stay bit-identical."""
    config, workdir = whole
    changes = {
        "init__llm": str(workdir),
        "optimizer__rules": ((r"llm/(embedding|lm_head)", None), (".*", 1.0)),
    }
    train(text_run(dataset, **changes), tmp_path)
    before, after = saved(workdir, STEPS), saved(tmp_path, STEPS)
    same = {
        name: before[name].tobytes() == after[name].tobytes()
        for name in after
        if name.startswith("weights/params/")
    }
    assert {name for name, equal in same.items() if equal} == {
        "weights/params/llm/embedding",
        "weights/params/llm/lm_head",
    }
    assert not any("embedding" in name or "lm_head" in name for name in after if "train/" in name)
