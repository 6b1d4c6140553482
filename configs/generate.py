"""A model at work on requests.

    python -m ba_jax.generate chat --config=configs/generate.py:nano_whisper --input=questions/ \
        --checkpoint=runs/tokenizer,runs/flow,runs/stage2 --out=DIR [--stream]

  arg           text tokenizer       recordings  waves by
  nano          embedded             to 4 s      Griffin-Lim, of the audio decoder's mel
  nano_whisper  embedded             to 4 s      the same
  1b5, 7b       datasets/tokenizer   to 30 s     flow and vocoder

Longer recordings are encoded in pieces of that length. `generate.text` and
`generate.alternation.later_text` choose the text of answers, `generate.audio` the codes; 1b5 and 7b
have the release's sampling. `--config.generate.alternation.mode=reference` alternates text and
speech as the public demo does, quirks included; `--config.generate.answers=written` answers in
writing alone; `--config.generate.tts_words_per_turn=0` has texts read all at once before they are said;
`--config.generate.stream.player="aplay -q -t raw -f S16_LE -r {rate}"` plays.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, models

ARGUMENTS = ("nano", "nano_whisper", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The command's config.

    Raises:
      ValueError: for an unknown size.
    """
    if size not in ARGUMENTS:
        raise ValueError(f"size {size!r}: expected one of {ARGUMENTS}")
    nano = size.startswith("nano")
    greedy = common.sampling(0.0, 0, 1.0)
    return ConfigDict(
        {
            "model": models.get_config(size),
            "generate": {
                "tokenizer": "embedded" if nano else "datasets/tokenizer",
                "language": "en",
                "system": "",
                "answers": "spoken",
                # Text and speech in turns, a word (or character) at a time.
                "tts_words_per_turn": 1 if nano else 0,
                "transcript": greedy,
                # A nano model knows one answer.
                "text": greedy if nano else common.sampling(0.8, 20, 0.85, 1.1),
                "audio": common.sampling(0.0 if nano else 0.5, 5, 0.85, 1.0 if nano else 1.3),
                "alternation": {
                    "mode": "clean",
                    "later_text": greedy if nano else common.sampling(0.3, 20, 0.85, 1.05),
                    # What nano models are trained on is text and then speech.
                    "stops": () if nano else (",", "!", "?", "，", "。", "！", "？", ". "),
                    "stretch": 50,
                    "segment": 64 if nano else 500,
                    "segments": 4 if nano else 32,
                },
                "rows": 16 if nano else 8,
                "lengths": (64, 128) if nano else (128, 512, 2048),
                "max_text": 48 if nano else 512,
                "max_frames": 64 if nano else 2048,
                "capacity": 512 if nano else 8192,
                # As the nano models learn to speak (configs/lm_stage2.py).
                "feedback_codebooks": 1 if nano else 0,
                "encode_rows": 16,
                "encode_seconds": (4.0,) if nano else (5.0, 15.0, 30.0),
                "synthesis": common.synthesis(nano, 500),
                "stream": {"chunk": 4, "blocks": (16, 48), "norm_frames": 4, "player": ""},
                "seed": 0,
            },
            "mesh": {"replica": -1, "fsdp": 1, "tensor": 1},
            # Of XLA's compiled programs; "" leaves it off.
            "compilation_cache": "~/.cache/ba_jax/jax",
        }
    )
