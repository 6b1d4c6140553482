"""Generation: transcripts, translations, speech and answers.

    python -m ba_jax.generate chat --config=configs/generate.py:nano_whisper --input=questions/ \
        --checkpoint=runs/tokenizer,runs/flow,runs/stage2 --out=DIR [--stream]

  arg           text tokenizer       recordings  waves by
  nano          embedded             to 4 s      Griffin-Lim, of the audio decoder's mel
  nano_whisper  embedded             to 4 s      the same
  1b5, 7b       datasets/tokenizer   to 30 s     flow and vocoder

Longer recordings are encoded in pieces of that length. `generate.generation.text` and
`generate.alternation.later_text` set the sampling of answers, `generate.generation.audio` that of
codes; 1b5 and 7b have the release's sampling. Useful options:

  --config.generate.alternation.mode=reference   text and speech alternate as in the public demo
  --config.generate.answers=written              answers without speech
  --config.generate.tts_words_per_turn=0         texts are read at once before they are spoken
  --config.generate.stream.player="aplay -q -t raw -f S16_LE -r {rate}"   plays what is streamed
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from ba_jax.generate.settings import GenerateSettings
from ba_jax.sampling.alternate import AUDIO
from configs import common, models

ARGUMENTS = ("nano", "nano_whisper", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The command's config.

    Raises:
      ConfigError: for an unknown size.
    """
    nano = common.choose(size, ARGUMENTS).startswith("nano")
    config = dataclasses.asdict(GenerateSettings(tokenizer="embedded"))
    config["synthesis"] = common.synthesis(nano, 500)
    if nano:
        # Nano models know one answer, and text followed by speech: they need no stops.
        config["generation"] |= {"text": common.sampling(), "audio": common.sampling(0.0, 5, 0.85)}
        config["generation"] |= {"rows": 16, "lengths": (64, 128), "capacity": 512}
        config["generation"] |= {"max_text": 48, "max_frames": 64}
        # The settings below are those of their training (configs/lm_stage2.py).
        config["generation"]["feedback_codebooks"] = 1
        config["tts_words_per_turn"] = 1
        config["alternation"] |= {"later_text": common.sampling(), "stops": ()}
        config["alternation"] |= {"segment": 64, "segments": 4}
        config["encode_seconds"] = (4.0,)
    else:
        config["tokenizer"] = "datasets/tokenizer"
        config["generation"] |= {"audio": dataclasses.asdict(AUDIO), "lengths": (128, 512, 2048)}
        config["generation"] |= {"max_text": 512, "max_frames": 2048, "capacity": 8192}
        config["alternation"]["segments"] = 32
    return ConfigDict(
        {
            "model": models.get_config(size),
            "generate": config,
            "mesh": {"replica": -1, "fsdp": 1, "tensor": 1},
            # Folder of XLA's compiled programs; "" turns the cache off.
            "compilation_cache": "~/.cache/ba_jax/jax",
        }
    )
