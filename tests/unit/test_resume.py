"""Settings of a resumed run against those in config.json. Whole runs: integration/test_train.py."""

from __future__ import annotations

import json
import logging
import pathlib
import re

import pytest

from ba_jax import resume
from ba_jax.checkpoints.layout import CheckpointError
from ba_jax.config import defaults, to_mapping
from ba_jax.resume import ChangedSettingsError
from ba_jax.run_config import parse_config
from ba_jax.stages.lm import LMSettings
from tests.unit.stages.small_run import changed, codes_run

CONFIG = codes_run(pathlib.Path("/data/small"))


@pytest.fixture
def workdir(tmp_path):
    """A run of CONFIG with something at step 4."""
    resume.write(tmp_path, parse_config(CONFIG), 0)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.WARNING, "absl")  # other tests set it
    return caplog


def config_of(**changes):
    return parse_config(changed(CONFIG, changes))


def recorded(workdir) -> dict:
    return json.loads((workdir / "config.json").read_text())


REFUSED = {
    "seed": (0, 1),
    "model__llm__rope_theta": (1e6, 1e4),
    "model__llm__width": (16, 32),
    "model__llm__layers": (1, 2),
    "model__llm__vocab_size": (2048, 4096),
    "model__audio_head": (dict, None),
    "model__flow_matching__sigma_min": (1e-6, 1e-4),
    "stage__audio": ("codes", "features"),
    "stage__text_weight": (1.0, 2.0),
    "stage__word_dropout": (0.0, 0.5),
    "data__rows": (4, 8),
    "data__row_length": (96, 192),
    "data__seed": (0, 1),
    "data__folder": ("/data", "/other"),
    "data__tokenizer": ("embedded", "/data/tokenizer"),
    "data__unit": ("tokens", "hours"),
    "data__mixture__asr__weight": (1.0, 2.0),
    "data__mixture__asr__split": ("train", "test"),
    "data__mixture__asr__languages": ([], ["en"]),
    "data__mixture__asr": (dict, "(absent)"),
    "data__mixture__more": ("(absent)", {"dataset": "small", "task": "asr"}),
    "data__augmentation__speeds": ([1.0], [0.9, 1.0]),
    "optimizer__rules": ([[".*", 1.0]], [["llm/.*", 1.0], [".*", None]]),
}
NAMED = {
    "model__flow_matching__steps": (10, 4),
    "stage__chunk": (0, 128),
    "data__on_error": ("fail", "skip"),
    "data__index_cache": ("", "/cache"),
    "eval_data__rows": (4, 2),
    "loader__workers": (0, 2),
    "init__llm": ("", "random"),
    "optimizer__learning_rate": (1e-2, 1e-3),
    "mesh__fsdp": (1, 2),
    "train__steps": (8, 16),
    "train__log_every": (1, 5),
    "train__remat": ("none", "full"),
    "train__quantization": ("none", "int8"),
    "train__frozen_param_dtype": ("float32", "bfloat16"),
    "checkpoint__every": (0, 2),
}


def change_of(key: str, old, new):
    """(config with the change, its line)."""
    if new == "(absent)":
        config = changed(CONFIG, {})
        del config["data"]["mixture"][key.rpartition("__")[2]]
        return parse_config(config), key.replace("__", ".") + ": {"
    place = key.replace("__", ".")
    if old is dict:
        return config_of(**{key: new}), f"{place}: {{"
    if isinstance(new, dict):
        return config_of(**{key: new}), f"{place}: {old} -> {{"
    return config_of(**{key: new}), f"{place}: {old!r} -> {new!r}"


@pytest.mark.parametrize("key", REFUSED)
def test_a_change_of_the_model_or_the_data_has_to_be_accepted(workdir, log, key):
    config, line = change_of(key, *REFUSED[key])
    with pytest.raises(ChangedSettingsError) as error:
        resume.check(workdir, config)
    _, message, advice = str(error.value).split("\n")
    assert message.startswith(f"  {line}") and "--accept_changes" in advice
    assert not log.text
    resume.check(workdir, config, accept_changes=True)
    assert line in log.text
    resume.write(workdir, config, 4)
    resume.check(workdir, config)  # accepted once


@pytest.mark.parametrize("key", NAMED)
def test_another_change_is_named(workdir, log, key):
    config, line = change_of(key, *NAMED[key])
    resume.check(workdir, config)
    (record,) = log.records
    assert record.getMessage() == f"{workdir / 'config.json'}: {line}"


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        ("gone/codes", "there/codes", False),
        ("gone/codes", "there/other", True),
        ("gone/codes", "gone_too/codes", True),
        ("there/codes", "more/codes", True),
    ],
)
def test_data_that_were_moved_are_the_same(tmp_path, log, old, new, refused):
    for name in ("there/codes", "there/other", "more/codes"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    resume.write(tmp_path, config_of(data__folder=str(tmp_path / old)), 0)
    moved = config_of(data__folder=str(tmp_path / new))
    if refused:
        with pytest.raises(ChangedSettingsError, match=new):
            resume.check(tmp_path, moved)
        return
    resume.check(tmp_path, moved)
    assert "data.folder: " in log.text


def test_equal_settings_say_nothing(workdir, log):
    for changes in (
        {},
        {"data__folder": "/data/x/../"},
        {"data__mixture__idle": {"dataset": "small", "task": "asr", "weight": 0}},
        {"mesh": {}, "loader": {}},  # the defaults
    ):
        resume.check(workdir, config_of(**changes))
    assert not log.text


def test_every_section_has_a_rule():
    sections = to_mapping(parse_config(CONFIG))
    refused = {name for name in sections if resume.Change(f"{name}.x", 0, 1).is_refused}
    assert refused == {"seed", "model", "stage", "data"}


def test_another_stage_is_one_change(workdir):
    config = config_of(stage={"name": "text_lm"})
    with pytest.raises(ChangedSettingsError, match=r"data:\n  stage.name: 'lm' -> 'text_lm'\nSet"):
        resume.check(workdir, config)


def test_settings_of_another_version_are_named(workdir, log):
    """Keys that only one side has; elsewhere an absent key has its default (here rope_theta)."""
    values = recorded(workdir)
    values["optimizer"]["warmup"] = values["optimizer"].pop("warmup_steps")
    values["stage"] = defaults(LMSettings) | values["stage"] | {"head_stride": 4}
    del values["stage"]["full_head_every"]
    values["extra"] = {"a": 1}
    (workdir / "config.json").write_text(json.dumps(values))
    config = config_of(stage__full_head_every=4)
    resume.check(workdir, config)
    lines = {line.split("config.json: ")[1] for line in log.text.splitlines()}
    assert lines == {
        "optimizer.warmup_steps: (absent) -> 2",
        "optimizer.warmup: 2 -> (absent)",
        "stage.full_head_every: (absent) -> 4",
        "stage.head_stride: 4 -> (absent)",
        "extra: {'a': 1} -> (absent)",
    }
    with pytest.raises(ChangedSettingsError, match="rope_theta: 1000000.0 -> 10000.0"):
        resume.check(workdir, config_of(model__llm__rope_theta=1e4))


UNREADABLE = {
    "cut": lambda path: path.write_text(path.read_text()[:99]),
    "empty": lambda path: path.write_text(""),
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe\0"),
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 10_000),
    "of a model": lambda path: path.write_text('{"model_type": "qwen2"}'),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dead link": lambda path: (path.unlink(), path.symlink_to("gone")),
}


@pytest.mark.parametrize("name", [*UNREADABLE, "missing"])
def test_an_unreadable_config_is_named_and_moved(workdir, log, name):
    path = workdir / "config.json"
    UNREADABLE.get(name, pathlib.Path.unlink)(path)
    resume.check(workdir, config_of(seed=1))
    (line,) = [record.getMessage() for record in log.records]
    assert re.fullmatch(f"{path}: [^/]*: settings before this start are not known", line)
    resume.write(workdir, config_of(seed=1), 4)
    assert recorded(workdir)["seed"] == 1 and "history" not in recorded(workdir)
    moved = [path.name for path in workdir.glob("damaged*")]
    assert moved == ([] if name == "missing" else ["damaged-config.json"])


def test_the_history_tells_the_settings_in_force(workdir):
    first = {"optimizer.learning_rate": {"old": 0.01, "new": 0.001}, "seed": {"old": 0, "new": 1}}
    config = config_of(optimizer__learning_rate=1e-3, seed=1)
    for step, changes, history in (
        (4, {}, None),
        (6, {"optimizer__learning_rate": 1e-3, "seed": 1}, [{"step": 6, "changes": first}]),
        (8, {"optimizer__learning_rate": 1e-3, "seed": 1}, [{"step": 6, "changes": first}]),
    ):
        resume.write(workdir, config_of(**changes), step)
        assert recorded(workdir).get("history") == history
    resume.write(workdir, config, 2)  # the checkpoints after step 2 were damaged
    went_back = [{"step": 6, "changes": first}, {"step": 2, "changes": {}}]
    assert recorded(workdir)["history"] == went_back
    values = recorded(workdir) | {"history": "x"}
    (workdir / "config.json").write_text(json.dumps(values))
    resume.write(workdir, config, 2)
    assert "history" not in recorded(workdir)


def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(workdir, log):
    config, folder = parse_config(CONFIG), workdir / "checkpoints"
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp")
    resume.check(workdir, config_of(seed=1))  # killed before its first checkpoint
    assert "the run has no checkpoint yet and starts anew" in log.text
    (workdir / "done").write_text("4\n")
    with pytest.raises(
        CheckpointError, match=f"{workdir}: done says .* no checkpoint.*new workdir"
    ):
        resume.check(workdir, config)
    (workdir / "done").unlink()
    folder.rename(workdir / "moved")
    with pytest.raises(CheckpointError, match=f"{workdir}: holds .*, but no checkpoints/"):
        resume.check(workdir, config)
    (workdir / "config.json").unlink()
    resume.check(workdir, config)  # nothing of a run


def test_all_processes_follow_the_first(workdir, monkeypatch, log):
    answer = json.dumps([["train.steps: 1 -> 2"], ["seed: 0 -> 1"], ""])
    monkeypatch.setattr(resume.sharding, "text_from_first", lambda text: answer)
    with pytest.raises(ChangedSettingsError, match="seed: 0 -> 1"):
        resume.check(workdir, parse_config(CONFIG))
    assert "train.steps: 1 -> 2" in log.text
