import base64
import json
import pathlib

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from ba_jax.corpora.make_tokenizer import (
    QWEN_PATTERN,
    SPECIAL_TOKENS,
    convert_tiktoken,
    train_sentencepiece,
)
from ba_jax.data.text_tokenizer import (
    BpeTokenizer,
    TokenizerError,
    byte_symbols,
    load_text_tokenizer,
)

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
def test_what_cannot_be_trained_on(tmp_path, texts, options, message):
    with pytest.raises(TokenizerError, match=message):
        train_sentencepiece(texts, tmp_path / "x.model", 4096, **options)
    assert list(tmp_path.iterdir()) == []


def learnt_library() -> tokenizers.Tokenizer:
    """Byte-level BPE that the library itself has learnt: its merges are known."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return library


LIBRARY = learnt_library()
MODEL = json.loads(LIBRARY.to_str())["model"]


def ranks_lines() -> list[str]:
    """The vocabulary of LIBRARY as a tiktoken file, whose order is that of its merges."""
    symbols = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    vocab = MODEL["vocab"]
    tokens = [bytes(symbols[s] for s in token) for token in sorted(vocab, key=vocab.__getitem__)]
    return [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]


def convert(folder: pathlib.Path, lines: list[str], names: object) -> BpeTokenizer:
    (folder / "x.tiktoken").write_text("\n".join(lines) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps(names))
    return convert_tiktoken(
        folder / "x.tiktoken", folder / "added_tokens.json", folder / "out" / "tokenizer.json"
    )


NAMES = {name: 400 + i for i, name in enumerate(("<|endoftext|>", *SPECIAL_TOKENS))}


def test_conversion_recovers_the_merges(tmp_path):
    shuffled = dict(reversed(NAMES.items()))
    converted = convert(tmp_path, ranks_lines(), shuffled)
    document = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    assert document["model"]["vocab"] == MODEL["vocab"]
    assert document["model"]["merges"] == MODEL["merges"]
    assert converted.special_tokens == NAMES
    # What was written reads back, here and by the library alone.
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    loaded = load_text_tokenizer(tmp_path / "out")
    for text in CORPUS:
        assert loaded.encode(text) == library.encode(text).ids == LIBRARY.encode(text).ids
    assert library.token_to_id("<C_Q>") == NAMES["<C_Q>"]


LINES = ranks_lines()


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        (LINES[:300] + ["!!! 300"], NAMES, "x.tiktoken:301: .*expected a new token in base64"),
        (LINES[:300] + LINES[301:], NAMES, "x.tiktoken:301: .* and its rank 300"),
        (LINES[:300] + [LINES[5].split()[0] + " 300"], NAMES, "x.tiktoken:301: .*a new token"),
        (LINES[:200], NAMES, "no token for byte 0x.*, expected all 256"),
        (LINES[:256] + ["YWJjZA== 256"], NAMES, "token b'abcd' .* is no merge of two tokens"),
        (LINES, {"<x>": 401}, r"added_tokens.json: ids \[401\], expected 400..400 after the 400"),
        (LINES, {"\ud800": 400}, "added_tokens.json: .*: lone surrogate"),
        (LINES, {"<x>": 400}, "tokenizer.json: no added token '<.endoftext.>' to end a text"),
        (LINES, ["<x>"], "added_tokens.json: expected an object of names and ids"),
        (LINES, {"a": 400, "<|endoftext|>": 401}, "'a' is an ordinary token of .*x.tikt"),
    ],
)
def test_bad_conversions(tmp_path, lines, names, message):
    if names is NAMES:
        names = {name: len(lines) + i for i, name in enumerate(NAMES)}
    with pytest.raises(TokenizerError, match=message):
        convert(tmp_path, lines, names)
    assert not (tmp_path / "out").exists()


def test_missing_files_to_convert(tmp_path):
    with pytest.raises(TokenizerError, match="nonesuch: No such file"):
        convert_tiktoken(tmp_path / "nonesuch", tmp_path / "none.json", tmp_path / "out")
