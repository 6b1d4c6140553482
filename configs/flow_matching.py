"""The flow-matching decoder (paper 3.2) on the tokenizer's codes.

    python -m ba_jax.train --config=configs/flow_matching.py:nano_whisper --workdir=runs/flow \
        --config.init.audio_encoder=runs/tokenizer --config.init.vq_bridge=runs/tokenizer \
        --config.init.audio_decoder=runs/tokenizer

The tokenizer is frozen. At the nano sizes its decoder follows into the assistant's two voices
(`stage.decoder`), as some minutes of speech teach no more of them; most clips are rotated in time
(`stage.rotation`), as it would learn when each thing is said, too. 2,000 steps (1 s each beside
other work, on two CPU cores) bring the decoder's mel of held-out answers to 0.45 nats (0.93 before,
over all voices) and the prior to 0.44. The U-Net says what mu leaves open of the velocity
(`model.flow_matching.residual_std`): 500 steps bring the prior to 0.52 nats and sampled mels
(mel_mae) to 0.63, which 2,000 steps without it left at 1.00. 1b5 and 7b, the same decoder at the
released size: for a slice such as v5p-16; not run.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, mixtures

ARGUMENTS = ("nano", "nano_whisper", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The stage's config.

    Raises:
      ValueError: for an unknown size.
    """
    config = common.base(common.choose(size, ARGUMENTS), "flow")
    nano = size.startswith("nano")
    config.data = mixtures.get_config("flow_nano" if nano else "audio")
    config.optimizer.rules = ((r"(flow_prenet|flow_unet)/.*", 1.0), (".*", None))
    if nano:
        # Some minutes of two voices: the decoder learns to speak with them, whoever was heard.
        config.stage.update({"decoder": 1.0, "cfm": 0.2, "rotation": 0.8})
        config.optimizer.rules = (
            (r"(flow_prenet|flow_unet|audio_decoder)/.*", 1.0),
            # 2,048 inputs: at the full rate their common part would jump about.
            (r"vq_bridge/decoder_proj/.*", 0.1),
            (".*", None),
        )
        config.eval_data = common.of_split(config.data, "validation")
        config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 20})
        config.train.update({"steps": 200, "evaluate_every": 100, "evaluate_batches": 1})
        return config
    config.data.features = ("whisper_mel", "flow_mel")
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 2000, "ema_decay": 0.999})
    config.train.steps = 200_000
    return common.at_scale(config)
