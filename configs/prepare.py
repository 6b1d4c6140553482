"""What `python -m ba_jax.data.prepare` makes datasets from.

    --config=configs/prepare.py:KIND --config.source.folder=/data/CORPUS --out=/data/records/CORPUS

  kind           source.folder (or .path)
  embedded       none: the corpus in the package, made from packages; --size=large makes hours
  manifest       source.path: a JSONL file, one utterance or dialogue a line
  librispeech    LibriSpeech/, with train-clean-100/ and others in it
  libritts       LibriTTS/ or LibriTTS_R/, with train-clean-100/ and others in it
  ljspeech       LJSpeech-1.1/, with metadata.csv and wavs/
  aishell        data_aishell/, with wav/ (its archives unpacked) and transcript/
  wenetspeech    the folder with WenetSpeech.json and audio/
  fleurs         the folder with en_us/ and cmn_hans_cn/
  common_voice   cv-corpus-.../en, with train.tsv and clips/
  covost2        Common Voice 4 of the language spoken, with the covost_v2....tsv files
  text           source.path: a text file, or a folder of .txt files
  crawl          long recordings, cut into interleaved speech and text
  synthetic      text, spoken by synthetic voices

Beside `source`: `items_per_shard` items make one file of records, and the run fails if more than
`max_rejected` (a share) of everything is rejected.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def get_config(kind: str = "embedded") -> ConfigDict:
    """The config of a kind, keyed like `ba_jax.data.prepare.runner.PrepareConfig`.

    Raises:
      ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: expected one of {sorted(KINDS)}")
    config = {"items_per_shard": 256, "max_rejected": 0.5, **KINDS[kind]()}
    return ConfigDict({"kind": kind, **config})


def _audio(**changes) -> dict:
    """Keyed like `ba_jax.data.prepare.clips.AudioConfig`."""
    return {
        "coding": "opus",
        "min_seconds": 0.1,
        "max_seconds": 600.0,
        "max_bytes": 1 << 28,
        **changes,
    }


def _folder(**fields) -> dict:
    return {"source": {"folder": "", "audio": _audio(), **fields}}


def _embedded() -> dict:
    return {"source": {"size": "embedded"}}


def _manifest() -> dict:
    return _folder(
        path="",
        name="manifest",
        description="Made from a JSONL manifest.",
        licence="",
        language="en",
        split="train",
        needs_text=True,
        allow_absolute=False,
        extra_keys=False,
    )


def _librispeech() -> dict:
    return _folder(parts=(), case="lower")


def _libritts() -> dict:
    return _folder(parts=(), text="normalized")


def _ljspeech() -> dict:
    return _folder(text="normalized")


def _aishell() -> dict:
    return _folder(splits=("train", "dev", "test"))


def _wenetspeech() -> dict:
    # An item is a long recording with its segments: some hundreds of records.
    return {"items_per_shard": 4, **_folder(subset="L")}


def _fleurs() -> dict:
    return _folder(languages=("en_us", "cmn_hans_cn"), splits=("train", "dev", "test"))


def _common_voice() -> dict:
    return _folder(language="", splits=("test", "dev", "train"))


def _covost2() -> dict:
    return _folder(translations="", spoken="en", written="zh-CN", splits=("test", "dev", "train"))


def _text() -> dict:
    return {
        "items_per_shard": 10_000,
        "source": {
            "path": "",
            "name": "text",
            "description": "Plain text.",
            "licence": "",
            "language": "en",
            "split": "train",
            "paragraphs": "blank_line",
            "max_characters": 20_000,
        },
    }


KINDS = {
    "embedded": _embedded,
    "manifest": _manifest,
    "librispeech": _librispeech,
    "libritts": _libritts,
    "ljspeech": _ljspeech,
    "aishell": _aishell,
    "wenetspeech": _wenetspeech,
    "fleurs": _fleurs,
    "common_voice": _common_voice,
    "covost2": _covost2,
    "text": _text,
    # crawl and synthetic go here, one function each.
}
