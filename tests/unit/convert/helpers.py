"""Helpers of the converter's tests: the command, and refusals of bad input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ba_jax.convert import engine, hf_config, sources
from ba_jax.convert.__main__ import main
from ba_jax.convert.engine import ConversionError, TensorInfo
from ba_jax.convert.safetensors_io import SINGLE_FILE, make_header, write_file
from ba_jax.models.baichuan_audio import variable_shapes

TINY = Path(__file__).parents[2] / "data" / "tiny"
QWEN2 = {  # config.json of a small Qwen2.5
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
}


def qwen2_arrays(**changes: Any) -> dict[str, np.ndarray]:
    """Random weights of `QWEN2`, with `changes` to its config.json, under the release's names."""
    config = hf_config.parse_qwen2_config({**QWEN2, **changes})
    placed = engine.expand(sources.model_rows("qwen2", config), variable_shapes(config))
    rng = np.random.default_rng(0)
    shapes = {name: parts[0].source_shape for name, parts in placed.items()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write_folder(folder: Path, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """Write a folder of config.json and one file of weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    infos = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
    write_file(folder / SINGLE_FILE, make_header(infos), infos, lambda name: [arrays[name]])
    return folder


def run(*arguments: object) -> int:
    """Run `python -m ba_jax.convert`; return its exit code."""
    return main([str(a) for a in arguments] + ["--quiet"])


def user_error(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Run a command that must fail; return its message."""
    capsys.readouterr()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("ba_jax.convert: ") and "Traceback" not in captured.err
    return captured.err


def assert_refused(call: Callable[[], object], *words: object, seconds: float = 1.0) -> str:
    """Check that `call` raises `ConversionError` with all `words` within CPU `seconds`."""
    started = time.process_time()
    with pytest.raises(ConversionError) as caught:
        call()
    assert time.process_time() - started < seconds
    for word in words:
        assert str(word) in str(caught.value)
    return str(caught.value)
