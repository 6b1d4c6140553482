"""The ablation of the two stages (paper, Table 5): everything learns from the first step on.

    python -m ba_jax.train --config=configs/lm_single.py:nano_codes --workdir=runs/single \
        --config.init.llm=runs/text --config.init.audio_embed=runs/tokenizer

nano_codes: 440 steps in some 4 min on two idle CPU cores, as the demo runs it; 86 % of written
questions are then answered (84 % before). `steps` are those of stages 1 and 2 together. See
configs/lm_stage2.py for sizes and data.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import lm_stage1, lm_stage2

ARGUMENTS = ("nano", "nano_codes", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The run's config.

    Raises:
      ValueError: for an unknown size.
    """
    config = lm_stage2.get_config(size)
    rules = [rule for rule in config.optimizer.rules if rule[0] != lm_stage2.FROZEN]
    config.optimizer.rules = tuple(rules)
    config.train.steps += lm_stage1.get_config(size).train.steps
    return config
