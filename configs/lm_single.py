"""The single-stage ablation (paper, Table 5): everything trains from the first step on.

    python -m ba_jax.train --config=configs/lm_single.py:nano_codes --workdir=runs/single \
        --config.init.llm=runs/text --config.init.audio_embed=runs/tokenizer

`steps` is the sum of those of stages 1 and 2. For sizes and data see configs/lm_stage2.py, for
results docs/experiments.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import lm_stage1, lm_stage2

ARGUMENTS = ("nano", "nano_plain", "nano_codes", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    config = lm_stage2.get_config(size)
    rules = [rule for rule in config.optimizer.rules if rule[0] != lm_stage2.FROZEN]
    config.optimizer.rules = tuple(rules)
    config.train.steps += lm_stage1.get_config(size).train.steps
    return config
