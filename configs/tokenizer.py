"""The audio tokenizer (paper 3.1): encoder, quantiser, audio decoder.

    python -m ba_jax.train --config=configs/tokenizer.py:nano_whisper --workdir=runs/tokenizer \
        --config.init.llm=runs/text --config.init.audio_encoder=runs/whisper
    python -m ba_jax.train --config=configs/tokenizer.py:1b5 --workdir=DIR \
        --config.init.llm=Qwen2.5-1.5B --config.init.audio_encoder=whisper-large-v3

The language model is frozen and reads the features through a projection; the rest learns, but for
nano_whisper's encoder, which is Whisper-base as it is, and the bridge, which passes its frames on:
codebooks (from k-means of the first batches on), decoder and projections learn.

  arg           encoder                      data
  nano          4 layers of 256, at random   the embedded corpus' speech
  nano_whisper  Whisper-base, frozen         the same
  1b5           Whisper-large's shape        the paper's ASR, AQA, S2TT and INTLV, as recordings

nano_whisper: 240 steps in some 2 min on two idle CPU cores; with 320 the text loss on validation
is 1.8 to 1.9 and the mel error (mel_mae) 0.92 nats, 0.99 from the first codebook. nano: 320 steps,
0.76 and a text loss of 2.26 (before its bridge began as the identity). 1b5: for a slice such as
v5p-128; not run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

BRIDGE = r"vq_bridge/(gate|up|down|norm)/.*"
ARGUMENTS = ("nano", "nano_whisper", "1b5")


def get_config(size: str = "nano") -> ConfigDict:
    """The stage's config.

    Raises:
      ValueError: for an unknown size.
    """
    config = common.base(common.choose(size, ARGUMENTS), "tokenizer")
    given = ()
    if size == "nano_whisper":
        # Whisper's frames are quantised as they are: trained on half an hour, a bridge makes words
        # of unknown voices harder to tell apart. The decoder's projection has 2,048 inputs; at the
        # full rate what they have in common would jump about.
        given = (("audio_encoder/.*", None), (BRIDGE, None), ("vq_bridge/decoder_proj/.*", 0.1))
    config.optimizer.rules = (("llm/.*", None), *given, (".*", 1.0))
    if size == "1b5":
        config.data = mixtures.get_config("tokenizer")
        config.stage.update({"replace_steps": 50_000, "restart_after": 1_000})
        config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 2_000})
        config.train.steps = 200_000
        return common.at_scale(config)
    config.data = mixtures.get_config("tokenizer_nano")
    config.eval_data = common.of_split(config.data, "validation")
    for name in ("intlv", "answers"):  # too few of them in that split to fill batches with
        del config.eval_data.mixture[name]
    # A batch has some 200 frames: the averages of 512 rows have to be short.
    config.stage.update(
        {
            "weight_second_scale": 0.5,
            "weight_commitment": 0.25,
            "decay": 0.97,
            "replace_steps": 100,
            "restart_after": 20,
        }
    )
    if size == "nano_whisper":
        # What the codebooks quantise does not move: k-means, then slow averages.
        config.stage.update({"kmeans_init_frames": 12_000, "decay": 0.99, "restart_after": 60})
        # Rows of the later codebooks differ by less than the default noise: it would drown them.
        config.stage.gumbel_temperature = 0.0005
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 20})
    config.train.update({"steps": 320, "evaluate_every": 80, "evaluate_batches": 2})
    return config
