"""Kinds of positions in the rows of a mixture."""

from __future__ import annotations

import pytest

from ba_jax.data.batches import batch_settings
from ba_jax.data.features import ModelFormat
from ba_jax.plan.row_shares import measure_shares
from configs import lm_stage2, models

MODEL = ModelFormat.of(models.get_config("nano"))


def mixture(unit: str = "tokens", **weights: float):
    """Settings of the nano mixture's tasks with other weights."""
    data = lm_stage2.get_config("nano").data
    data.mixture = {
        task: data.mixture[task].to_dict() | {"weight": weights[task]} for task in weights
    }
    data.unit = unit
    return batch_settings(data.to_dict())


def test_each_task_has_its_kinds():
    asr, tts, text = (measure_shares(mixture(**{t: 1.0}), MODEL) for t in ("asr", "tts", "text"))
    assert asr.spoken == tts.heard == text.heard == text.spoken == 0
    assert asr.heard > asr.written > 0 and tts.spoken > 0.5 and text.written > 0.9
    assert asr.source == "of the mixture"


def test_weights_are_shares_of_positions_or_of_hours():
    asr, tts = (measure_shares(mixture(**{task: 1.0}), MODEL) for task in ("asr", "tts"))
    both = measure_shares(mixture(asr=1.0, tts=3.0), MODEL)
    assert both.heard == pytest.approx(asr.heard / 4)
    assert both.spoken == pytest.approx(3 * tts.spoken / 4)
    hours = measure_shares(mixture("hours", asr=1.0, tts=3.0), MODEL)
    assert hours.spoken / hours.heard == pytest.approx(3)


def test_absent_datasets_are_replaced_by_the_embedded_corpus():
    data = lm_stage2.get_config("7b").data.to_dict()
    shares = measure_shares(batch_settings(data), ModelFormat.of(models.get_config("7b")))
    assert shares.source == "of the mixture's tasks on the embedded corpus"
    # 28 % of the positions are of tasks that speak, and some of theirs are text.
    assert 0.15 < shares.spoken < 0.25 and 0.3 < shares.heard < 0.4 < 2 * shares.written
