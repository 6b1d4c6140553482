"""Language model, stage 2 (paper 3.3.1): all but the text embedding and the output layer trains.

    python -m ba_jax.train --config=configs/lm_stage2.py:nano_codes --workdir=runs/stage2 \
        --config.init.llm=runs/stage1 --config.init.audio_embed=runs/stage1 \
        --config.init.audio_head=runs/stage1
    python -m ba_jax.data.show --config=configs/lm_stage2.py:nano --member=aqa
    python -m ba_jax.data.hash --config=configs/lm_stage2.py:nano --steps=100:105 --hosts=2

  arg         model  data
  nano        nano   all tasks on the embedded corpus, as mels: the tokenizer runs in the step
  nano_codes  nano   the same as codes, in runs/codes: embedded, embedded_slow, embedded_fast
                     (`python -m ba_jax.corpora.tokenize` with --speed=1, 0.9, 1.1), spliced_1 and
                     spliced_2 (`configs/prepare.py:spliced`); configs/recipes.py builds them all
  nano_words  nano   its single words and phrases: the first part of the stage
  nano_plain  nano   the tasks of `nano` as codes of runs/codes/embedded alone
  1b5         1b5    the paper's mixture as codes, in datasets/
  7b          7b     the same

The nano recipe trains 320 steps of nano_words, then 660 steps of nano_codes. Results:
docs/experiments.md.

Every key can be set on the command line: `--config.data.mixture.asr.weight=2`,
`--config.data.rows=16`, `--config.seed=1` (of the model; the data have `config.data.seed`).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

ARGUMENTS = ("nano", "nano_words", "nano_plain", "nano_codes", "1b5", "7b")
MIXTURES = {
    "nano": "lm_nano",
    "nano_words": "lm_words_nano",
    "nano_plain": "lm_plain_nano",
    "nano_codes": "lm_codes_nano",
    "1b5": "lm",
    "7b": "lm",
}
FROZEN = r"llm/(embedding|lm_head)"


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    common.choose(size, ARGUMENTS)
    nano = size.startswith("nano")
    config = common.base("nano" if nano else size, "lm")
    config.data = mixtures.get_config(MIXTURES[size])
    codes = config.data.audio == "codes"
    config.stage.audio = "codes" if codes else "features"
    rules = [(FROZEN, None), (".*", 1.0)]
    if not codes:
        rules.insert(0, (r"(audio_encoder|vq_bridge)/.*", None))
    config.optimizer.update({"rules": tuple(rules), "weight_decay": 0.05})
    if nano:
        config.stage.update({"chunk": 128, "full_head_every": 4})
        # The corpus has about 1,000 utterances, which a model soon memorises.
        config.stage.update({"codebook_dropout": 0.2, "frame_dropout": 0.05, "word_dropout": 0.05})
        # Earlier speech must not reveal the utterance either (see `mixtures._IN_TURNS`).
        config.stage.speech_dropout = 1.0
        # Leave out the tasks that have no examples in the split.
        config.eval_data = common.of_split(config.data, "validation", rows=4)
        mixture = config.eval_data.mixture
        spliced = [name for name in mixture if name.startswith("said")]
        for name in ("intlv", "itts", "s2tt", "audio", "text", *spliced):
            if name in mixture:
                del mixture[name]
        if spliced:  # spliced speech exists for the training split only
            mixture.said = mixtures.said_in_turns("validation")
        config.optimizer.update({"learning_rate": 2.5e-3, "warmup_steps": 20})
        steps = 320 if size == "nano_words" else 660
        config.train.update({"steps": steps, "evaluate_every": 100, "evaluate_batches": 6})
        return config
    config.optimizer.update({"learning_rate": 2e-5, "warmup_steps": 1000, "b2": 0.95})
    config.train.steps = 50_000
    return common.at_scale(config)
