"""Texts of the embedded corpus: facts, held-out sentences, scripts, the open part's texts."""

from __future__ import annotations

import collections
import json
import re

import pytest

from ba_jax.corpora.embedded import open_part, script, source, voices
from ba_jax.corpora.embedded.open_part import Exchange, Sentence
from ba_jax.corpora.interleave.voices import HELD_OUT
from ba_jax.corpora.sources.base import Rejection
from ba_jax.data.corpus import facts
from ba_jax.data.record import LANGUAGES

FACTS = facts.facts()


def words(texts) -> set[str]:
    return {word for text in texts for word in re.findall(r"[a-z]+|[\u4e00-\u9fff]", text.lower())}


def test_facts_are_complete_and_distinct():
    assert len(FACTS) == len({fact.id for fact in FACTS}) == 67
    assert collections.Counter(fact.category for fact in FACTS) == {
        "plus": 11,
        "minus": 9,
        "color": 12,
        "opposite": 12,
        "food": 5,
        "day": 7,
        "season": 4,
        "legs": 7,
    }
    for language in LANGUAGES:
        asked = [text for fact in FACTS for text in fact.questions[language]]
        stated = [text for fact in FACTS for text in fact.statements[language]]
        assert len(asked) == len(set(asked)) == 67 * facts.QUESTIONS
        assert len(stated) == len(set(stated)) == 67 * facts.STATEMENTS
        assert not set(asked) & set(stated)
        assert not any("{" in text for text in asked + stated)


def test_vocabulary_is_closed_and_every_word_is_used_often():
    for language, most in (("en", 125), ("zh", 140)):
        texts = [
            text
            for fact in FACTS
            for text in (*fact.questions[language], *fact.statements[language])
        ]
        counts = collections.Counter(word for text in texts for word in words([text]))
        assert len(counts) <= most
        assert min(counts.values()) >= 3, counts.most_common()[-5:]


def test_a_fact_is_as_expected():
    (fact,) = [fact for fact in FACTS if fact.id == "minus-6-4"]
    assert fact.questions["en"][0] == "What is six minus four?"
    assert fact.questions["zh"][0] == "六减四是多少？"
    assert fact.statements["en"][1] == "Six minus four equals two."
    assert fact.answers == {"en": "The answer is two.", "zh": "答案是二。"}
    (fact,) = [fact for fact in FACTS if fact.id == "legs-bird"]
    assert fact.answers == {"en": "It has two legs.", "zh": "它有两条腿。"}


def test_hold_out_leaves_most_of_every_fact_and_phrasing():
    held = facts.hold_out(FACTS, 5, 32, 10, seed=0)
    assert held == facts.hold_out(FACTS, 5, 32, 10, seed=0)
    assert held != facts.hold_out(FACTS, 5, 32, 10, seed=1)
    assert collections.Counter(held.values()) == {"test": 32, "validation": 10}
    assert len({id for id, _ in held}) == 42, "one phrasing of a fact at most"
    assert max(collections.Counter(phrasing for _, phrasing in held).values()) <= 9
    with pytest.raises(ValueError, match="60 . 10 pairs to hold out of 67 facts"):
        facts.hold_out(FACTS, 5, 60, 10, seed=0)


# --- scripts --------------------------------------------------------------------------------------

SENTENCES = [
    Sentence(
        f"hsk{level}-{i:04d}", level, f"topic{i % 3}", f"{level}号第{i}句。", f"No {level} {i}."
    )
    for level in (1, 2, 3)
    for i in range(60)
]
EXCHANGES = [
    Exchange(f"{language}/{topic}.yml:{i}", language, f"{language} {topic} {i}?", f"{topic} {i}.")
    for language in LANGUAGES
    for topic in ("greetings", "trivia")
    for i in range(20)
]


@pytest.fixture(scope="module")
def scripts():
    return script.write(SENTENCES, EXCHANGES, script.SIZES["embedded"], seed=0)


def test_scripts_depend_on_nothing_but_their_arguments(scripts):
    size = script.SIZES["embedded"]
    assert script.write(SENTENCES, EXCHANGES, size, seed=0) == scripts
    assert script.write(SENTENCES, EXCHANGES, size, seed=1) != scripts
    assert len({entry.id for entry in scripts}) == len(scripts)


def test_large_is_larger_with_the_same_test_split(scripts):
    large = script.write(SENTENCES, EXCHANGES, script.SIZES["large"], seed=0)

    def sentences(results, is_held):
        return {
            (line.text, line.translation, entry.split)
            for entry in results
            if (entry.split != "train") == is_held
            for line in entry.lines
        }

    assert sentences(large, True) == sentences(scripts, True)
    assert len([entry for entry in large if entry.casts]) > 10 * len(
        [entry for entry in scripts if entry.casts]
    )


def test_the_assistant_alone_speaks_the_training_split_of_its_size(scripts):
    own = script.write(SENTENCES, EXCHANGES, script.SIZES["assistant"], seed=0)
    spoken = [entry for entry in own if entry.casts and entry.split == "train"]
    for entry in spoken:
        cast = {voice for takes in entry.casts for voice, _ in takes}
        assert cast == {voices.ASSISTANT[entry.language]}
    held = {(e.id, e.casts) for e in scripts if e.split == "test"}
    test = [e for e in own if e.split == "test"]
    own_voice = [e for e in test if e.id.endswith("-assistant")]
    assert held == {(e.id, e.casts) for e in test if e not in own_voice}
    # Every held-out sentence by itself, in its voice.
    assert len(own_voice) == len([e for e in scripts if e.split == "test" and e.kind == "speech"])
    assert {voice for e in own_voice for takes in e.casts for voice, _ in takes} == set(
        voices.ASSISTANT.values()
    )
    texts = {line.text for entry in spoken for line in entry.lines}
    assert len(texts) > 2 * len(FACTS)


def test_the_assistant_says_a_statement_of_each_fact(scripts):
    own = [entry for entry in scripts if entry.repeats]
    assert len(own) == 2 * len(FACTS)
    others = {line.text for entry in scripts if not entry.repeats for line in entry.lines}
    for entry in own:
        (line,), (takes,) = entry.lines, entry.casts
        assert entry.split == "train" and line.text in others
        assert {voice for voice, _ in takes} == {voices.ASSISTANT[entry.language]}
    for language in LANGUAGES:
        spoken = [entry.lines[0].text for entry in own if entry.language == language]
        for fact in FACTS:
            assert len(set(spoken) & set(fact.statements[language])) == 1
    ways = collections.Counter(entry.id[-len("0-assistant")] for entry in own)
    assert min(ways.values()) > 20 and len(ways) == facts.STATEMENTS
    # Nothing new for the text tokenizer.
    without = [entry for entry in scripts if not entry.repeats]
    assert source.training_texts(scripts) == source.training_texts(without)


def test_held_out_sentences_are_not_in_training(scripts):
    held = {
        line.text
        for entry in scripts
        if entry.split != "train"
        for line in entry.lines
        if line.role != "assistant"
    }
    assert len(held) > 200
    for entry in scripts:
        if entry.split == "train":
            for line in entry.lines:
                # Written blocks join a question and its answer.
                sentences = re.findall(r"[^.?!。？！]+[.?!。？！]", line.text) + [line.text]
                assert not held & {sentence.strip() for sentence in sentences}
                assert line.translation not in held


def test_held_out_questions_can_be_learnt(scripts):
    """Its fact is asked in training in other phrasings, and its English words begin others."""
    trained = [
        entry for entry in scripts if entry.split == "train" and entry.source == script.CLOSED
    ]
    spoken = [entry for entry in trained if entry.casts]
    asked = {entry.id.rsplit("-q", 1)[0] for entry in spoken if entry.kind == "dialogue"}
    second = {line.text for entry in spoken for line in entry.lines[2:]}  # of dialogues of two
    questions = {f"{lang}-{fact.id}": fact.questions[lang] for fact in FACTS for lang in LANGUAGES}
    starts = collections.Counter(line.text.split()[0] for entry in trained for line in entry.lines)
    for entry in scripts:
        if entry.split != "train" and entry.source == script.CLOSED:
            if "-q" in entry.id:
                fact = entry.id.rsplit("-q", 1)[0]
                assert fact in asked or second & set(questions[fact])
            if entry.language == "en":
                assert all(starts[line.text.split()[0]] >= 2 for line in entry.lines)


def test_splits_have_disjoint_voices(scripts):
    for entry in scripts:
        asking = entry.casts[:1]
        results = {name for takes in asking for voice, _ in takes for name in voices.members(voice)}
        assert results <= set(HELD_OUT) if entry.split == "test" else not results & set(HELD_OUT)
        if len(entry.casts) > 1:
            assert {voice for voice, _ in entry.casts[1]} == {voices.ASSISTANT[entry.language]}
            assert voices.ASSISTANT[entry.language] not in {voice for voice, _ in entry.casts[0]}


def test_many_voices_speak_about_equally_often(scripts):
    for language, least in (("en", 24), ("zh", 12)):
        counts = collections.Counter(
            entry.casts[0][0][0]
            for entry in scripts
            if entry.casts and entry.language == language and entry.split == "train"
        )
        assert len(counts) >= least
        counts.pop(voices.ASSISTANT[language], None)  # he answers
        assert max(counts.values()) <= 2 * min(counts.values())


def test_translations_are_the_other_language(scripts):
    for entry in scripts:
        if entry.source != script.CHATTERBOT and entry.kind != "text":
            for line in entry.lines:
                assert re.search("[\u4e00-\u9fff]", line.text + line.translation)
                assert re.search("[a-zA-Z]", line.text + line.translation)


def test_kinds_of_both_languages(scripts):
    counts = collections.Counter((entry.split, entry.language, entry.kind) for entry in scripts)
    for language in LANGUAGES:
        assert counts["train", language, "interleaved"] == 9 + 5
        assert counts["train", language, "speech"] == 110 + 106 + 67  # 106: 120 less 14 held out
        assert counts["test", language, "dialogue"] == 32 + 3
        assert counts["test", language, "speech"] == 32 + 9
        assert counts["validation", language, "speech"] == 10 + 5
        turns = [
            len(entry.lines) for entry in scripts if entry.language == language and entry.casts
        ]
        assert 4 in turns, "dialogues of two questions"


# --- the texts of the open part -------------------------------------------------------------------


def test_read_sentences(tmp_path):
    rows = [
        ("a", "老师，您好！", "Hello, teacher!"),
        ("b", "她们都是学生。", "They (women) are all students."),
        ("c", "老师，您好！", "Good day."),
        ("d", "我有3本书。", "I have three books."),
        ("e", "我" * 30 + "。", "I."),
    ]
    file = tmp_path / "sentences.json"
    file.write_text(
        json.dumps(
            [
                {"id": i, "hsk_level": 1, "topic": "t", "chinese": zh, "translation": {"en": en}}
                for i, zh, en in rows
            ]
        )
    )
    first, *others = open_part.read_sentences(file)
    assert first == Sentence("a", 1, "t", "老师，您好！", "Hello, teacher!")
    assert [(other.where, other.reason) for other in others] == [
        ("sentences.json:b", "characters that are not said"),
        ("sentences.json:c", "said before"),
        ("sentences.json:d", "characters that are not said"),
        ("sentences.json:e", "too long"),
    ]
    file.write_text('[{"id": "x"}]')
    with pytest.raises(ValueError, match="sentences.json.*no 'hsk_level'"):
        list(open_part.read_sentences(file))


@pytest.fixture
def chatterbot(tmp_path):
    for language in ("english", "chinese"):
        (tmp_path / language).mkdir()
        for topic in ("conversations", "greetings", "health", "trivia"):
            file = tmp_path / language / f"{topic}.yml"
            file.write_text("conversations: []", encoding="utf-8")
    return tmp_path


def test_read_exchanges(chatterbot):
    (chatterbot / "english" / "greetings.yml").write_text(
        "conversations:\n"
        "- - what do i eat\n  - Bread, i think\n  - third\n"
        "- - What do I eat?\n  - Again.\n"
        "- - Who died?\n  - Nobody.\n"
        "- just one line\n"
        "- - In what year?\n  - '1984'\n"
    )
    first, *others = open_part.read_exchanges(chatterbot, "en")
    assert first == Exchange("english/greetings.yml:0", "en", "What do I eat?", "Bread, I think.")
    assert all(isinstance(other, Rejection) for other in others)
    assert [(other.where.split(":")[1], other.reason) for other in others] == [
        ("1", "said before"),
        ("2", "unwanted"),
        ("3", "no two turns"),
        ("4", "characters that are not said"),
    ]


def test_read_exchanges_in_mandarin(chatterbot):
    (chatterbot / "chinese" / "greetings.yml").write_text(
        "conversations:\n- - 你好吗\n  - 很好, 谢谢.\n- - 你好\n  - Hi\n", encoding="utf-8"
    )
    first, other = open_part.read_exchanges(chatterbot, "zh")
    assert (first.question, first.answer) == ("你好吗？", "很好，谢谢。")
    assert other.reason == "characters that are not said"
    (chatterbot / "chinese" / "greetings.yml").write_text("conversations: 3")
    with pytest.raises(ValueError, match="greetings.yml: expected a list named conversations"):
        list(open_part.read_exchanges(chatterbot, "zh"))
