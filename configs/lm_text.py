"""A small language model of text alone: the language ability that the speech stages have to keep.

    python -m ba_jax.train --config=configs/lm_text.py:nano --workdir=runs/text

Only nano needs it: at full size the language model is Qwen2.5's (`python -m ba_jax.convert`).
Results: docs/experiments.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

ARGUMENTS = ("nano",)


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    config = common.base(common.choose(size, ARGUMENTS), "text_lm")
    config.data = mixtures.get_config("text_nano")
    config.eval_data = common.of_split(config.data, "validation")
    config.stage.update({"chunk": 256})
    config.optimizer.update(
        {
            "rules": ((".*", 1.0),),
            "learning_rate": 2e-3,
            "warmup_steps": 30,
            "weight_decay": 0.05,
        }
    )
    config.train.update({"steps": 300, "evaluate_every": 100})
    return config
