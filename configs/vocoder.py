"""The HiFT vocoder and its discriminators (paper 3.2; HiFTNet, arXiv 2309.09493).

    python -m ba_jax.train --config=configs/vocoder.py:nano --workdir=runs/vocoder

nano is for tests: the nano model speaks through Griffin-Lim. 1b5 and 7b have the released sizes and
are meant for a slice such as v5p-16.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

ARGUMENTS = ("nano", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    config = common.base(common.choose(size, ARGUMENTS), "vocoder")
    nano = size == "nano"
    config.data = mixtures.get_config("vocoder_nano" if nano else "vocoder")
    config.optimizer.update(
        {
            "rules": ((".*", 1.0),),
            "learning_rate": 2e-4,
            "b1": 0.8,
            "b2": 0.99,
            "clip_norm": 10.0,
            "clip_groups": (r"discriminators/.*",),
        }
    )
    if nano:
        # The published discriminators cost 70 times as much as the nano generator.
        config.stage.discriminators = ConfigDict(
            {
                "periods": (2, 3, 5),
                "period_channels": (8, 16, 32, 32),
                "resolution_channels": 4,
            }
        )
        config.eval_data = common.of_split(config.data, "validation")
        config.train.update({"steps": 400, "evaluate_every": 200, "evaluate_batches": 1})
        return config
    config.train.steps = 500_000
    return common.at_scale(config)
