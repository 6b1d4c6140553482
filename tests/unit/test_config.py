"""Strict model configs, and the sizes in configs/models.py."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import ml_collections
import pytest

from ba_jax.config import (
    RENAMED,
    ConfigError,
    LocalPath,
    from_mapping,
    local_path,
    nearest,
    nearest_key,
    to_mapping,
)
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.vocab import COMPONENTS
from configs.models import SIZES, get_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_builds_and_round_trips_through_json(size):
    values = get_config(size)
    assert isinstance(values, ml_collections.ConfigDict)
    config = from_mapping(BaichuanAudioConfig, values)
    assert config.components == COMPONENTS
    assert from_mapping(BaichuanAudioConfig, json.loads(json.dumps(to_mapping(config)))) == config


def test_unknown_size_is_an_error():
    with pytest.raises(ValueError, match="model size '8b', expected one of"):
        get_config("8b")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["llm"].update(widht=3), r"model.llm: unknown keys \['widht'\]"),
        (lambda c: c["llm"].pop("width"), r"model.llm: missing keys \['width'\]"),
        (lambda c: c["llm"].update(width="3"), "model.llm.width = '3': expected int"),
        (lambda c: c["llm"].update(width=True), "model.llm.width = True: expected int"),
        (lambda c: c["llm"].update(qkv_bias=1), "model.llm.qkv_bias = 1: expected bool"),
        (lambda c: c.update(llm=4), "model.llm: expected a mapping, got 4"),
        (
            lambda c: c["vq_bridge"].update(codebook_sizes=[3, 4.5]),
            r"model.vq_bridge.codebook_sizes\[1\] = 4.5: expected int",
        ),
        (
            lambda c: c["audio_decoder"].update(upsample_rates=[4]),
            r"upsample_rates = \[4\]: expected 2 values",
        ),
        (
            lambda c: c["vq_bridge"].update(codebook_sizes=8),
            "codebook_sizes = 8: expected a sequence",
        ),
    ],
)
def test_errors_name_the_key(change, message):
    values = to_mapping(from_mapping(BaichuanAudioConfig, get_config("tiny")))
    change(values)
    with pytest.raises(ConfigError, match=message):
        from_mapping(BaichuanAudioConfig, values)


def test_only_leaves_out_components():
    config = from_mapping(BaichuanAudioConfig, get_config("tiny")).only("llm", "audio_embed")
    assert config.components == ("llm", "audio_embed")
    assert dataclasses.asdict(config)["vocoder"] is None


# --- paths and words as people write them --------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/ann"),
        ("~/x", "/home/ann/x"),
        ("~root/x", "/root/x"),
        ("$RUNS/x", "/data/runs/x"),
        ("${RUNS}_2/$EMPTY/x", "/data/runs_2//x"),
        ("$TILDE/x", "/home/ann/x"),
        ("$LOOP", "$LOOP"),
        ("", ""),
        ("embedded", "embedded"),
        ("a~/$/b$", "a~/$/b$"),
        ("$5/x", "$5/x"),
        ("./gs:/x", "./gs:/x"),
        ("C:x", "C:x"),
    ],
)
def test_paths_are_expanded_as_a_shell_does(text, path, monkeypatch):
    values = {"HOME": "/home/ann", "RUNS": "/data/runs", "EMPTY": "", "TILDE": "~", "LOOP": "$LOOP"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert local_path(text) == path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$NOT_SET/x", r"\$NOT_SET/x: the variable \$NOT_SET is not set"),
        ("a/${NOT_SET}", r"the variable \$\{NOT_SET\} is not set"),
        ("${RUNS:-x}", r"the variable \$\{RUNS:-x\} is not set"),
        ("~nobody_here/x", "no home folder of ~nobody_here; write ./~nobody_here"),
        ("$TILDE_NAME/x", "no home folder of ~nobody_here"),
        *[
            (address, "expected a path; mount the bucket")
            for address in ("gs://b/x", "S3://b", "file:///x", "file:/x", "http://h", "$BUCKET/x")
        ],
    ],
)
def test_paths_that_would_make_folders_of_odd_names(text, problem, monkeypatch):
    monkeypatch.setenv("TILDE_NAME", "~nobody_here")
    monkeypatch.setenv("BUCKET", "gs://b")
    with pytest.raises(ConfigError, match=problem):
        local_path(text)


@dataclasses.dataclass(frozen=True)
class Places:
    folder: LocalPath
    cache: LocalPath | None = None
    others: tuple[LocalPath, ...] = ()
    rate: float = 0.0


def test_settings_that_are_paths_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    values = {"folder": "~/x", "cache": "~/y", "others": ["~", "z"]}
    places = from_mapping(Places, values)
    assert places == Places("/home/ann/x", "/home/ann/y", ("/home/ann", "z"))
    for wrong, problem in {
        "gs://b": "p.folder = gs://b: expected a path",
        "$NOT_SET": r"p.folder = \$NOT_SET: the variable",
        3: "p.folder = 3: expected str",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            from_mapping(Places, {"folder": wrong}, "p")
    with pytest.raises(ConfigError, match="rate = nan: expected a number"):
        from_mapping(Places, {"folder": "", "rate": float("nan")})


@pytest.mark.parametrize(
    ("word", "hint"),
    [("nnao", "nano"), ("NANO", "nano"), ("stpes", "steps"), ("zzz", ""), ("", ""), (None, "")],
)
def test_the_nearest_word(word, hint):
    assert nearest(word, ["nano", "steps", "7b"]) == (f"; did you mean {hint}?" if hint else "")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.stps", "train.steps"),
        ("steps", "train.steps"),
        ("data.seed", "seed"),
        ("train.frozen_dtype", "train.frozen_param_dtype"),
        ("average", "optimizer.ema_decay"),
        ("generate.rows", "generate.generation.rows"),
    ],
)
def test_the_nearest_key(key, hint):
    keys = ["seed", "train", "train.steps", "train.frozen_param_dtype", "optimizer.ema_decay"]
    keys += ["generate.generation.rows", "generate.synthesis.rows"]
    assert nearest_key(key, keys) == f"; did you mean {hint}?"


def test_renamed_keys_are_those_of_the_documentation():
    table = (ROOT / "docs" / "training.md").read_text().split("## Names that changed")[1]
    for old, new in RENAMED.items():
        assert f"`{old}`" in table or f".{old}`" in table
        assert new.startswith("generation.") or f"`{new}`" in table or f".{new}`" in table
