"""Initialise a new bridge and its codebooks from the encoder's features of the first batches."""

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

_MAX_EMPTY = 100  # batches without audio before it is an error


def fit_bridge(
    model: BaichuanAudio,
    stage: str,
    variables: Variables,
    placed: Iterator[Mapping[str, Any]],
    key: jax.Array,
    frames: int,
    *,
    norm: bool = True,
    tables: bool = True,
) -> Variables:
    """Variables whose bridge has a norm and codebooks fitted to `frames` frames.

    The norm gives the features mean 0 and a common deviation of 1; the codebooks are those of
    k-means, their averages scaled to a batch. All processes get the same values.

    Args:
      model: with encoder and bridge.
      stage: its name, for errors.
      variables: with a random bridge.
      placed: batches of the tokenizer stage, taken until there are enough frames. At most an eighth
        of the frames come from a bucket of a batch.
      key: random key of the draws.
      frames: at least as many as the largest codebook has rows.
      norm, tables: fit the norm, and the codebooks.

    Raises:
      StageError: no audio in the first batches.
      ValueError: fewer frames than rows.
    """
    draw = functools.partial(codebooks.draw_candidates, size=max(1, frames // 8))
    draw_key, kmeans_key = jax.random.split(key)

    @jax.jit
    def draw_features(variables, audio, key):
        def encode(model: BaichuanAudio, mel, lengths):
            x, lengths_I = model.audio_encoder(mel, lengths)
            return model.vq_bridge.features(x, lengths_I)

        drawn = []
        for number, bucket in enumerate(audio):
            mel = bucket["mel"].reshape(-1, *bucket["mel"].shape[2:])
            z, lengths_I = model.apply(
                variables, mel, bucket["mel_lengths"].reshape(-1), method=encode
            )
            valid_IN = layers.length_mask(lengths_I, z.shape[1])
            drawn.append(draw(jax.random.fold_in(key, number), z, valid_IN))
        return drawn

    features, total, batches = [], 0, 0
    while total < frames:
        if batches == _MAX_EMPTY and not total:
            raise StageError(
                f"stage {stage}: the bridge is to be fitted to {frames} frames, but the first "
                f"{batches} batches have no audio"
            )
        batch_key = jax.random.fold_in(draw_key, batches)
        drawn = draw_features(variables, next(placed)["audio"], batch_key)
        batches += 1
        for candidates in drawn:
            z_KE, priority_K = multihost_utils.process_allgather(tuple(candidates), tiled=True)
            features.append(z_KE[priority_K > 0])
            total += len(features[-1])
    frames_KE = np.concatenate(features)[:frames]
    logging.info(
        "vq_bridge: fitted to %d frames of %d batches: %s",
        len(frames_KE),
        batches,
        " and ".join(["norm"] * norm + ["codebooks"] * tables),
    )
    if norm:
        mean_E = frames_KE.mean(axis=0)
        # A common deviation: features that hardly vary are not amplified to the size of the others.
        deviation = np.sqrt(np.mean((frames_KE - mean_E) ** 2)) + 1e-6
        frames_KE = (frames_KE - mean_E) / deviation
        values = {"scale": np.full_like(mean_E, 1 / deviation), "bias": -mean_E / deviation}
        bridge = {**variables["params"]["vq_bridge"]}
        bridge["norm"] = _place_like(values, bridge["norm"])
        variables = {**variables, "params": {**variables["params"], "vq_bridge": bridge}}
    if tables:
        old = variables["codebook"]["vq_bridge"]
        new = codebooks.kmeans(kmeans_key, frames_KE, codebooks.codebook_sizes(old))
        for name in new:
            if name.startswith(("cluster_size_", "embed_avg_")):
                new[name] = new[name] / batches  # averages of a batch
        codebook = {**variables["codebook"], "vq_bridge": _place_like(new, old)}
        variables = {**variables, "codebook": codebook}
    return variables


def _place_like(values: Mapping[str, np.ndarray], arrays: Mapping[str, jax.Array]) -> dict:
    """The values with the dtypes and shardings of the arrays."""
    return {
        name: jax.device_put(np.asarray(values[name], old.dtype), old.sharding)
        for name, old in arrays.items()
    }
