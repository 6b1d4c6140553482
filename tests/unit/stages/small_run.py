"""Configs of runs of a few steps on a tiny model, and readers of their results."""

from __future__ import annotations

import copy
import csv
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ba_jax.checkpoints import layout
from ba_jax.checkpoints.arrays import Reader
from ba_jax.data.record import Record
from configs import common, mixtures, models
from tests.unit.data import small_corpus

ROOT = pathlib.Path(__file__).resolve().parents[3]
LLM = {
    "vocab_size": 2048,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 8,
    "ffn_width": 24,
}
CODEBOOKS = (512, 256)
WRITTEN = {"questions": "written", "answers": "written"}
SPOKEN = {"questions": "spoken", "answers": "spoken"}


def records() -> tuple[Record, ...]:
    """`small_corpus.records()` with the first codebooks alone."""
    return tuple(
        dataclasses.replace(
            record,
            parts=tuple(
                part
                if part.codes_NQ is None
                else dataclasses.replace(part, codes_NQ=part.codes_NQ[:, : len(CODEBOOKS)])
                for part in record.parts
            ),
        )
        for record in small_corpus.records()
    )


def model() -> dict[str, Any]:
    """The nano model's formats around a language model of one layer of width 16."""
    config = models.get_config("nano").to_dict()
    config["llm"] = dict(LLM)
    config["audio_embed"] = {"width": 16, "codebook_sizes": CODEBOOKS}
    config["audio_head"] = {
        "width": 16,
        "layers": 1,
        "codebook_sizes": CODEBOOKS,
        "head_dim": 8,
    }
    config["audio_encoder"] = {
        "mel_bins": 128,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "ffn_width": 24,
    }
    config["vq_bridge"] = {"width": 16, "pooling": 4, "codebook_sizes": CODEBOOKS}
    config["audio_decoder"] = {
        "width": 16,
        "layers": 1,
        "heads": 2,
        "ffn_width": 24,
        "mel_bins": 80,
        "refine_channels": (8,),
    }
    return config


def _mixture(dataset: pathlib.Path, **members: Mapping[str, Any]) -> dict[str, Any]:
    """Members of equal weight; a name that is no task's has the task "sft"."""
    common = {"dataset": dataset.name, "weight": 1.0, "split": "train"}
    return {
        name: common | {"task": "sft" if options.get("answers") else name} | options
        for name, options in members.items()
    }


def text_run(dataset: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """A text_lm run on a dataset of `records`: 8 steps of 4 rows of 32."""
    config = common.base("nano", "text_lm")
    config.model = model()
    config.data = mixtures.get_config("text_nano")
    config.data.folder = str(dataset.parent)
    config.data.mixture = _mixture(dataset, text={}, written=WRITTEN)
    config.data.update({"row_length": 32, "rows": 4})
    config.eval_data = config.data.copy_and_resolve_references()
    config.stage.update({"chunk": 0})
    config.optimizer.update(
        {"rules": ((".*", 1.0),), "learning_rate": 1e-2, "warmup_steps": 2, "weight_decay": 0.05}
    )
    config.train.update({"steps": 8, "log_every": 1, "evaluate_batches": 1})
    config.train.update({"record_batch_hashes": True, "compilation_cache": ""})
    return changed(config.to_dict(), changes)


def codes_run(dataset: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """An lm run on stored codes."""
    config = text_run(dataset)
    data = mixtures.get_config("lm_codes_nano").to_dict()
    data["mixture"] = _mixture(
        dataset, asr={"turn": "any"}, tts={"turn": "any"}, text={}, spoken=SPOKEN
    )
    data |= {"folder": str(dataset.parent), "row_length": 96, "rows": 4}
    config["data"], config["eval_data"] = data, copy.deepcopy(data)
    config["stage"] = {"name": "lm", "audio": "codes", "chunk": 0}
    return changed(config, changes)


def tokenizer_run(dataset: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """A tokenizer run: 4 rows of 64 positions, a language model at random."""
    config = text_run(dataset)
    data = mixtures.get_config("tokenizer_nano").to_dict()
    data["mixture"] = _mixture(dataset, asr={"turn": "any"})
    data |= {"folder": str(dataset.parent), "row_length": 64, "rows": 4}
    data["buckets"] = [{"seconds": 1.6, "count": 3}]
    config["data"], config["eval_data"] = data, copy.deepcopy(data)
    config["stage"] = {
        "name": "tokenizer",
        "replace_steps": 4,
        "restart_after": 2,
        "restart_candidates": 8,
    }
    config["optimizer"]["rules"] = (("llm/.*", None), (".*", 1.0))
    config["init"]["llm"] = "random"
    return changed(config, changes)


def changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the config and set `a__b=c` like `--config.a.b=c`."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, name = path.split("__")
        node = config
        for key in parents:
            node = node[key]
        node[name] = value
    return config


def metrics(workdir: pathlib.Path, name: str = "loss") -> dict[int, float]:
    """Read {step: value} from metrics.csv."""
    with (workdir / "metrics.csv").open() as stream:
        rows = csv.DictReader(stream)
        return {int(r["step"]): float(r["value"]) for r in rows if r["name"] == name}


def saved(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Read every array of a checkpoint."""
    arrays = {}
    for item in ("weights", "train"):
        reader = Reader(workdir / layout.CHECKPOINTS_FOLDER / str(step) / item)
        arrays |= {f"{item}/{name}": reader.read(name) for name in reader.arrays}
    return arrays


def assert_equal(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    """Assert that the arrays are bit-identical."""
    assert sorted(first) == sorted(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype and array.tobytes() == second[name].tobytes(), name


def assert_near(first: pathlib.Path, second: pathlib.Path, steps: int) -> None:
    """Assert that two runs have nearly the same metrics at every step and the same last arrays."""
    for name in ("loss", "grad_norm", "text_accuracy"):
        expected, actual = metrics(first, name), metrics(second, name)
        assert sorted(expected) == sorted(actual) == list(range(1, steps + 1)), name
        values = np.array([list(expected.values()), list(actual.values())])
        np.testing.assert_allclose(values[1], values[0], rtol=1e-5, err_msg=name)
    expected, actual = saved(first, steps), saved(second, steps)
    assert expected.keys() == actual.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-3, atol=1e-3, err_msg=name)
