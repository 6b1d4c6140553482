"""Configs of `python -m ba_jax.corpora`, which makes datasets.

    --config=configs/prepare.py:KIND --config.source.folder=/data/CORPUS --out=/data/records/CORPUS

  kind           required value, and the corpus
  embedded       nothing: the corpus in the package, made from packages; --size=large makes hours
  manifest       source.path: a JSONL file, an utterance or dialogue per line
  librispeech    source.folder: LibriSpeech/, which has train-clean-100/ and others in it
  libritts       source.folder: LibriTTS/ or LibriTTS_R/, which has train-clean-100/ and others
  ljspeech       source.folder: LJSpeech-1.1/, with metadata.csv and wavs/
  aishell        source.folder: data_aishell/, with wav/ (archives unpacked) and transcript/
  wenetspeech    source.folder: contains WenetSpeech.json and audio/
  fleurs         source.folder: contains en_us/ and cmn_hans_cn/
  common_voice   source.folder: cv-corpus-.../en, with train.tsv and clips/
  covost2        source.folder: Common Voice 4 of the spoken language, with covost_v2....tsv
  text           source.path: a text file, or a folder of .txt files
  crawl          source.path: long recordings, cut into interleaved speech and text
  synthetic      source.path: text, spoken by synthetic voices
  instructions   source.path: a JSONL file of questions and answers, spoken as dialogues
  spliced        source.dataset: a folder with codes, whose words are recombined

`source` has the fields of the kind's class (`ba_jax.corpora.runner.SOURCES`) with its defaults, and
`source.audio` the accepted clips and their coding. `items_per_shard` items make a file of records,
and the run fails if more than `max_rejected` (a share) of everything is rejected.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from ba_jax.config import ConfigError, expected
from ba_jax.corpora.runner import SOURCES, PrepareConfig

ARGUMENTS = tuple(SOURCES)
# Values that differ from the defaults of PrepareConfig.
CHANGES: dict[str, dict[str, Any]] = {
    # An item is a long recording with its segments, some hundreds of records.
    "wenetspeech": {"items_per_shard": 4},
    # An item is a long recording of which every silence and every lost piece is counted.
    "crawl": {"items_per_shard": 1, "max_rejected": 1.0},
    # An item is some three minutes of synthetic speech, which may lose single sentences.
    "synthetic": {"items_per_shard": 8, "max_rejected": 1.0},
    # Selection and checks may leave a small part of the instructions.
    "instructions": {"items_per_shard": 32, "max_rejected": 1.0},
    "text": {"items_per_shard": 10_000},
    # Every utterance of a voice that cannot be cut is a rejection.
    "spliced": {"items_per_shard": 1000, "max_rejected": 1.0},
}


def get_config(kind: str = "embedded") -> ConfigDict:
    """The config of a kind, keyed like `ba_jax.corpora.runner.PrepareConfig`.

    Raises:
      ConfigError: for an unknown kind.
    """
    if kind not in SOURCES:
        raise ConfigError(f"kind {expected(kind, ARGUMENTS)}")
    values = _defaults(PrepareConfig) | {"kind": kind, "source": _defaults(SOURCES[kind])}
    return ConfigDict(values | CHANGES.get(kind, {}))


def _defaults(cls: type) -> dict[str, Any]:
    """A dataclass's defaults; "" for a required field."""
    values = {}
    for field in dataclasses.fields(cls):
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = "" if field.default is dataclasses.MISSING else field.default
        values[field.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return values
