"""Full batches without data, as the stages expect them."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from ba_jax.data.batches import batch_settings
from ba_jax.data.features import ModelFormat
from ba_jax.metrics import flops
from ba_jax.plan import batch
from ba_jax.plan.row_shares import measure_shares
from ba_jax.plan.topology import PlanError
from ba_jax.run_config import make_stage, parse_config
from ba_jax.sharding import AXES, ShardingError
from configs import flow_matching, lm_stage1, lm_stage2, sft, tokenizer, vocoder


def full(config, **options):
    run = parse_config(config)
    stage = make_stage(run)
    return stage, batch.make_full_batch(stage, run, stage.components, **options)


def abstract(replica: int, fsdp: int, tensor: int, sequence: int) -> AbstractMesh:
    return AbstractMesh((replica, fsdp, tensor, sequence), AXES)


def test_a_row_of_the_language_model_by_hand():
    stage, result = full(lm_stage2.get_config("7b"), rows=3, audio_share=0.5)
    length, frames = 4096, 2048
    assert result.text == (
        "3 rows of 4096 positions, 2048 of them frames of audio; 2048 targets of audio, 2047 of "
        "text (shares as asked for)"
    )
    assert result.amounts["tokens"] == 3 * length
    assert result.amounts["audio_seconds"] == pytest.approx(3 * frames * 0.08)
    pairs = length * (length + 1) // 2
    forward = flops.llm(stage.config.llm, length, pairs, length - frames - 1)
    forward += flops.audio_head(stage.config.audio_head, frames)
    assert result.flops == 3 * 3 * forward


def test_a_row_has_the_kinds_of_positions_of_its_mixture():
    config = lm_stage2.get_config("7b")
    stage, result = full(config, rows=2)
    run = parse_config(config)
    shares = measure_shares(batch_settings(run.data), ModelFormat.of(run.model))
    spoken, written = (result.row[f"{kind}_target_BL"].sum() for kind in ("audio", "text"))
    assert spoken == int(4096 * shares.spoken)
    assert written == math.ceil(4096 * shares.written)
    frames = (result.row["ids_BL"] == stage.config.tokens.audio_pad).sum()
    assert frames == spoken + int(4096 * shares.heard)
    assert "tasks on the embedded corpus" in result.text  # the large datasets are absent


def test_share_of_audio():
    _, none = full(lm_stage2.get_config("nano_codes"), audio_share=0.0)
    assert none.amounts["audio_seconds"] == 0
    _, most = full(lm_stage2.get_config("nano_codes"), audio_share=0.75)
    assert most.row["audio_target_BL"].sum() == 192
    with pytest.raises(PlanError, match=r"audio share 1\.0"):
        full(lm_stage2.get_config("nano_codes"), audio_share=1.0)


@pytest.mark.parametrize(
    "config",
    [
        lm_stage1.get_config("nano"),  # mels: the tokenizer in the step
        sft.get_config("nano_lora"),
        tokenizer.get_config("nano"),
        tokenizer.get_config("1b5"),
        flow_matching.get_config("nano"),
        flow_matching.get_config("7b"),
        vocoder.get_config("nano"),
    ],
    ids=["lm-mels", "lora", "tokenizer", "tokenizer-1b5", "flow", "flow-7b", "vocoder"],
)
def test_every_stage_takes_its_batch(config):
    """The stages check their batches: chunks fill the audio positions, frames are there."""
    stage, result = full(config)
    assert result.flops > 0 and result.amounts["audio_seconds"] > 0
    mesh = abstract(1, result.rows, 1, 1)
    placed = batch.place_batch(result, mesh)
    for leaf, row in zip(jax.tree.leaves(placed), jax.tree.leaves(result.row), strict=True):
        assert leaf.shape == (result.rows, *np.shape(row)[1:])
        assert leaf.sharding.shard_shape(leaf.shape) == np.shape(row)
    assert batch.device_bytes(placed) == sum(
        np.asarray(leaf).nbytes for leaf in jax.tree.leaves(result.row)
    )


def test_clips_come_from_the_bucket_with_most_seconds():
    _, result = full(flow_matching.get_config("7b"))
    assert result.text == "64 clips of 30 s" and result.row["whisper_mel_BTM"].shape[1] == 3000


def test_rows_and_positions_must_divide():
    _, result = full(lm_stage2.get_config("nano_codes"), rows=6)
    with pytest.raises(ShardingError, match="a batch of 6 rows on 4 devices: expected a multiple"):
        batch.place_batch(result, abstract(1, 4, 1, 1))
    with pytest.raises(ShardingError, match="256 positions on mesh.sequence = 3"):
        batch.place_batch(result, abstract(1, 2, 1, 3))
    with pytest.raises(PlanError, match="0 rows: expected at least 1"):
        full(lm_stage2.get_config("nano_codes"), rows=0)


def test_positions_are_divided_over_sequence():
    _, result = full(lm_stage2.get_config("nano_codes"), rows=4)
    placed = batch.place_batch(result, abstract(1, 2, 1, 2))
    ids, codes = placed["ids_BL"], placed["codes_BLQ"]
    assert ids.sharding.shard_shape(ids.shape) == (2, 128)
    assert codes.sharding.shard_shape(codes.shape) == (2, 128, 8)
