"""What `python -m ba_jax.corpora` makes datasets from.

    --config=configs/prepare.py:KIND --config.source.folder=/data/CORPUS --out=/data/records/CORPUS

  kind           what it needs, and what it is
  embedded       nothing: the corpus in the package, made from packages; --size=large makes hours
  manifest       source.path: a JSONL file, one utterance or dialogue a line
  librispeech    source.folder: LibriSpeech/, with train-clean-100/ and others in it
  libritts       source.folder: LibriTTS/ or LibriTTS_R/, with train-clean-100/ and others in it
  ljspeech       source.folder: LJSpeech-1.1/, with metadata.csv and wavs/
  aishell        source.folder: data_aishell/, with wav/ (archives unpacked) and transcript/
  wenetspeech    source.folder: the one with WenetSpeech.json and audio/
  fleurs         source.folder: the one with en_us/ and cmn_hans_cn/
  common_voice   source.folder: cv-corpus-.../en, with train.tsv and clips/
  covost2        source.folder: Common Voice 4 of the language spoken, with covost_v2....tsv
  text           source.path: a text file, or a folder of .txt files
  crawl          source.path: long recordings, cut into interleaved speech and text
  synthetic      source.path: text, spoken by synthetic voices
  spliced        source.dataset: a folder with codes, whose words are put together anew

`source` has the fields of the kind's class (`ba_jax.corpora.sources.registry.SOURCES`), with its
defaults, and `source.audio` what clips are taken and how they are stored. Beside it,
`items_per_shard` items make one file of records, and the run fails if more than `max_rejected` (a
share) of everything is rejected.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from ba_jax.corpora.sources.registry import SOURCES, source_class

ARGUMENTS = tuple(SOURCES)
# What is not as for the other kinds.
CHANGES: dict[str, dict[str, Any]] = {
    # An item is a long recording with its segments, some hundreds of records, ...
    "wenetspeech": {"items_per_shard": 4},
    # ... a long recording of which every silence and every lost piece is counted, ...
    "crawl": {"items_per_shard": 1, "max_rejected": 1.0},
    # ... some three minutes of speech to be made, of which single sentences are lost, ...
    "synthetic": {"items_per_shard": 8, "max_rejected": 1.0},
    # ... or a paragraph. Of a whole voice, what cannot be cut is a rejection.
    "text": {"items_per_shard": 10_000},
    "spliced": {"items_per_shard": 1000, "max_rejected": 1.0},
}


def get_config(kind: str = "embedded") -> ConfigDict:
    """The config of a kind, keyed like `ba_jax.corpora.runner.PrepareConfig`.

    Raises:
      ValueError: for an unknown kind.
    """
    config = {"kind": kind, "items_per_shard": 256, "max_rejected": 0.5}
    config["source"] = _defaults(source_class(kind))
    return ConfigDict(config | CHANGES.get(kind, {}))


def _defaults(cls: type) -> dict[str, Any]:
    """A dataclass's defaults; "" for a text without one: it has to be given."""
    values = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = "" if field.default is dataclasses.MISSING else field.default
        values[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return values
