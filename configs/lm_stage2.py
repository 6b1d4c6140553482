"""Stage 2 of the language model (paper section 3.3.1): its model, its data.

    python -m ba_jax.data.show --config=configs/lm_stage2.py:nano --member=aqa
    python -m ba_jax.data.hash --config=configs/lm_stage2.py:nano --steps=100:105 --hosts=2

  arg     model  data
  nano    nano   the embedded corpus, all tasks, mels (the tokenizer runs in the step)
  1b5     1b5    the paper's mixture as codes, from ./datasets
  7b      7b     the same

Everything is set here or by `--config.a.b=c`: `--config.data.mixture.asr.weight=2`,
`--config.data.rows=16`, `--config.seed=1` (of the model; the data's is `config.data.seed`).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import mixtures, models

SIZES = ("nano", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The stage's config.

    Raises:
      ValueError: for an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r}: expected one of {SIZES}")
    return ConfigDict(
        {
            "seed": 0,
            "model": models.get_config(size),
            "data": mixtures.get_config("lm_nano" if size == "nano" else "lm"),
            "loader": {"workers": 0 if size == "nano" else 16, "prefetch": 2},
        }
    )
