"""Where a new bridge and its codebooks start: from what the encoder says of the first batches."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ba_jax.models import codebook as codebooks
from ba_jax.models import layers
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.stages.base import StageError, Variables

_MOST_EMPTY = 100  # batches without audio before it is an error that a bridge waits for some


def fit_bridge(
    model: BaichuanAudio,
    stage: str,
    variables: Variables,
    placed: Iterator[Mapping[str, Any]],
    key: jax.Array,
    wanted: int,
) -> Variables:
    """Variables whose bridge has a norm and codebooks fitted to `wanted` frames.

    The norm gives the features the mean 0 and together the deviation 1; the codebooks are those of
    k-means, their averages scaled to a batch. All processes come to the same values.

    Args:
      model: with encoder and bridge.
      stage: its name, for errors.
      variables: with a bridge as drawn.
      placed: batches of the tokenizer stage; as many as it takes. At most an eighth of the frames
        come from one bucket of one.
      key: of the draws.
      wanted: frames, at least as many as the largest codebook has rows.

    Raises:
      StageError: no audio in the first batches.
      ValueError: fewer frames than rows.
    """
    draw = functools.partial(codebooks.draw_candidates, size=max(1, wanted // 8))

    @jax.jit
    def some(variables, audio, key):
        def encode(model: BaichuanAudio, mel, lengths):
            x, lengths_I = model.audio_encoder(mel, lengths)
            return model.vq_bridge.features(x, lengths_I)

        frames = []
        for number, bucket in enumerate(audio):
            mel = bucket["mel"].reshape(-1, *bucket["mel"].shape[2:])
            z, lengths_I = model.apply(
                variables, mel, bucket["mel_lengths"].reshape(-1), method=encode
            )
            valid_IN = layers.length_mask(lengths_I, z.shape[1])
            frames.append(draw(jax.random.fold_in(key, number), z, valid_IN))
        return frames

    found, total, batches = [], 0, 0
    while total < wanted:
        if batches == _MOST_EMPTY and not total:
            raise StageError(
                f"stage {stage}: kmeans_init_frames = {wanted}, but the first {batches} batches have no "
                "audio"
            )
        drawn = some(variables, next(placed)["audio"], jax.random.fold_in(key, batches))
        batches += 1
        for candidates in drawn:
            z_KE, there_K = multihost_utils.process_allgather(tuple(candidates), tiled=True)
            found.append(z_KE[there_K > 0])
            total += len(found[-1])
    frames_KE = np.concatenate(found)[:wanted]
    mean_E = frames_KE.mean(axis=0)
    # One for all: features that hardly move are not made as loud as those that say something.
    deviation = np.sqrt(np.mean((frames_KE - mean_E) ** 2)) + 1e-6
    norm = {"scale": np.full_like(mean_E, 1 / deviation), "bias": -mean_E / deviation}
    old = variables["codebook"]["vq_bridge"]
    own = codebooks.kmeans(key, (frames_KE - mean_E) / deviation, codebooks.codebook_sizes(old))
    for name in own:
        if name.startswith(("cluster_size_", "embed_avg_")):
            own[name] = own[name] / batches  # they are averages of a batch
    logging.info("bridge fitted to %d frames of %d batches", len(frames_KE), batches)
    bridge = {**variables["params"]["vq_bridge"]}
    bridge["norm"] = _placed_as(norm, bridge["norm"])
    return {
        **variables,
        "params": {**variables["params"], "vq_bridge": bridge},
        "codebook": {**variables["codebook"], "vq_bridge": _placed_as(own, old)},
    }


def _placed_as(values: Mapping[str, np.ndarray], arrays: Mapping[str, jax.Array]) -> dict:
    """The values, of the same types and on the same devices as the arrays."""
    return {
        name: jax.device_put(np.asarray(values[name], old.dtype), old.sharding)
        for name, old in arrays.items()
    }
