"""Evaluation of a model on a dataset's held-out part.

    python -m ba_jax.evaluate --config=configs/eval.py:nano --out=DIR \
        --checkpoint=runs/tokenizer,runs/flow,runs/stage2 --suite=asr,qa_s2t,qa_s2s,tts

  arg           data                                       waves by
  nano          the closed part of the embedded corpus     Griffin-Lim (no vocoder is trained)
  nano_whisper  the same                                   Griffin-Lim
  1b5, 7b       the same                                   the vocoder

`ba_jax.evals.settings.EvalSettings` documents the keys of `eval`. `--config.eval.dataset=DIR` and
`--config.eval.split=validation` set the data, `--config.eval.generation.audio.temperature=0.3` the
choice of codes. A prompt longer than `generation.lengths` or speech longer than
`generation.max_frames` fails and counts as wrong; longer limits cost time on every step. A dataset
made by `ba_jax.corpora`, LibriSpeech for example:

    --config.eval.dataset=DIR --config.eval.split=test_clean '--config.eval.sources=()' \
    '--config.eval.encode_seconds=(5., 15., 30.)' '--config.eval.generation.lengths=(128, 512)'

`mesh` lays the model out over a host's devices as in training, or over those of all hosts:

    --distributed --coordinator=HOST:PORT --processes=N --process=I --config.hosts=together \
    --config.mesh.replica=1 --config.mesh.fsdp=-1
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from ba_jax.evals.settings import EvalSettings
from ba_jax.sampling.alternate import AUDIO
from configs import common, models

ARGUMENTS = ("nano", "nano_whisper", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The evaluation's config.

    Raises:
      ConfigError: for an unknown size.
    """
    nano = common.choose(size, ARGUMENTS).startswith("nano")
    settings = EvalSettings(
        dataset="embedded",
        split="test",
        sources=("closed",),
        tokenizer="embedded" if nano else "datasets/tokenizer",
        # Nano models are trained so (configs/mixtures.py): endings are scored below the transcript.
        transcribe_first=nano,
        # The same for speech: text and speech in turns, a word (or character) at a time.
        tts_words_per_turn=1 if nano else 0,
        # Closed sentences last 3.25 s at most.
        encode_seconds=(3.5,) if nano else (5.0, 15.0, 30.0),
    )
    evaluation = ConfigDict(dataclasses.asdict(settings))
    evaluation.generation.update(
        {
            # The release's. A nano model, trained on some minutes of its voice, has fewer word
            # errors when greedy and without the penalty: a vowel held for three frames repeats
            # codes, and small codebooks have no synonyms.
            "audio": common.sampling(0.0, 5, 0.85) if nano else dataclasses.asdict(AUDIO),
            "rows": 64 if nano else 16,
            "lengths": (64,) if nano else (128, 512),
            "max_text": 48 if nano else 256,
            "max_frames": 64 if nano else 376,
            # Nano models learn to speak so (configs/lm_stage2.py).
            "feedback_codebooks": 1 if nano else 0,
        }
    )
    evaluation.synthesis.update(common.synthesis(nano, 376))
    return ConfigDict(
        {
            "model": models.get_config(size),
            "eval": evaluation,
            # "apart": several hosts share the items, each with a mesh of its own devices.
            # "together": they share one mesh, for a model larger than one host's memory, and all
            # work on every item.
            "hosts": "apart",
            "mesh": {"replica": -1, "fsdp": 1, "tensor": 1},
            # Folder of XLA's compiled programs; "" switches it off.
            "compilation_cache": "~/.cache/ba_jax/jax",
        }
    )
