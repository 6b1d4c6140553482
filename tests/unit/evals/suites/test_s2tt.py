"""BLEU, its interval, and a missing sacreBLEU."""

import math
import sys

import pytest

from ba_jax.evals.items import EvalError
from ba_jax.evals.suites import s2tt

HYPOTHESES = ["the cat sat on the mat", "a dog barked at two men", "it rains", "no more"]
REFERENCES = ["the cat sat on a mat", "a dog barks at two men", "it is raining again", "no more"]


def test_bleu_by_hand():
    """Orders 1 to 4 of one sentence, counted by hand; no brevity penalty."""
    value, _, signature = s2tt.corpus_bleu(HYPOTHESES[:1], REFERENCES[:1], "en")
    precisions = [5 / 6, 3 / 5, 2 / 4, 1 / 3]
    assert value == pytest.approx(100 * math.exp(sum(map(math.log, precisions)) / 4))
    assert "|tok:13a|smooth:exp|version:" in signature and "case:mixed" in signature


def test_characters_in_chinese():
    """Cut between characters, so that spaces and the order of words do not matter."""
    value, _, signature = s2tt.corpus_bleu(["今天 天气好"], ["今天天气好"], "zh")
    assert value == pytest.approx(100) and "|tok:zh|" in signature
    assert s2tt.corpus_bleu(["今天天气好"], ["今天天气不好"], "zh")[0] < 100


def test_interval_is_of_the_corpus_level_figure():
    value, (low, high), _ = s2tt.corpus_bleu(HYPOTHESES * 5, REFERENCES * 5, "en")
    assert low < value < high
    same = s2tt.corpus_bleu(["a b c d e"] * 4, ["a b c d e"] * 4, "en")
    assert same[0] == pytest.approx(100) and same[1] == pytest.approx([100, 100])
    # every resample of one sentence is that sentence
    value, interval, _ = s2tt.corpus_bleu(HYPOTHESES[1:2], REFERENCES[1:2], "en")
    assert interval == pytest.approx([value, value])


def test_empty_hypotheses():
    value, interval, _ = s2tt.corpus_bleu(["", ""], REFERENCES[:2], "en")
    assert value == 0 and interval == [0, 0]
    with pytest.raises(EvalError, match="BLEU of no texts"):
        s2tt.corpus_bleu([], [], "en")


def test_without_the_package(monkeypatch):
    s2tt.bleu.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(EvalError, match=r"pip install 'ba_jax\[eval\]'"):
        s2tt.bleu("en")
    s2tt.bleu.cache_clear()
