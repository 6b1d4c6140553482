"""Language model, stage 2 (paper 3.3.1): all but the text embedding and the output layer learn.

    python -m ba_jax.train --config=configs/lm_stage2.py:nano_codes --workdir=runs/stage2 \
        --config.init.llm=runs/stage1 --config.init.audio_embed=runs/stage1 \
        --config.init.audio_head=runs/stage1
    python -m ba_jax.data.show --config=configs/lm_stage2.py:nano --member=aqa
    python -m ba_jax.data.hash --config=configs/lm_stage2.py:nano --steps=100:105 --hosts=2

  arg         model  data
  nano        nano   the embedded corpus, all tasks, as mels: the tokenizer runs in the step
  nano_codes  nano   the same as codes, in runs/codes: embedded, embedded_slow, embedded_fast
                     (`python -m ba_jax.corpora.tokenize` with --speed=1, 0.9, 1.1), and
                     spliced_1 and spliced_2 (`configs/prepare.py:spliced`, as in launch/demo.sh)
  nano_words  nano   of these, single words and phrases: the stage's first part
  1b5         1b5    the paper's mixture as codes, in datasets/
  7b          7b     the same

nano_words, 320 steps, then nano_codes, 660 steps, are the demo's. 900 and 2,200 steps
(`MINUTES=long bash launch/demo.sh`; 0.6 to 1 s each on two CPU cores that had other work, too)
recognise with 7.2 % errors, answer 82.8 % of spoken questions in writing, 73.4 % in speech, and say
texts with 24.3 % of words wrong; README.md has both runs.
7b: 1 M tokens a step of 52.5 GFLOP each, so at half of its peak a v5p-128 (64 chips) would take
3.8 s a step, 50,000 steps 2.2 days; computed, not run.

Everything is set here or by `--config.a.b=c`: `--config.data.mixture.asr.weight=2`,
`--config.data.rows=16`, `--config.seed=1` (of the model; the data's is `config.data.seed`).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

ARGUMENTS = ("nano", "nano_words", "nano_codes", "1b5", "7b")
MIXTURES = {
    "nano": "lm_nano",
    "nano_words": "lm_words_nano",
    "nano_codes": "lm_codes_nano",
    "1b5": "lm",
    "7b": "lm",
}
FROZEN = r"llm/(embedding|lm_head)"


def get_config(size: str = "nano") -> ConfigDict:
    """The stage's config.

    Raises:
      ValueError: for an unknown size.
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
        # On one device: targets of all rows side by side.
        config.stage.update({"gather": "batch", "chunk": 128, "full_head_every": 4})
        # Some 1,000 utterances are soon learnt by heart.
        config.stage.update({"codebook_dropout": 0.2, "frame_dropout": 0.05, "word_dropout": 0.05})
        # Nor shall what was said tell which of them it is (see `mixtures._IN_TURNS`).
        config.stage.speech_dropout = 1.0
        # Without one of a kind in it, a split has no batches of that kind.
        config.eval_data = common.of_split(config.data, "validation", rows=4)
        mixture = config.eval_data.mixture
        spliced = [name for name in mixture if name.startswith("said")]
        for name in ("intlv", "itts", "s2tt", "audio", "text", *spliced):
            if name in mixture:
                del mixture[name]
        if spliced:  # of the training split alone
            mixture.said = mixtures.said_in_turns("validation")
        config.optimizer.update({"learning_rate": 2.5e-3, "warmup_steps": 20})
        steps = 320 if size == "nano_words" else 660
        config.train.update({"steps": steps, "evaluate_every": 100, "evaluate_batches": 6})
        return config
    config.optimizer.update({"learning_rate": 2e-5, "warmup_steps": 1000, "b2": 0.95})
    config.train.steps = 50_000
    return common.at_scale(config)
