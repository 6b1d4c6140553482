"""Strict model configs, and the sizes in configs/models.py."""

from __future__ import annotations

import dataclasses
import json

import ml_collections
import pytest

from ba_jax.config import ConfigError, from_mapping, to_mapping
from ba_jax.models.baichuan_audio import BaichuanAudioConfig
from ba_jax.vocab import COMPONENTS
from configs.models import SIZES, get_config


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
