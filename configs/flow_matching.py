"""The flow-matching decoder (paper 3.2), from the tokenizer's codes to mels.

    python -m ba_jax.train --config=configs/flow_matching.py:nano_whisper --workdir=runs/flow \
        --config.init.vq_bridge=runs/tokenizer --config.init.audio_decoder=runs/tokenizer

The tokenizer is frozen. The nano sizes learn from stored codes (`python -m ba_jax.corpora.tokenize`
makes them), so that no step runs the encoder; the others encode the audio. At the nano sizes the
tokenizer's decoder trains too (`stage.decoder`) and learns to
speak in the assistant's two voices, for which a few minutes of speech suffice; most clips are
rotated in time (`stage.rotation`), or the model would memorise when each sound occurs. The U-Net
predicts the part of the velocity that mu does not determine (`model.flow_matching.residual_std`).
1b5 and 7b have the same decoder, of the released size; they are meant for a slice such as v5p-16.
Results: docs/experiments.md.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

ARGUMENTS = ("nano", "nano_whisper", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """Config of the stage.

    Raises:
      ConfigError: an unknown size.
    """
    config = common.base(common.choose(size, ARGUMENTS), "flow")
    nano = size.startswith("nano")
    config.data = mixtures.get_config("flow_nano" if nano else "audio")
    config.optimizer.rules = ((r"(flow_prenet|flow_unet)/.*", 1.0), (".*", None))
    if nano:
        # The decoder learns to speak in the two voices, whoever speaks in the input.
        config.stage.update({"audio": "codes", "decoder": 1.0, "cfm": 0.2, "rotation": 0.8})
        config.optimizer.rules = (
            (r"(flow_prenet|flow_unet|audio_decoder)/.*", 1.0),
            # It has 2,048 inputs: their common part would oscillate at the full learning rate.
            (r"vq_bridge/decoder_proj/.*", 0.1),
            (".*", None),
        )
        config.eval_data = common.of_split(config.data, "validation")
        config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 20})
        config.train.update({"steps": 200, "evaluate_every": 100, "evaluate_batches": 1})
        return config
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 2000, "ema_decay": 0.999})
    config.train.steps = 200_000
    return common.at_scale(config)
