"""Frozen parameters in bfloat16: half the size in checkpoints, and exact resume."""

from __future__ import annotations

import numpy as np
import pytest

from ba_jax.run import BatchHashes
from ba_jax.train import train
from tests.unit.data import small_corpus
from tests.unit.stages import small_run

STEPS = 3


def test_run_with_frozen_parameters_in_bfloat16_resumes_exactly(tmp_path, monkeypatch):
    dataset = small_corpus.write_dataset(tmp_path / "small", small_run.records())
    config = small_run.text_run(
        dataset,
        eval_data={},
        train__steps=STEPS,
        train__frozen_param_dtype="bfloat16",
        init__llm="random",
        optimizer__rules=((r"llm/(embedding|lm_head)", None), (".*", 1.0)),
    )
    train(config, tmp_path / "whole")
    add = BatchHashes.add

    def fail(self, step, batch):
        add(self, step, batch)
        if step == 1:
            raise ZeroDivisionError("a mistake")

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(BatchHashes, "add", fail)
        train(config, tmp_path / "again")
    train(config, tmp_path / "again")
    checkpoints = [small_run.saved(tmp_path / name, STEPS) for name in ("whole", "again")]
    small_run.assert_equal(*checkpoints)
    dtypes = {name: array.dtype.name for name, array in checkpoints[0].items()}
    kept = {name for name, dtype in dtypes.items() if dtype == "bfloat16"}
    assert kept == {"weights/params/llm/embedding", "weights/params/llm/lm_head"}
    assert np.abs(checkpoints[0]["weights/params/llm/embedding"].astype(np.float32)).max() > 0
