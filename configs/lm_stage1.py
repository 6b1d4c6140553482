"""Language model, stage 1 (paper 3.3.1): audio embeddings and audio head learn, all else is frozen.

    python -m ba_jax.train --config=configs/lm_stage1.py:nano_codes --workdir=runs/stage1 \
        --config.init.llm=runs/text --config.init.audio_embed=runs/tokenizer
    python -m ba_jax.train --config=configs/lm_stage1.py:7b --workdir=DIR \
        --config.init.llm=qwen2.5-7b --config.data.folder=DATASETS

nano_codes: 40 steps in some 30 s on two idle CPU cores. 7b: as stage 2, less the gradients of the
language model's weights; not run. Audio embeddings may start from a tokenizer run: what its text
projection makes of the codebooks. See configs/lm_stage2.py for sizes and data.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import lm_stage2

ARGUMENTS = ("nano", "nano_codes", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The stage's config.

    Raises:
      ValueError: for an unknown size.
    """
    config = lm_stage2.get_config(size)
    nano = size.startswith("nano")
    rest = r"llm/.*" if config.stage.audio == "codes" else r"(llm|audio_encoder|vq_bridge)/.*"
    config.optimizer.rules = ((rest, None), (".*", 1.0))
    config.optimizer.learning_rate = 3e-3 if nano else 1e-3
    config.optimizer.warmup_steps = 10 if nano else 500
    config.train.steps = 40 if nano else 5_000
    return config
