"""Initialise audio embeddings from a tokenizer run, so that a language model begins by hearing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from ba_jax.checkpoints.arrays import Reader
from ba_jax.checkpoints.layout import CheckpointError

_EMBEDDING = "params/audio_embed/embedding_"
_PROJECTION = "params/text_projection/"


def derive_embeddings(reader: Reader, shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Audio embeddings that a tokenizer run implies.

    The run's text projection taught the frozen language model to read sums of codebook rows. The
    sum of the projected rows is the projection of the sum: with the bias shared among the
    codebooks, the language model hears codes from the first step as it heard the features. The row
    of the end of audio is 0.

    Args:
      reader: reader of a checkpoint's weights.
      shapes: variables wanted from it; `params/audio_embed/embedding_Q` is (codes + 1, width).

    Returns:
      The embeddings; {} if none is wanted, the checkpoint stores them, or it is no tokenizer run.

    Raises:
      CheckpointError: a tokenizer of other sizes.
    """
    names = [name for name in shapes if name.startswith(_EMBEDDING)]
    stored = reader.arrays
    if not names or f"{_EMBEDDING}0" in stored or f"{_PROJECTION}kernel" not in stored:
        return {}
    logging.info(
        "audio_embed: initialised from codebooks and text projection of %s", reader.directory
    )
    kernel_ED = reader.read(f"{_PROJECTION}kernel").astype(np.float32)
    bias_D = reader.read(f"{_PROJECTION}bias").astype(np.float32)
    embeddings = {}
    for number in range(len(names)):
        name = f"{_EMBEDDING}{number}"
        table_VE = reader.read(f"codebook/vq_bridge/embed_{number}").astype(np.float32)
        rows_VD = table_VE @ kernel_ED + bias_D / len(names)
        embeddings[name] = np.concatenate([rows_VD, np.zeros_like(rows_VD[:1])])
        if embeddings[name].shape != tuple(shapes[name].shape):
            raise CheckpointError(
                f"{reader.directory}: gives {name} of shape {embeddings[name].shape}, expected "
                f"{tuple(shapes[name].shape)}"
            )
    return embeddings
