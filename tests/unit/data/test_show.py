"""Output of `show` for one example of every task: tokens, codes, text and the loss mask.

The goldens in tests/data/show pin the loss masks too. After a change that is meant, write them
anew:

    python -m tests.unit.data.test_show
"""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest

from ba_jax.corpora.make_tokenizer import train_sentencepiece
from ba_jax.data.batches import open_batches
from ba_jax.data.sequence import to_sequence
from ba_jax.data.show import find_example, format_summary, render
from ba_jax.data.tasks import Recording, make_example
from ba_jax.data.text_tokenizer import TextTokenizer
from configs import models
from tests.unit.data import small_corpus

GOLDENS = pathlib.Path(__file__).parents[2] / "data" / "show"
SIZES = (512, 256, 128, 64, 64, 64, 64, 64)


def codes(frames: int) -> np.ndarray:
    return np.arange(frames)[:, None] + np.arange(8)


HEARD = Recording(b"OggS", 0.4, 5)
EXAMPLES = {
    "asr": ((HEARD, "天空是蓝色的"), "zh"),
    "aqa": ((codes(3), "five"), "en"),
    "s2tt": ((HEARD, "天空是蓝色的"), "en"),
    "intlv": ((["two and three", codes(2), "is five"],), "en"),
    "tts": (("the sky is blue", codes(9)), "en"),
    "itts": ((["two and three", codes(2), "is five", codes(2)],), "en"),
    "audio": ((codes(4),), "zh"),
    "text": (("二加三等于五",), "zh"),
    "sft": (
        (
            [
                ("system", ["be brief"]),
                ("user", [codes(2)]),
                ("assistant", ["two and three is five", codes(3)]),
                ("user", ["come in, please"]),
                ("assistant", ["the sky is blue"]),
            ],
        ),
        "en",
    ),
}


def rendered(task: str, tokenizer: TextTokenizer, **options) -> str:
    values, language = EXAMPLES[task]
    example = make_example(task, *values, id="7", language=language, speaker="ann", source="test")
    return render(example, to_sequence(example, tokenizer, SIZES), tokenizer, **options)


def make_tokenizer(folder: pathlib.Path) -> TextTokenizer:
    texts = [*small_corpus.TEXTS["en"], *small_corpus.TEXTS["zh"], "be brief"]
    return train_sentencepiece([text for text in texts for _ in range(5)], folder / "m.model", 400)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("show"))


@pytest.mark.parametrize("task", EXAMPLES)
def test_golden(task, tokenizer):
    assert rendered(task, tokenizer) + "\n" == (GOLDENS / f"{task}.txt").read_text("utf-8")


def test_colours_are_all_that_colour_adds(tokenizer):
    for task in EXAMPLES:
        coloured = rendered(task, tokenizer, color=True)
        assert "\033[" in coloured
        plain = re.sub(r"\033\[\d+m", "", coloured)
        assert [line.rstrip() for line in plain.splitlines()] == rendered(
            task, tokenizer
        ).splitlines()


def test_frames_asked_for(tokenizer):
    assert rendered("tts", tokenizer, frames=1).count(" frame ") == 2
    assert "7 more frames" in rendered("tts", tokenizer, frames=1)
    assert rendered("tts", tokenizer, frames=9).count(" frame ") == 9


def config(dataset: pathlib.Path, tokenizer_file: pathlib.Path) -> dict:
    mixture = {
        "hear": {"dataset": str(dataset), "task": "asr", "weight": 1.0},
        "speak": {"dataset": str(dataset), "task": "tts", "weight": 3.0},
        "off": {"dataset": "nowhere", "task": "tts", "weight": 0},
    }
    data = {
        "kind": "packed",
        "mixture": mixture,
        "tokenizer": str(tokenizer_file),
        "row_length": 128,
        "rows": 2,
        "buckets": [{"seconds": 4.0, "count": 8}],
    }
    return {"data": data, "model": models.get_config("nano").to_dict()}


def test_an_example_of_a_member(small_dataset, small_tokenizer):
    result = config(small_dataset, small_tokenizer)
    example, sequence, tokenizer = find_example(result, "hear", 1)
    assert example.task == "asr"
    assert "frames" in render(example, sequence, tokenizer)
    with pytest.raises(ValueError, match="index 500: .*/train/asr has [0-9]+ examples"):
        find_example(result, "hear", 500)


def test_summary_names_every_member_and_what_is_left_out(small_dataset, small_tokenizer):
    result = config(small_dataset, small_tokenizer)
    text = format_summary(open_batches(result["data"], result["model"]))
    assert re.search(r"train/asr +12 ", text) and re.search(r"train/tts +12 ", text)
    assert "left out" in text and "a record of kind dialogue" in text
    assert "nowhere" not in text


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(pathlib.Path(folder))
        for name in EXAMPLES:
            (GOLDENS / f"{name}.txt").write_text(rendered(name, tokenizer) + "\n", "utf-8")
