"""Language model, stage 1 (paper 3.3.1): audio embeddings and audio head train, all else is frozen.

    python -m ba_jax.train --config=configs/lm_stage1.py:nano_codes --workdir=runs/stage1 \
        --config.init.llm=runs/text --config.init.audio_embed=runs/tokenizer
    python -m ba_jax.train --config=configs/lm_stage1.py:7b --workdir=DIR \
        --config.init.llm=qwen2.5-7b --config.data.folder=DATASETS

Audio embeddings may start from a tokenizer run: its codebooks, mapped by its text projection. For
sizes and data see configs/lm_stage2.py, for results docs/experiments.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import lm_stage2

ARGUMENTS = ("nano", "nano_codes", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    config = lm_stage2.get_config(size)
    nano = size.startswith("nano")
    frozen = r"llm/.*" if config.stage.audio == "codes" else r"(llm|audio_encoder|vq_bridge)/.*"
    config.optimizer.rules = ((frozen, None), (".*", 1.0))
    config.optimizer.learning_rate = 3e-3 if nano else 1e-3
    config.optimizer.warmup_steps = 10 if nano else 500
    config.train.steps = 40 if nano else 5_000
    return config
