"""Training data of each stage: the `data` sections of the stages' configs.

    --config=configs/mixtures.py:NAME          the names are at the end of this file

`data.mixture` names the members. Each is a dataset (a folder that `python -m ba_jax.corpora` wrote,
or "embedded", the corpus in this repository) with a task; `data.folder`, if set, is the parent
folder of the datasets. Weights are shares of `data.unit`. Change a weight with
`--config.data.mixture.asr.weight=2`, leave a member out with weight 0, and look at the result with
`python -m ba_jax.data.show --config=configs/lm_stage2.py:nano --summary`.

The large mixtures read codes that the audio tokenizer has written into the datasets
(`data.audio = "codes"`, `python -m ba_jax.corpora.tokenize`), one dataset per task.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from ba_jax.config import ConfigError, expected
from ba_jax.data.augment import Augmentation

# Paper, Table 4, in thousand hours.
PAPER_KILOHOURS = {
    "asr": 185.0,
    "aqa": 21.0,
    "s2tt": 15.0,
    "intlv": 393.0,
    "tts": 51.0,
    "itts": 142.0,
    "audio": 80.0,
}
# Share of positions in text-only rows, which keep the language ability; not given in the paper.
TEXT_SHARE = 0.2


# Data in a folder of datasets, with a tokenizer of their own and cached record counts.
_COUNTED = {"folder": "datasets", "index_cache": "datasets/index", "index_workers": 16}
_LARGE = {"tokenizer": "datasets/tokenizer", **_COUNTED}


def get_config(name: str = "lm_nano") -> ConfigDict:
    """A `data` section.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in MIXTURES:
        raise ConfigError(f"mixture {expected(name, sorted(MIXTURES))}")
    return ConfigDict(MIXTURES[name]())


def _common(kind: str, mixture: dict) -> dict:
    return {
        "kind": kind,
        "mixture": mixture,
        "augmentation": dataclasses.asdict(Augmentation()),
        "seed": 0,
        "on_error": "fail",
        "index_cache": "",
        "index_workers": 0,
    }


def _packed(
    mixture: dict, row_length: int, rows: int, audio: str = "codes", buckets: tuple = (), **options
) -> dict:
    """Data of packed rows; the embedded corpus' tokenizer by default."""
    return _common("packed", mixture) | {
        "tokenizer": "embedded",
        "row_length": row_length,
        "rows": rows,
        "unit": "tokens",
        "audio": audio,
        "buckets": list(buckets),
        **options,
    }


def _member(dataset: str, task: str, weight: float, **options) -> dict:
    return {"dataset": dataset, "task": task, "weight": weight, "split": "train", **options}


def _text_nano() -> dict:
    """The embedded corpus' text: sentences, and written questions with written answers."""
    mixture = {
        "text": _member("embedded", "text", 1.0),
        "written": _member("embedded", "sft", 3.0, questions="written", answers="written"),
        # The spoken tasks with text in place of speech: a large language model can repeat,
        # translate and answer text before it learns to hear.
        "asr": _member("embedded", "asr", 2.0, turn="any", questions="written"),
        "aqa": _member("embedded", "aqa", 1.0, questions="written"),
        "s2tt": _member("embedded", "s2tt", 1.0, turn="any", questions="written"),
    }
    return _packed(mixture, row_length=128, rows=16)


TARGETS = ("hifigan_mel", "coarse_mel")
"""Targets of the audio decoder, at two scales."""


def _tokenizer_nano() -> dict:
    """All speech of the embedded corpus with its text and the audio decoder's mels."""
    mixture = {
        "asr": _member("embedded", "asr", 3.0, turn="any"),
        "answers": _member("embedded", "asr", 1.0, turn="assistant"),
        "aqa": _member("embedded", "aqa", 1.5),
        "s2tt": _member("embedded", "s2tt", 0.5),
        "intlv": _member("embedded", "intlv", 0.3),
    }
    # Utterances last 1.7 s on average and 3.9 s at most; those longer than the bucket are encoded
    # in two chunks.
    buckets = [{"seconds": 2.6, "count": 5}]
    return _packed(mixture, 256, 2, "features", buckets, targets=TARGETS)


def _tokenizer() -> dict:
    """The paper's tasks with text loss, as recordings with the audio decoder's mels."""
    tasks = ("asr", "aqa", "s2tt", "intlv")
    mixture = {task: _member(task, task, PAPER_KILOHOURS[task]) for task in tasks}
    buckets = [
        {"seconds": 5.0, "count": 16},
        {"seconds": 15.0, "count": 6},
        {"seconds": 30.0, "count": 2},
    ]
    return _packed(mixture, 2048, 256, "features", buckets, targets=TARGETS, **_LARGE) | {
        "unit": "hours"
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
    # Per row of 512 positions. Closed-vocabulary sentences last about 2 s.
    buckets = [
        {"seconds": 3.0, "count": 12},
        {"seconds": 6.0, "count": 6},
        {"seconds": 15.0, "count": 2},
    ]
    return _packed(mixture, 512, 8, "features", buckets)


def _lm_plain_nano() -> dict:
    """lm_nano from codes of one copy of the corpus."""
    options = {"audio": "codes", "buckets": [], "folder": "runs/codes"}
    return _lm_nano() | options


def _lm_codes_nano() -> dict:
    """lm_nano from codes, which `ba_jax.corpora.tokenize` wrote into copies of the corpus.

    Speech input comes at three speeds, from one copy each (`--speed`).
    """
    mixture = {
        **_at_all_speeds("asr", "asr", 5.0, turn="any"),
        "asr_answers": _member("embedded", "asr", 1.0, turn="assistant"),
        # Words and phrases of a sentence in any order, so that the model cannot guess them.
        **{
            f"shuffled_{order}": _member(
                _SPEEDS[order % 3], "asr", 1.0, turn="any", pieces=1 + order % 2, order=order
            )
            for order in range(6)
        },
        # Recognition and synthesis word by word: sentences take far longer to align.
        **_at_all_speeds("words", "iasr", 3.0, turn="any", pieces=1),
        "answer_words": _member("embedded", "iasr", 1.0, turn="assistant", pieces=1),
        "phrases": _member("embedded", "iasr", 2.0, turn="any", pieces=3),
        # Answers begin with a transcript of the question.
        **_at_all_speeds("aqa", "aqa", 5.0, transcribe_first=True),
        # Questions of spoken and written words, so that knowledge about one transfers to the other.
        **{
            f"mixed_{order}": _member(
                _SPEEDS[order % 3],
                "aqa",
                0.5,
                questions="mixed",
                pieces=1,
                order=order,
                transcribe_first=True,
            )
            for order in range(6)
        },
        "s2tt": _member("embedded", "s2tt", 0.2),
        "intlv": _member("embedded", "intlv", 0.2),
        # Only the assistant's voice: a few minutes of speech teach one voice, not twenty.
        "tts": _member("embedded", "tts", 0.5, turn="any", speakers=ASSISTANT),
        **_IN_TURNS,
        "itts": _member("embedded", "itts", 0.2),
        "audio": _member("embedded", "audio", 0.2),
        "text": _member("embedded", "text", 0.5),
        "written": _member("embedded", "sft", 1.5, questions="written", answers="written"),
        "spoken": _member(
            "embedded", "sft", 5.0, questions="spoken", answers="spoken", transcribe_first=True
        ),
    }
    return _packed(mixture, row_length=256, rows=8, folder="runs/codes")


# The assistant's voices in the embedded corpus, English and Mandarin.
ASSISTANT = ("af_heart", "zf_xiaoxiao")
# Text and speech in turns. The encoder hears the whole recording, so the codes of a piece reveal
# the next ones, and a model trained on them continues from the codes, whatever the text says. So
# each piece comes from another recording (`configs/prepare.py:spliced`, of one or two words), and
# the model must read the text.
_IN_TURNS = {
    f"said_{name}": _member(
        dataset, "itts", weight, turn="any", pieces=pieces, fully_conditioned=True
    )
    for name, dataset, pieces, weight in (
        ("words", "spliced_1", 1, 5.0),
        ("two_words", "spliced_1", 2, 5.0),
        ("pairs", "spliced_2", 2, 6.0),
    )
}
_SPEEDS = ("embedded", "embedded_slow", "embedded_fast")


def _at_all_speeds(name: str, task: str, weight: float, **options) -> dict:
    """A member for each speed ("asr", "asr_slow", "asr_fast"); they share the weight."""
    return {
        dataset.replace("embedded", name): _member(dataset, task, weight / 3, **options)
        for dataset in _SPEEDS
    }


def said_in_turns(split: str) -> ConfigDict:
    """Member of the assistant's recordings of a split: text and speech in turns, word by word."""
    options = {"turn": "any", "pieces": 1, "fully_conditioned": True, "speakers": ASSISTANT}
    return ConfigDict(_member("embedded", "itts", 6.0, **options) | {"split": split})


def _lm_words_nano() -> dict:
    """Single words first: without alignment to learn, the content of a frame is learnt soon."""
    nano = _lm_codes_nano()
    weights = {
        "words": 2.0,
        "words_slow": 2.0,
        "words_fast": 2.0,
        "answer_words": 2.0,
        "phrases": 2.0,
        **dict.fromkeys(_IN_TURNS, 2.5),
        "written": 0.7,
        "text": 0.3,
    }
    mixture = {name: nano["mixture"][name] | {"weight": w} for name, w in weights.items()}
    return nano | {"mixture": mixture}


def _sft() -> dict:
    """Instructions, spoken and written, answered in text and in speech (paper 3.3.2)."""
    mixture = {
        "spoken": _member("sft", "sft", 0.5, questions="spoken", answers="spoken"),
        "heard": _member("sft", "sft", 0.3, questions="spoken", answers="written"),
        "written": _member("sft", "sft", 0.2, questions="written", answers="written"),
    }
    return _packed(mixture, row_length=4096, rows=64, **_LARGE)


def _sft_nano() -> dict:
    """The embedded corpus' dialogues, as codes."""
    nano = _lm_codes_nano()
    mixture = {
        "spoken": nano["mixture"]["spoken"] | {"weight": 0.5},
        "heard": _member("embedded", "sft", 0.3, questions="spoken", transcribe_first=True),
        "written": nano["mixture"]["written"] | {"weight": 0.2},
    }
    return nano | {"mixture": mixture}


def _lm() -> dict:
    """The paper's mixture (Table 4) and text, as shares of positions."""
    frames = {task: hours * 3600 * 12.5 for task, hours in PAPER_KILOHOURS.items()}
    total = sum(frames.values())
    mixture = {
        task: _member(task, task, (1 - TEXT_SHARE) * share / total)
        for task, share in frames.items()
    }
    mixture["text"] = _member("text", "text", TEXT_SHARE)
    return _packed(mixture, row_length=4096, rows=256, **_LARGE)


def _audio(dataset: str, buckets: list[dict], **options) -> dict:
    mixture = {"all": _member(dataset, "audio", 1.0)}
    return _common("audio", mixture) | {"buckets": buckets, "crop": False, **options}


def _audio_nano() -> dict:
    """Clips of all speech of the embedded corpus."""
    return _audio(
        "embedded",
        [
            {"seconds": 2.0, "count": 24},
            {"seconds": 4.0, "count": 12},
            {"seconds": 15.0, "count": 4},
        ],
        features=("wave", "whisper_mel", "hifigan_mel", "coarse_mel", "flow_mel"),
    )


def _vocoder_nano() -> dict:
    """Random windows of 0.64 s from the embedded corpus."""
    return _audio(
        "embedded",
        [{"seconds": 0.64, "count": 8}],
        crop=True,
        features=("wave", "flow_mel"),
    )


def _vocoder() -> dict:
    """Random windows of one second."""
    return {"folder": "datasets"} | _audio(
        "audio",
        [{"seconds": 1.0, "count": 128}],
        crop=True,
        features=("wave", "flow_mel"),
    )


def _flow_nano() -> dict:
    """Clips of the assistant's speech in the embedded corpus, with the flow decoder's mels.

    Only the assistant's voices, one per language: a few minutes of speech teach two voices, not
    forty.
    """
    buckets = [{"seconds": 2.24, "count": 12}]  # longer than 95 % of the clips
    features = ("codes", "hifigan_mel", "coarse_mel", "flow_mel")
    data = {"folder": "runs/codes"} | _audio("embedded", buckets, features=features)
    data["mixture"]["all"]["speakers"] = ASSISTANT
    return data


def _audio_large() -> dict:
    """Clips of up to 30 s."""
    buckets = [
        {"seconds": 5.0, "count": 384},
        {"seconds": 10.0, "count": 192},
        {"seconds": 20.0, "count": 96},
        {"seconds": 30.0, "count": 64},
    ]
    features = ("whisper_mel", "flow_mel")
    return _audio("audio", buckets, features=features, **_COUNTED)


MIXTURES = {
    "text_nano": _text_nano,
    "tokenizer_nano": _tokenizer_nano,
    "tokenizer": _tokenizer,
    "flow_nano": _flow_nano,
    "vocoder_nano": _vocoder_nano,
    "vocoder": _vocoder,
    "lm_nano": _lm_nano,
    "lm_plain_nano": _lm_plain_nano,
    "lm_codes_nano": _lm_codes_nano,
    "lm_words_nano": _lm_words_nano,
    "lm": _lm,
    "sft_nano": _sft_nano,
    "sft": _sft,
    "audio_nano": _audio_nano,
    "audio": _audio_large,
}
ARGUMENTS = tuple(MIXTURES)
