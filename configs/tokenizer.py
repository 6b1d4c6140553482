"""The audio tokenizer (paper 3.1): encoder, quantiser, audio decoder.

    python -m ba_jax.train --config=configs/tokenizer.py:nano --workdir=runs/tokenizer \
        --config.init.llm=runs/text --config.init.audio_encoder=whisper
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

SIZES = ("nano", "nano_whisper")


def get_config(size: str = "nano") -> ConfigDict:
    """The stage's config.

    Raises:
      ValueError: for an unknown size.
    """
    config = common.base(common.choose(size, SIZES), "tokenizer")
    config.data = mixtures.get_config("tokenizer_nano")
    config.eval_data = common.of_split(config.data, "validation")
    for name in ("intlv", "answers"):
        del config.eval_data.mixture[name]
    config.stage.update({"replace_steps": 150, "restart_after": 20, "restart_candidates": 64})
    config.optimizer.update(
        {
            "rules": (
                ("llm/.*", None),
                ("audio_encoder/.*", None if size == "nano_whisper" else 1.0),
                (".*", 1.0),
            ),
            "learning_rate": 1e-3,
            "warmup": 20,
        }
    )
    config.train.update({"steps": 300, "evaluate_every": 100, "evaluate_batches": 2})
    return config
