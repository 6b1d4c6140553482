"""Evaluation of a model on a dataset's held-out part.

    python -m ba_jax.evaluate --config=configs/eval.py:nano --out=DIR \
        --checkpoint=runs/tokenizer,runs/flow,runs/stage2 --suite=asr,qa_s2t,qa_s2s,tts

  arg           data                                       waves by
  nano          the closed part of the embedded corpus     Griffin-Lim (no vocoder is trained)
  nano_whisper  the same                                   Griffin-Lim
  1b5, 7b       the same                                   the vocoder

Change what is evaluated on with `--config.eval.dataset=DIR`, `--config.eval.split=validation`, how
ids and codes are chosen with `--config.eval.generation.audio.temperature=0.3`. What is longer than
`generation.lengths` and `generation.max_frames` allow fails and counts as wrong; more room costs
time on every step. A dataset that `ba_jax.corpora` made, LibriSpeech say:

    --config.eval.dataset=DIR --config.eval.split=test_clean '--config.eval.sources=()' \
    '--config.eval.encode_seconds=(5., 15., 30.)' '--config.eval.generation.lengths=(128, 512)'

`mesh` lays the model out over a host's devices as in training, or over those of all hosts:

    --distributed --coordinator=HOST:PORT --processes=N --process=I --config.hosts=together \
    --config.mesh.replica=1 --config.mesh.fsdp=-1
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import common, models

ARGUMENTS = ("nano", "nano_whisper", "1b5", "7b")


def get_config(size: str = "nano") -> ConfigDict:
    """The evaluation's config.

    Raises:
      ValueError: for an unknown size.
    """
    if size not in ARGUMENTS:
        raise ValueError(f"size {size!r}: expected one of {ARGUMENTS}")
    nano = size.startswith("nano")
    return ConfigDict(
        {
            "model": models.get_config(size),
            "eval": {
                "dataset": "embedded",
                "split": "test",
                "sources": ("closed",),
                "tokenizer": "embedded" if nano else "datasets/tokenizer",
                "limit": 0,
                "seed": 0,
                # As the nano models are trained (configs/mixtures.py): cloze_s2t and the like score
                # endings below the transcript that the model writes.
                "transcribe_first": nano,
                # The same of speech: text and speech in turns, a word (or character) at a time.
                "tts_words_per_turn": 1 if nano else 0,
                "encode_rows": 16,
                # Closed sentences last 3.25 s at most.
                "encode_seconds": (3.5,) if nano else (5.0, 15.0, 30.0),
                "generation": {
                    "text": common.sampling(0.0, 0, 1.0),
                    # The release's, without its penalty of 1.3: a vowel held for three frames
                    # repeats codes, and small codebooks have no synonyms. A nano model, whose
                    # voice is some minutes, says fewer wrong words without drawing.
                    "audio": common.sampling(0.0 if nano else 0.5, 5, 0.85),
                    "rows": 64 if nano else 16,
                    "lengths": (64,) if nano else (128, 512),
                    "max_text": 48 if nano else 256,
                    "max_frames": 64 if nano else 376,
                    # As the nano models learn to speak (configs/lm_stage2.py).
                    "feedback_codebooks": 1 if nano else 0,
                },
                "synthesis": common.synthesis(nano, 376),
                "judge": {"processes": 2, "beam": 1},
                # Folders of downloads, see ba_jax/evals/benchmarks; "" for none.
                "benchmarks": {
                    "openaudiobench": "",
                    "voicebench": "",
                    "s2sbench": "",
                    "cmmlu": "",
                    "story_cloze": "",
                    "spoken_story_cloze": "",
                    "subsets": (),
                    "limit": 0,
                    "style": "sft",
                },
                # Who judges open answers: "rules", or "http", an OpenAI-compatible endpoint.
                "verdict": {
                    "kind": "rules",
                    "base_url": "",
                    "model": "",
                    "key_variable": "",
                    "timeout": 60.0,
                    "retries": 3,
                    "backoff": 1.0,
                    "concurrency": 4,
                    "give_up": 8,
                    "max_tokens": 16,
                },
                "save_every": 64,
            },
            # "apart": several hosts share the items, each has a mesh of its own devices.
            # "together": they share one mesh, for a model larger than one host's memory, and all do
            # every item.
            "hosts": "apart",
            "mesh": {"replica": -1, "fsdp": 1, "tensor": 1},
            # Of XLA's compiled programs; "" leaves it off.
            "compilation_cache": "~/.cache/ba_jax/jax",
        }
    )
