"""The audio-understanding model (paper 3.1): what the tokenizer starts from and is compared with.

    python -m ba_jax.train --config=configs/understanding.py:nano_whisper \
        --workdir=runs/understanding --config.init.llm=runs/text \
        --config.init.audio_encoder=runs/whisper

Encoder, bridge and a projection into the frozen language model; no quantiser, no decoder. Sizes,
data and frozen parts are those of configs/tokenizer.py, which starts from this run by
`--config.init.audio_encoder`, `.vq_bridge` and `.llm`; the projection comes with `llm`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, tokenizer

ARGUMENTS = tokenizer.ARGUMENTS


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    config = tokenizer.get_config(size)
    stage = common.base(size, "understanding").stage
    if size == "nano_whisper":
        stage.norm_init_frames = config.stage.kmeans_init_frames
    config.stage = stage
    for data in (config.data, config.eval_data):
        if data:
            data.targets = ()
    return config
