"""What each stage is trained on: the `data` sections of the stages' configs.

    --config=configs/mixtures.py:NAME          lm_nano, lm, audio_nano, audio

`data.mixture` names the members; each is a dataset (a folder that `python -m ba_jax.data.prepare`
made, or "embedded", the corpus in this tree) and a task. Weights are shares of `data.unit`. Change
one with `--config.data.mixture.asr.weight=2`, leave one out with weight 0, look at it all with
`python -m ba_jax.data.show --config=configs/lm_stage2.py:nano --summary`.

The large mixtures read codes that the audio tokenizer has written into the datasets
(`data.audio = "codes"`), under one folder: `--config.data.mixture.asr.dataset=DIR` for each, or
links in ./datasets.
"""

from __future__ import annotations

from ml_collections import ConfigDict

# Paper, Table 4, in thousand hours; text-only data is there to keep the language ability.
PAPER_KILOHOURS = {
    "asr": 185.0,
    "aqa": 21.0,
    "s2tt": 15.0,
    "intlv": 393.0,
    "tts": 51.0,
    "itts": 142.0,
    "audio": 80.0,
}
# Share of positions without any audio; the paper gives none.
TEXT_SHARE = 0.2


def get_config(name: str = "lm_nano") -> ConfigDict:
    """A `data` section.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in MIXTURES:
        raise ValueError(f"mixture {name!r}: expected one of {sorted(MIXTURES)}")
    return ConfigDict(MIXTURES[name]())


def _common(kind: str, mixture: dict) -> dict:
    return {
        "kind": kind,
        "mixture": mixture,
        "augmentation": {
            "speeds": (1.0,),
            "noise_probability": 0.0,
            "noise_snr_db": (10.0, 40.0),
            "time_masks": 0,
            "max_time_mask": 40,
            "mel_masks": 0,
            "max_mel_mask": 20,
        },
        "seed": 0,
        "on_error": "fail",
        "index_cache": "",
        "index_workers": 0,
    }


def _member(dataset: str, task: str, weight: float, **options) -> dict:
    return {"dataset": dataset, "task": task, "weight": weight, "split": "train", **options}


def _text_nano() -> dict:
    """The embedded corpus' text: sentences, and written questions with written answers."""
    mixture = {
        "text": _member("embedded", "text", 1.0),
        "written": _member("embedded", "sft", 2.0, questions="written", answers="written"),
    }
    return _common("packed", mixture) | {
        "tokenizer": "embedded",
        "row_length": 128,
        "rows": 16,
        "unit": "tokens",
        "audio": "codes",
        "buckets": [],
    }


def _tokenizer_nano() -> dict:
    """All speech of the embedded corpus that has text beside it, with the decoder's mels."""
    mixture = {
        "asr": _member("embedded", "asr", 3.0, turn="any"),
        "aqa": _member("embedded", "aqa", 1.5),
        "answers": _member("embedded", "asr", 1.0, turn="assistant"),
        "s2tt": _member("embedded", "s2tt", 0.5),
        "intlv": _member("embedded", "intlv", 0.3),
    }
    return _common("packed", mixture) | {
        "tokenizer": "embedded",
        "row_length": 256,
        "rows": 4,
        "unit": "tokens",
        "audio": "features",
        "targets": ("hifigan_mel",),
        # Per row of 256 positions.
        "buckets": [
            {"seconds": 2.0, "count": 5},
            {"seconds": 4.0, "count": 3},
            {"seconds": 12.0, "count": 1},
        ],
    }


def _lm_nano() -> dict:
    """All nine tasks from the embedded corpus, tokenised in the training step."""
    weights = {
        "asr": 3.0,
        "aqa": 3.0,
        "s2tt": 1.0,
        "intlv": 1.0,
        "tts": 2.0,
        "itts": 1.0,
        "audio": 0.5,
        "text": 2.0,
    }
    mixture = {task: _member("embedded", task, weight) for task, weight in weights.items()}
    mixture["spoken_answers"] = _member(
        "embedded", "sft", 3.0, questions="spoken", answers="spoken"
    )
    return _common("packed", mixture) | {
        "tokenizer": "embedded",
        "row_length": 512,
        "rows": 8,
        "unit": "tokens",
        "audio": "features",
        # Per row of 512 positions. Closed-vocabulary sentences last about 2 s.
        "buckets": [
            {"seconds": 3.0, "count": 12},
            {"seconds": 6.0, "count": 6},
            {"seconds": 15.0, "count": 2},
        ],
    }


def _lm() -> dict:
    """The paper's mixture (Table 4) by hours of speech, and text, all as shares of positions."""
    frames = {task: hours * 3600 * 12.5 for task, hours in PAPER_KILOHOURS.items()}
    total = sum(frames.values())
    mixture = {
        task: _member(f"datasets/{task}", task, (1 - TEXT_SHARE) * share / total)
        for task, share in frames.items()
    }
    mixture["text"] = _member("datasets/text", "text", TEXT_SHARE)
    return _common("packed", mixture) | {
        "tokenizer": "datasets/tokenizer",
        "row_length": 4096,
        "rows": 256,
        "unit": "tokens",
        "audio": "codes",
        "buckets": [],
        "index_cache": "datasets/index",
        "index_workers": 16,
    }


def _audio(dataset: str, buckets: list[dict], **options) -> dict:
    mixture = {"all": _member(dataset, "audio", 1.0)}
    return _common("audio", mixture) | {"buckets": buckets, "crop": False, **options}


def _audio_nano() -> dict:
    """All speech of the embedded corpus, in clips."""
    return _audio(
        "embedded",
        [
            {"seconds": 2.0, "count": 24},
            {"seconds": 4.0, "count": 12},
            {"seconds": 15.0, "count": 4},
        ],
        features=("wave", "whisper_mel", "hifigan_mel", "flow_mel"),
    )


def _audio_large() -> dict:
    """Clips of up to 30 s."""
    return _audio(
        "datasets/audio",
        [
            {"seconds": 5.0, "count": 384},
            {"seconds": 10.0, "count": 192},
            {"seconds": 20.0, "count": 96},
            {"seconds": 30.0, "count": 64},
        ],
        features=("whisper_mel", "hifigan_mel", "flow_mel"),
    ) | {"index_cache": "datasets/index", "index_workers": 16}


MIXTURES = {
    "text_nano": _text_nano,
    "tokenizer_nano": _tokenizer_nano,
    "lm_nano": _lm_nano,
    "lm": _lm,
    "audio_nano": _audio_nano,
    "audio": _audio_large,
}
