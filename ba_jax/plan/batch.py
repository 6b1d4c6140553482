"""A stage's batch without data: a full row, repeated.

The row has the data pipeline's layout and goes through the stage's own `arrays`, `amounts` and
`flops`, so that a plan describes the batch that trains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from ba_jax import sharding
from ba_jax.audio.lengths import code_length
from ba_jax.data import features
from ba_jax.data.audio_batches import AudioBatch, AudioSettings, empty_batch
from ba_jax.data.batches import batch_settings
from ba_jax.data.features import Bucket, ModelFormat
from ba_jax.data.packed import (
    AudioChunks,
    PackedBatch,
    PackedSettings,
    empty_targets,
    lengths_name,
)
from ba_jax.data.packing import PackedRows
from ba_jax.plan.row_shares import RowShares, measure_shares
from ba_jax.plan.topology import PlanError
from ba_jax.run_config import RunConfig
from ba_jax.stages.base import Stage


@dataclasses.dataclass(frozen=True)
class FullBatch:
    """A batch of full rows.

    Attributes:
      row: the stage's arrays of a row.
      rows: rows of the global batch.
      amounts, flops: the stage's counts for the whole batch.
      text: the batch in words.
    """

    row: dict[str, Any]
    rows: int
    amounts: dict[str, float]
    flops: float
    text: str


def make_full_batch(
    stage: Stage,
    config: RunConfig,
    trained: Collection[str],
    rows: int | None = None,
    audio_share: float | None = None,
) -> FullBatch:
    """Make a stage's batch.

    A packed row is a single example as long as the row, with the kinds of positions that the
    mixture has, or with a share `audio_share` of frames that are targets after text that is. Clips
    come from the bucket with the most seconds in a batch, the longest of those. `rows` None: those
    of the config's data.

    Raises:
      ConfigError: the config's data are wrong.
      PlanError: a share or a number of rows out of range.
    """
    if audio_share is not None and not 0 <= audio_share < 1:
        raise PlanError(f"audio share {audio_share}: expected at least 0, below 1")
    settings, model = batch_settings(config.data), ModelFormat.of(config.model)
    if isinstance(settings, PackedSettings):
        if audio_share is None:
            shares = measure_shares(settings, model)
        else:
            shares = RowShares(0.0, audio_share, 1 - audio_share, "as asked for")
        batch, text = _packed_row(settings, model, shares)
        rows = settings.rows if rows is None else rows
    else:
        bucket = max(settings.buckets, key=lambda b: (b.seconds * b.count, b.seconds))
        batch, text = _clip(settings, bucket, model), f"clips of {bucket.seconds:g} s"
        rows = bucket.count if rows is None else rows
    if rows < 1:
        raise PlanError(f"a batch of {rows} rows: expected at least 1")
    row = stage.arrays(batch)
    return FullBatch(
        row,
        rows,
        {name: amount * rows for name, amount in stage.amounts(row).items()},
        stage.flops(row, trained) * rows,
        f"{rows} {text}",
    )


def place_batch(batch: FullBatch, mesh: jax.sharding.Mesh) -> Any:
    """Return shapes, dtypes and shardings of the global arrays.

    Raises:
      ShardingError: rows or positions are not a multiple of the devices.
    """
    return jax.tree.map(
        lambda array, placement: jax.ShapeDtypeStruct(
            (batch.rows, *array.shape[1:]),
            jax.dtypes.canonicalize_dtype(array.dtype),
            sharding=placement,
        ),
        batch.row,
        sharding.batch_shardings(batch.row, batch.rows, mesh),
    )


def _packed_row(
    settings: PackedSettings, model: ModelFormat, shares: RowShares
) -> tuple[PackedBatch, str]:
    """Text that is read, text targets, frames heard, frames that are targets, in this order."""
    length, tokens = settings.row_length, model.tokens
    spoken = math.floor(shares.spoken * length)
    frames = spoken + math.floor(shares.heard * length)
    written = min(math.ceil(shares.written * length), length - frames)
    audio: tuple[AudioChunks, ...] = ()
    if settings.audio == "features":
        audio, frames = _chunks(settings, model, length - frames, frames)
    place_L = np.arange(length)
    is_audio_L = place_L >= length - frames
    spoken_L = place_L >= length - min(spoken, frames)
    # No position predicts the first.
    written_L = (place_L >= max(length - frames - written, 1)) & ~is_audio_L
    rows = PackedRows(
        ids_BL=np.where(is_audio_L, tokens.audio_pad, 0).astype(np.int32)[None],
        codes_BLQ=np.zeros((1, length, len(model.codebook_sizes)), np.int32),
        positions_BL=np.arange(length, dtype=np.int32)[None],
        segments_BL=np.ones((1, length), np.int32),
        text_target_BL=written_L[None],
        audio_target_BL=spoken_L[None],
    )
    text = (
        f"rows of {length} positions, {frames} of them frames of audio; {int(spoken_L.sum())} "
        f"targets of audio, {int(written_L.sum())} of text (shares {shares.source})"
    )
    return PackedBatch(rows, audio, np.zeros(1, np.int32)), text


def _chunks(
    settings: PackedSettings, model: ModelFormat, start: int, room: int
) -> tuple[tuple[AudioChunks, ...], int]:
    """Fill `room` positions from `start` with chunks of whole buckets, the longest first."""
    buckets = features.check_buckets(settings.buckets)
    lengths = {bucket: code_length(bucket.samples) for bucket in buckets}
    filled: dict[Bucket, int] = {}
    free = room
    for bucket in reversed(buckets):
        filled[bucket] = min(bucket.count, free // lengths[bucket])
        free -= filled[bucket] * lengths[bucket]
    position, result = start + free, []
    for bucket in buckets:
        used_C = np.arange(bucket.count) < filled[bucket]
        starts_C = position + lengths[bucket] * np.arange(bucket.count)
        position += filled[bucket] * lengths[bucket]
        shape = (1, bucket.count, bucket.mel_frames, model.mel_bins)
        chunks = AudioChunks(
            np.zeros(shape, np.float32),
            *(
                np.where(used_C, values, 0).astype(np.int32)[None]
                for values in (bucket.mel_frames, starts_C, lengths[bucket])
            ),
        )
        targets = empty_targets(settings, bucket, 1)
        for name in settings.targets:
            targets[lengths_name(name)][:, used_C] = targets[f"{name}_BCTM"].shape[2]
        result.append(chunks._replace(**targets))
    return tuple(result), room - free


def _clip(settings: AudioSettings, bucket: Bucket, model: ModelFormat) -> AudioBatch:
    batch = empty_batch(settings.features, bucket, 1, model)
    full = {"samples_B": np.full(1, bucket.samples, np.int32)}
    for name in ("whisper", "hifigan", "coarse", "flow"):
        mel_BTM = getattr(batch, f"{name}_mel_BTM")
        if mel_BTM is not None:
            full[f"{name}_lengths_B"] = np.full(1, mel_BTM.shape[1], np.int32)
    if batch.codes_BNQ is not None:
        full["code_lengths_B"] = np.full(1, batch.codes_BNQ.shape[1], np.int32)
    return batch._replace(**full)


def device_bytes(shapes: Any) -> int:
    """Bytes of sharded arrays on a device, without the padding of layouts."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes)
    )
