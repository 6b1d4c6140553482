"""Checks of a language model's replies, from an endpoint that is a function."""

import pytest

from ba_jax.corpora.interleave.text import Lengths
from ba_jax.corpora.interleave.writer import Writer, WriterSettings
from ba_jax.corpora.sources.base import SourceError
from ba_jax.speech.chat import Chat

LENGTHS = Lengths(target=2.0, low=0.5, high=4.0)


@pytest.fixture
def replies(monkeypatch):
    """Replies to be given, the last one first; None is no reply."""
    left = []
    monkeypatch.setattr(Chat, "request", lambda self, body: (left.pop(), "HTTP 500"))
    return left


def writer(folder, **options):
    path = str(folder / "replies.jsonl")
    return Writer(WriterSettings(base_url="http://h/v1", model="m", replies=path, **options))


@pytest.mark.parametrize(
    "reply, pieces, problem",
    [
        ('["It is late,", "go home."]', ["It is late,", "go home."], ""),
        ('```json\n["It is", " late, go home. "]\n```', ["It is", "late, go home."], ""),
        ('["It is late,", "go home!"]', [], "do not join"),
        ('["It is late,"]', [], "do not join"),
        ("It is late, go home.", [], "no JSON array"),
        ('[["It is late, go home."]]', [], "no JSON array"),
    ],
)
def test_segments_must_join_to_the_text(tmp_path, replies, reply, pieces, problem):
    replies.append(reply)
    got, why = writer(tmp_path).segment("It is late, go home.", "en", LENGTHS)
    assert got == pieces and problem in why and bool(why) == bool(problem)


def test_segments_must_be_short(tmp_path, replies):
    text = "word " * 30 + "end."
    replies.append(f'["{text}"]')
    assert "expected at most 4.0 s" in writer(tmp_path).segment(text, "en", LENGTHS)[1]


@pytest.mark.parametrize(
    "reply, result",
    [
        ("It costs five percent.", "It costs five percent."),
        ("Hello!", "It costs 5%."),
        ("", "It costs 5%."),
    ],
)
def test_normalising_keeps_the_words(tmp_path, replies, reply, result):
    replies.append(reply)
    text, problem = writer(tmp_path).normalise("It costs 5%.", "en")
    assert text == result and bool(problem) == (reply != result)


@pytest.mark.parametrize("reply, score", [("8", 8), ("10/10.", 10), ("0", 0), ("7 or 8", 0)])
def test_scores(tmp_path, replies, reply, score):
    replies.append(reply)
    assert writer(tmp_path).score("q", "a")[0] == score


def test_replies_are_kept_and_an_endpoint_without_one_stops_the_run(tmp_path, replies):
    replies.append("8")
    assert writer(tmp_path).score("q", "a") == writer(tmp_path).score("q", "a") == (8.0, "")
    replies.append(None)
    with pytest.raises(SourceError, match="m at http://h/v1: HTTP 500; .*replies.jsonl keeps"):
        writer(tmp_path).score("q", "b")
    with pytest.raises(SourceError, match="variable NO_KEY is not set"):
        writer(tmp_path, key_variable="NO_KEY")
