"""The audio tokenizer (paper 3.1): encoder, quantizer, audio decoder.

    python -m ba_jax.train --config=configs/tokenizer.py:nano_whisper --workdir=runs/tokenizer \
        --config.init.llm=runs/understanding --config.init.audio_encoder=runs/understanding \
        --config.init.vq_bridge=runs/understanding

It starts from the audio-understanding model (configs/understanding.py), or without it from a text
model and an encoder: `--config.init.llm=runs/text --config.init.audio_encoder=runs/whisper`.

The language model is frozen and reads the features through a projection; everything else trains. At
nano_whisper the encoder (Whisper-base) is frozen too, and so is the bridge, which is the identity:
codebooks (initialised by k-means), decoder and projections train.

  arg           encoder                     data
  nano          4 layers of 256, random     speech of the embedded corpus
  nano_whisper  Whisper-base, frozen        the same
  1b5           size of Whisper-large       ASR, AQA, S2TT and INTLV of the paper, as recordings

1b5 is meant for a slice such as v5p-128. Results: docs/experiments.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

BRIDGE = r"vq_bridge/(gate|up|down|norm)/.*"
ARGUMENTS = ("nano", "nano_whisper", "1b5")


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    config = common.base(common.choose(size, ARGUMENTS), "tokenizer")
    encoder_rules = ()
    if size == "nano_whisper":
        # Quantize the frames of Whisper unchanged: a bridge trained on half an hour of speech makes
        # words of unknown voices harder to tell apart. The decoder's projection has 2,048 inputs;
        # their common part would oscillate at the full learning rate.
        encoder_rules = (
            ("audio_encoder/.*", None),
            (BRIDGE, None),
            ("vq_bridge/decoder_proj/.*", 0.1),
        )
    config.optimizer.rules = (("llm/.*", None), *encoder_rules, (".*", 1.0))
    if size == "1b5":
        config.data = mixtures.get_config("tokenizer")
        config.stage.update({"replace_steps": 50_000, "restart_after": 1_000})
        config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 2_000})
        config.train.steps = 200_000
        return common.at_scale(config)
    config.data = mixtures.get_config("tokenizer_nano")
    config.eval_data = common.of_split(config.data, "validation")
    for name in ("intlv", "answers"):  # the split has too few of them to fill a batch
        del config.eval_data.mixture[name]
    # A batch has only about 200 frames for 512 codebook rows, so the averages must be short.
    config.stage.update(
        {
            "weight_coarse": 0.5,
            "weight_commitment": 0.25,
            "decay": 0.97,
            "replace_steps": 100,
            "restart_after": 20,
        }
    )
    if size == "nano_whisper":
        # The quantized features do not change: k-means first, then slow averages.
        config.stage.update({"kmeans_init_frames": 12_000, "decay": 0.99, "restart_after": 60})
        # The default noise exceeds the distances between rows of the later codebooks.
        config.stage.gumbel_temperature = 0.0005
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 20})
    config.train.update({"steps": 320, "evaluate_every": 80, "evaluate_batches": 2})
    return config
