"""The corpus that comes with the package: what is in it, and that none of it is damaged."""

from __future__ import annotations

import collections
import random
import re

import numpy as np
import pytest

from ba_jax.audio import read_audio
from ba_jax.corpora.embedded import voices
from ba_jax.corpora.interleave.voices import is_held_out
from ba_jax.data.corpus import facts
from ba_jax.data.record import EMBEDDED, LANGUAGES, RecordSource, dataset_directory
from ba_jax.data.text_tokenizer import load_text_tokenizer

SPLITS = ("train", "validation", "test")
FACTS = {fact.id: fact for fact in facts.facts()}


@pytest.fixture(scope="module")
def records():
    """Split -> its records."""
    return {split: list(RecordSource(EMBEDDED, split)) for split in SPLITS}


def spoken(records, splits=SPLITS):
    return [
        (record, part)
        for split in splits
        for record in records[split]
        for part in record.parts
        if part.is_spoken
    ]


def sentences(text: str) -> list[str]:
    """Sentence by sentence, without punctuation and case."""
    result = re.split(r"[.?!。？！\n]", text.lower())
    return ["".join(c for c in first if c.isalnum()) for first in result if first.strip()]


def test_size_hours_voices(records):
    files = list(dataset_directory(EMBEDDED).iterdir())
    assert sum(file.stat().st_size for file in files) <= 16e6
    minutes = sum(part.seconds for _, part in spoken(records)) / 60
    assert 40 <= minutes <= 60
    for split, least in (("train", 32), ("validation", 1.5), ("test", 5)):
        assert sum(part.seconds for _, part in spoken(records, [split])) / 60 >= least
    by_language = collections.Counter()
    for record, part in spoken(records):
        by_language[record.language] += part.seconds / 60
    assert min(by_language.values()) >= 16
    names = {part.speaker for _, part in spoken(records, ["train"])}
    assert len(names) >= 32
    assert len([name for name in names if "+" not in name]) >= 24


def test_kinds(records):
    counts = collections.Counter(
        (split, record.language, record.kind, any(part.is_spoken for part in record.parts))
        for split in SPLITS
        for record in records[split]
    )
    for language in LANGUAGES:
        assert counts["train", language, "speech", True] >= 180
        assert counts["train", language, "dialogue", True] >= 120
        assert counts["train", language, "interleaved", True] >= 8
        assert counts["train", language, "dialogue", False] >= 250
        assert counts["train", language, "text", False] >= 200
        closed_test = [r for r in records["test"] if (r.source, r.language) == ("closed", language)]
        assert len([r for r in closed_test if r.kind == "dialogue"]) >= 25
        assert len([r for r in closed_test if r.kind == "speech"]) >= 25
    ids = [record.id for split in SPLITS for record in records[split]]
    assert len(ids) == len(set(ids))


def test_held_out_voices_are_only_in_the_test(records):
    assert not {p.speaker for _, p in spoken(records, SPLITS[:2]) if is_held_out(p.speaker)}
    asking = {p.speaker for _, p in spoken(records, ["test"]) if p.role != "assistant"}
    assert asking == {voice for language in LANGUAGES for voice in voices.test_voices(language)}
    # Who answers is what a model learns to sound like: the same in all splits.
    for record, part in spoken(records):
        if part.role == "assistant":
            assert part.speaker == voices.ASSISTANT[record.language]


def test_held_out_sentences_are_not_in_training(records):
    trained = {
        sentence
        for record in records["train"]
        for part in record.parts
        for text in (part.text, part.translation)
        for sentence in sentences(text)
    }
    held = [
        part
        for split in SPLITS[1:]
        for record in records[split]
        for part in record.parts
        if part.role != "assistant"
    ]
    assert len(held) >= 170
    for part in held:
        whole = "".join(sentences(part.text))
        assert whole not in trained
        assert "".join(sentences(part.translation)) not in trained or not part.translation
    tested = {part.text for r in records["test"] for part in r.parts if part.role != "assistant"}
    validated = {p.text for r in records["validation"] for p in r.parts if p.role != "assistant"}
    assert not tested & validated


def test_questions_of_the_test_split_are_about_trained_words(records):
    trained = {part.text for _, part in spoken(records, ["train"])}
    known = 0
    for split in SPLITS[1:]:
        for record in records[split]:
            match = re.fullmatch(r"(en|zh)-(.+)-q(\d)-0", record.id)
            if record.source == "closed" and match:
                fact, phrasing = FACTS[match[2]], int(match[3])
                assert record.parts[0].text == fact.questions[record.language][phrasing]
                assert record.parts[1].text == fact.answers[record.language]
                others = (*fact.questions[record.language], *fact.statements[record.language])
                assert trained & set(others)
                known += bool(trained & set(fact.questions[record.language]))
    assert known >= 70


def test_closed_vocabulary(records):
    for language, pattern, most in (("en", r"[a-z]+", 125), ("zh", r"[\u4e00-\u9fff]", 140)):
        counts = collections.Counter(
            word
            for record, part in spoken(records)
            if record.source == "closed" and record.language == language
            for word in re.findall(pattern, part.text.lower())
        )
        assert len(counts) <= most
        trained = {
            word
            for record, part in spoken(records, ["train"])
            if record.source == "closed" and record.language == language
            for word in re.findall(pattern, part.text.lower())
        }
        assert set(counts) == trained


def test_timings(records):
    lengths = []
    for record, part in spoken(records):
        space = " " if record.language == "en" else ""
        assert space.join(word.text for word in part.words) == part.text, record.id
        times = [time for word in part.words for time in (word.start, word.end)]
        assert times == sorted(times), record.id
        assert times[0] >= 0 and times[-1] <= part.seconds + 1e-3, record.id
        lengths += [word.end - word.start for word in part.words]
    assert min(lengths) > 0
    # A word that begins a sentence may be all but swallowed.
    assert np.mean(np.array(lengths) < 0.02) < 1e-3


def test_dialogues_have_two_voices(records):
    for split in SPLITS:
        for record in records[split]:
            if record.kind == "dialogue" and record.parts[0].is_spoken:
                roles = [part.role for part in record.parts]
                assert roles == ["user", "assistant"] * (len(roles) // 2)
                asks, answers = ({p.speaker for p in record.parts[i::2]} for i in (0, 1))
                assert len(asks) == len(answers) == 1 and asks != answers
            if record.kind == "interleaved":
                assert len({part.speaker for part in record.parts}) == 1


def test_translations(records):
    for record, part in spoken(records):
        if record.source != "chatterbot":
            other = "[\u4e00-\u9fff]" if record.language == "en" else "[A-Za-z]"
            assert re.search(other, part.translation), record.id


def test_audio_decodes_to_its_length(records):
    subset = random.Random(0).sample(spoken(records), 100)
    subset += [pair for pair in spoken(records, ["test"])][:20]
    for record, part in subset:
        wave_S, rate = read_audio(part.audio)
        assert rate in (24000, 48000), record.id
        assert abs(len(wave_S) / rate - part.seconds) < 0.1, record.id
        assert 0.02 < abs(wave_S).max() <= 1.05, record.id


def test_tokenizer(records):
    tokenizer = load_text_tokenizer(dataset_directory(EMBEDDED) / "tokenizer.model")
    assert tokenizer.vocab_size <= 2048
    trained = set()
    for record in records["train"]:
        for part in record.parts:
            ids = tokenizer.encode(part.text)
            assert tokenizer.decode(ids) == part.text
            trained.update(ids)
    for split in SPLITS[1:]:
        for record in records[split]:
            if record.source == "closed":
                for part in record.parts:
                    ids = tokenizer.encode(part.text)
                    assert set(ids) <= trained, part.text
                    # Word by word, or character by character.
                    words = part.text.split() if record.language == "en" else part.text
                    assert len(ids) <= 1.5 * len(words) + 1


def test_tokenizer_fits_the_nano_model():
    from configs.models import get_config

    tokenizer = load_text_tokenizer(dataset_directory(EMBEDDED) / "tokenizer.model")
    assert tokenizer.vocab_size <= get_config("nano").llm.vocab_size


def test_attribution():
    text = (dataset_directory(EMBEDDED).parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for name in ("Kokoro-82M", "kokoro-js", "misaki", "hsk-sentences-audio", "chatterbot-corpus"):
        assert name in text
    for licence in ("Apache-2.0", "CC-BY-SA-4.0", "BSD-3-Clause"):
        assert licence in text
