"""Folders of checkpoints: paths that stand for weights, configs of runs."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from ba_jax.checkpoints import layout
from ba_jax.checkpoints.layout import CheckpointError, weights_folder
from ba_jax.config import ConfigError


def make_weights(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir(parents=True)
    (folder / layout.METADATA_FILE).write_text("{}")
    return folder


def test_weights_folder_of_every_kind_of_path(tmp_path):
    run = tmp_path / "run"
    first, second = (make_weights(run / "checkpoints" / str(n) / "weights") for n in (9, 10))
    (run / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()
    assert layout.complete_steps(run / "checkpoints") == [9, 10]
    for path in (run, second.parent, second):
        assert weights_folder(path) == second
    assert weights_folder(first.parent) == first
    assert weights_folder(os.path.relpath(run)).resolve() == second.resolve()
    converted = make_weights(tmp_path / "converted" / "weights")
    assert weights_folder(tmp_path / "converted") == converted
    assert layout.workdir_of(first) == run and layout.workdir_of(converted) is None
    assert layout.has_step(run, 9) and not layout.has_step(run, 11)
    assert layout.stamp(first) == (first / layout.METADATA_FILE).stat().st_mtime_ns


def test_paths_without_weights_are_refused(tmp_path):
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    file = tmp_path / "file"
    file.write_text("x")
    make_weights(tmp_path / "cut" / "checkpoints" / "1" / "weights")
    (tmp_path / "cut" / "checkpoints" / "2").mkdir()
    for path, message in {
        tmp_path / "none": "no such folder",
        file: "no such folder",
        tmp_path / "begun": "a run without a complete checkpoint",
        tmp_path / "cut": r"/checkpoints/2: damaged, .* another of its checkpoints, \[1\]",
        tmp_path: "neither a checkpoint nor a run's workdir",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(str(path)) + ".*" + message):
            weights_folder(path)


def test_configs_of_runs_and_of_converted_checkpoints_are_distinguished(tmp_path):
    assert layout.read_run_config(tmp_path) is None
    path = tmp_path / layout.CONFIG_FILE
    for values, is_run in (({"model": {}, "train": {}}, True), ({"model_type": "qwen2"}, False)):
        path.write_text(json.dumps(values))
        assert layout.read_run_config(tmp_path) == (values if is_run else None)
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="config.json: damaged"):
            layout.read_run_config(tmp_path)


def test_importing_the_layout_loads_no_jax():
    code = "import sys, ba_jax.checkpoints.layout\nprint('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
