"""Utterances from other utterances' words: text, codes and times stay together."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ba_jax.config import ConfigError
from ba_jax.corpora import runner
from ba_jax.corpora.sources.base import SourceError
from ba_jax.corpora.sources.spliced import Spliced
from ba_jax.data.examples import ExampleMaker, word_bounds
from ba_jax.data.record import (
    Part,
    Record,
    RecordSource,
    Word,
    shard_name,
    write_metadata,
    write_shard,
)

ENGLISH = ("Two and two is four.", "The sky is blue.", "Come in, please.")
CHINESE = ("天是蓝的。", "二加二得四。")


def utterance(id: str, text: str, language: str, speaker: str, **fields) -> Record:
    """Three frames per word; its codes are its letters, so that they encode the text."""
    spoken = text.split() if language == "en" else list(text.strip("。"))
    words, codes = [], []
    for number, word in enumerate(spoken):
        words.append(Word(word.strip(",."), 0.24 * number, 0.24 * (number + 1)))
        codes += [[ord(word[0]), number, frame] for frame in range(3)]
    part = Part(
        text,
        codes_NQ=np.array(codes),
        seconds=0.24 * len(spoken),
        speaker=speaker,
        words=tuple(words),
        **fields,
    )
    return Record(id, "speech", language, (part,), "toy")


def dataset(folder, *, train=None, test=("Blue sky.",), name="toy"):
    """ann speaks both languages, bob English alone."""
    if train is None:
        train = [
            *(utterance(f"a{n}", text, "en", "ann") for n, text in enumerate(ENGLISH)),
            *(utterance(f"z{n}", text, "zh", "ann") for n, text in enumerate(CHINESE)),
            utterance("b", ENGLISH[0], "en", "bob"),
        ]
    held_out = [utterance(f"t{n}", text, "en", "ann") for n, text in enumerate(test)]
    folder.mkdir()
    splits = {}
    for split, records in (("train", train), ("test", held_out)):
        path = folder / shard_name(name, split, 0, 1)
        splits[split] = [write_shard(path, records)]
    write_metadata(folder, name, splits, licence="as you like")
    return folder


def config(folder, **source) -> runner.PrepareConfig:
    return runner.PrepareConfig("spliced", {"dataset": str(folder)} | source, 16, 1.0)


def made(folder, out, **source) -> list[Record]:
    runner.prepare(config(folder, **source), out, workers=0)
    return list(RecordSource(out, "train"))


def check(record: Record) -> None:
    """Every word is where its codes are."""
    (part,) = record.parts
    letters, frames = word_bounds(part)
    assert len(letters) == len(part.words) + 1 and part.seconds == pytest.approx(
        0.08 * len(part.codes_NQ)
    )
    for word, letter, (begin, end) in zip(
        part.words, letters, itertools.pairwise(frames), strict=False
    ):
        assert part.text[letter:].startswith(word.text)
        assert end - begin == 3
        assert (part.codes_NQ[begin:end, 0] == ord(word.text[0])).all()
        assert part.codes_NQ[begin:end, 2].tolist() == [0, 1, 2]


def test_text_codes_and_times_stay_together(tmp_path):
    records = made(dataset(tmp_path / "toy"), tmp_path / "out", utterances=40)
    assert [(r.parts[0].speaker, r.language) for r in records[::40]] == [
        ("ann", "en"),
        ("ann", "zh"),
        ("bob", "en"),
    ]
    assert len({r.id for r in records}) == len(records) == 120
    for record in records:
        check(record)
        (part,) = record.parts
        assert 1 <= len(part.words) <= 12
        spoken = ENGLISH if record.language == "en" else CHINESE
        assert (" " in part.text) == (record.language == "en" and len(part.words) > 1)
        assert all(any(word.text in text for text in spoken) for word in part.words)
        ExampleMaker("tts", turn="any")(record)
        ExampleMaker("iasr", turn="any", pieces=1)(record)
    texts = {record.parts[0].text for record in records}
    assert len(texts) > 100 and not texts & {*ENGLISH, *CHINESE, "Blue sky."}
    assert (tmp_path / "out" / "LICENSE").read_text() == "as you like"


@settings(max_examples=15, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(0, 3)),
    st.tuples(st.integers(1, 4), st.integers(0, 4)),
    st.integers(0, 2**31),
)
def test_any_lengths(tmp_path_factory, pieces, words, seed):
    folder = tmp_path_factory.mktemp("spliced")
    source = Spliced(
        str(dataset(folder / "toy")),
        utterances=5,
        pieces=(pieces[0], sum(pieces)),
        words=(words[0], sum(words)),
        seed=seed,
    )
    for item in source.items():
        (record,) = source.records(item)
        check(record)
        assert len(record.parts[0].words) <= sum(pieces) * sum(words)
        assert [again.parts[0].text for again in source.records(item)] == [record.parts[0].text]


def test_words_come_as_often_as_each_other(tmp_path):
    records = made(dataset(tmp_path / "toy"), tmp_path / "out", utterances=1500, words=(1, 1))
    english = [r for r in records if r.language == "en" and r.parts[0].speaker == "ann"]
    spoken = [word.text.casefold() for record in english for word in record.parts[0].words]
    shares = {word: spoken.count(word) / len(spoken) for word in spoken}
    assert len(shares) == 10  # two of "Two and two is four.", is in two of them
    np.testing.assert_allclose(list(shares.values()), 0.1, atol=0.02)


def test_texts_of_other_splits_are_not_made(tmp_path):
    few = [utterance("a", "One two.", "en", "ann")]
    folder = dataset(tmp_path / "toy", train=few, test=("ONE, two", "Two.", "One"))
    report = runner.prepare(
        config(folder, utterances=40, pieces=(1, 2), words=(1, 1)), tmp_path / "out", workers=0
    )
    texts = {record.parts[0].text for record in RecordSource(tmp_path / "out", "train")}
    assert texts == {"One One", "two. two.", "two. One"}
    folder = dataset(tmp_path / "all", train=few, test=("One", "two"))
    with pytest.raises(runner.PrepareError, match="nothing|no record"):
        runner.prepare(config(folder, pieces=(1, 1), words=(1, 1)), tmp_path / "o2", workers=0)
    assert report["records"] == 40


def test_utterances_depend_on_seed_and_voice_alone(tmp_path):
    folder = dataset(tmp_path / "toy")
    first = made(folder, tmp_path / "1", speakers=["ann"], sources=["toy"], utterances=20)
    again = made(folder, tmp_path / "2", speakers=["ann"], utterances=20)
    other = made(folder, tmp_path / "3", speakers=["ann"], utterances=20, seed=1)
    assert [r.parts[0].text for r in first] == [r.parts[0].text for r in again]
    assert [r.parts[0].text for r in first] != [r.parts[0].text for r in other]
    assert {r.parts[0].speaker for r in first} == {"ann"}
    # Other codes under the same names are another dataset.
    changed = dataset(tmp_path / "toy2", train=[utterance("a", "Other words.", "en", "ann")])
    info = json.loads((changed / "dataset_info.json").read_text())
    assert (
        runner.make_plan(config(folder)).fingerprint
        != runner.make_plan(config(changed)).fingerprint
    )
    assert info["name"] == "toy"


def test_parts_that_cannot_be_cut_are_counted(tmp_path):
    def changed(id: str, **fields) -> Record:
        record = utterance(id, "One two three.", "en", "ann")
        part = dataclasses.replace(record.parts[0], **fields)
        return dataclasses.replace(record, parts=(part,))

    times = (Word("One", 0.0, 0.1), Word("two", 0.5, 0.6), Word("three", 0.2, 0.4))
    whole, quiet = changed("a"), changed("b", loss=False)
    bare, timeless = changed("c", codes_NQ=None, audio=b"ogg"), changed("d", words=())
    swapped = changed("e", words=times)
    folder = dataset(tmp_path / "toy", train=[whole, bare, timeless, quiet, swapped])
    report = runner.prepare(config(folder, utterances=3), tmp_path / "out", workers=0)
    assert {reason: count["records"] for reason, count in report["reasons"].items()} == {
        "no codes": 1,
        "no word times": 1,
        "a part without loss": 1,
        "word times that are not in order": 1,
    }


@pytest.mark.parametrize(
    "source, error, message",
    [
        ({"dataset": ""}, SourceError, "no source.dataset"),
        ({"dataset": "/nowhere"}, SourceError, "/nowhere/dataset_info.json"),
        ({"split": "dev"}, SourceError, r"split = 'dev', expected one of \('test', 'train'\)"),
        ({"speakers": ["eve"]}, SourceError, r"no codes by \('eve',\) from any source"),
        ({"sources": ["x"]}, SourceError, r"no codes by anyone from \('x',\)"),
        ({"pieces": [0, 2]}, ConfigError, r"pieces = \(0, 2\), expected least and most"),
        ({"words": [3, 2]}, ConfigError, r"words = \(3, 2\)"),
        ({"utterances": 0}, ConfigError, "utterances = 0, expected at least 1"),
    ],
)
def test_bad_configs(tmp_path, source, error, message):
    folder = dataset(tmp_path / "toy")
    with pytest.raises(error, match=message):
        runner.make_plan(runner.PrepareConfig("spliced", {"dataset": str(folder)} | source))
