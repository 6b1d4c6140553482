"""Supervised fine-tuning on dialogues (paper 3.3.2), of the whole language model or by LoRA.

    python -m ba_jax.train --config=configs/sft.py:nano --workdir=runs/sft \
        --config.init.llm=runs/stage2 --config.init.audio_embed=runs/stage2 \
        --config.init.audio_head=runs/stage2
    python -m ba_jax.train --config=configs/sft.py:7b_lora --workdir=runs/lora \
        --config.init.llm=released --config.init.audio_embed=released \
        --config.init.audio_head=released

  arg        model     trained parameters
  nano       nano      all but the text embedding and the output layer; codes in runs/codes
  nano_lora  nano      adapters of rank 8 in the language model
  1b5, 7b    1b5, 7b   as nano; codes in datasets/sft
  7b_lora    7b        adapters of rank 64 in the language model: fits one GPU
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, lm_stage2, mixtures

ARGUMENTS = ("nano", "nano_lora", "1b5", "7b", "7b_lora")


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    common.choose(size, ARGUMENTS)
    model, _, lora = size.partition("_")
    nano = model == "nano"
    config = lm_stage2.get_config("nano_codes" if nano else model)
    config.data = mixtures.get_config("sft_nano" if nano else "sft")
    if nano:
        config.eval_data = common.of_split(config.data, "validation", rows=4)
    config.optimizer.learning_rate = 3e-4 if nano else 1e-5
    config.train.steps = 60 if nano else 4_000
    if lora:
        config.model.llm.lora_rank = 8 if nano else 64
        config.model.llm.lora_alpha = 16.0 if nano else 128.0
        config.optimizer.rules = ((r"llm/.*lora_.*", 1.0), (".*", None))
        config.optimizer.learning_rate = 1e-3 if nano else 1e-4
        config.optimizer.weight_decay = 0.0
        if not nano:
            config.data.rows = 8
            config.train.accumulation_steps = 8
    return config
