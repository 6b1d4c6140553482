"""Training of text tokenizers."""

from __future__ import annotations

import pytest

from ba_jax.corpora.make_tokenizer import train_sentencepiece
from ba_jax.data.text_tokenizer import TokenizerError

CORPUS = [
    "What is two plus three? It is five. What colour is the sky? It is blue.",
    "The quick brown fox jumps over the lazy dog; the dog doesn't mind at all.",
    "今天天气很好，我们去公园吧！你喜欢什么颜色？我喜欢红色和蓝色。",
    "将语音转录为文本: 二加三等于五。 12 + 30 = 42, 3.14 < 22/7",
    "Line one\r\nline two\n\n\tindented  twice   thrice\u2581",
] * 3


def test_training_is_deterministic_and_writes_nothing_on_failure(tmp_path):
    for name in ("a.model", "b.model"):
        train_sentencepiece(iter(CORPUS), tmp_path / name, 450)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    with pytest.raises(TokenizerError, match="(?s)c.model: training on .* vocab_size 280: "):
        train_sentencepiece(CORPUS, tmp_path / "c.model", 280)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_training_learns_the_corpus(tmp_path):
    tokenizer = train_sentencepiece(CORPUS, tmp_path / "x.model", 512)
    assert tokenizer.vocab_size <= 512
    # Half the characters' number, at most: the merges are used; digits stay apart.
    text = CORPUS[0]
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert len(tokenizer.encode("2024")) == 4
    assert len(tokenizer.encode("今天")) <= 2


@pytest.mark.parametrize("texts", [["hi"], ["a" * 10_000], ["\u2581\0\r\n", "x"], ["<s> </s>"] * 5])
def test_odd_corpora_train(tmp_path, texts):
    tokenizer = train_sentencepiece(texts, tmp_path / "odd.model", 4096, special_tokens=["<a,b>"])
    assert tokenizer.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<a,b>": 3}
    assert tokenizer.vocab_size < 4096
    assert tokenizer.decode(tokenizer.encode("<a,b> \u2581 你\r\n")) == "<a,b> \u2581 你\r\n"


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["ok", "no\ud800"], {}, r"texts\[1\]: lone surrogate U\+D800 at position 2"),
        ([], {}, "texts: expected at least one that is not blank"),
        ([" ", "\r\n\u2581"], {}, "texts: expected at least one that is not blank"),
        (["hi"], {"special_tokens": ["<a>", "<a>"]}, "expected each once"),
        (["hi"], {"special_tokens": ["</s>"]}, "expected each once"),
        (["hi"], {"special_tokens": ["<0x41>"]}, "already defined"),
        (["hi"], {"special_tokens": [""]}, "training on 1 lines"),
    ],
)
def test_bad_corpora_are_refused(tmp_path, texts, options, message):
    with pytest.raises(TokenizerError, match=message):
        train_sentencepiece(texts, tmp_path / "x.model", 4096, **options)
    assert list(tmp_path.iterdir()) == []
