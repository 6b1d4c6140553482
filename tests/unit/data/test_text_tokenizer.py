import dataclasses
import json
import os
import pathlib
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from ba_jax.corpora.make_tokenizer import SPECIAL_TOKENS, train_sentencepiece
from ba_jax.data.text_tokenizer import (
    ROLE_NAMES,
    BpeTokenizer,
    SentencePieceTokenizer,
    TextTokenizer,
    TokenizerError,
    check_unicode,
    load_text_tokenizer,
)
from ba_jax.vocab import AudioTokens
from configs import models as model_configs

ROOT = pathlib.Path(__file__).resolve().parents[3]

CORPUS = [
    "What is two plus three? It is five. What colour is the sky? It is blue.",
    "The quick brown fox jumps over the lazy dog; the dog doesn't mind at all.",
    "今天天气很好，我们去公园吧！你喜欢什么颜色？我喜欢红色和蓝色。",
    "将语音转录为文本: 二加三等于五。 12 + 30 = 42, 3.14 < 22/7",
    "Line one\r\nline two\n\n\tindented  twice   thrice\u2581",
    "emoji 😀👩‍🚀, accents é e\u0301 ñ, greek λόγος, кириллица",
] * 3

# Qwen2 and Qwen2.5 cut text before BPE into contractions, words with the character before them,
# single digits, punctuation with the line ends after it, spaces.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", *SPECIAL_TOKENS)
"""The added tokens of the test's byte-level BPE, in the order of their ids."""


def bpe_library(vocab_size: int = 512) -> tokenizers.Tokenizer:
    """A tokenizer.json as the Qwen2.5 release has it, with a vocabulary learnt from CORPUS."""
    library = tokenizers.Tokenizer(models.BPE())
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False),
    )
    # `<tool_call>` is an added token that is not special, as in the release.
    for name in ADDED:
        library.add_tokens([tokenizers.AddedToken(name, special=name != "<tool_call>")])
    library.post_processor = processors.ByteLevel()
    return library


LIBRARY = bpe_library()
DOCUMENT = LIBRARY.to_str()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """bpe/tokenizer.json and sp/nano.model."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "bpe").mkdir()
    (folder / "bpe" / "tokenizer.json").write_text(DOCUMENT, encoding="utf-8")
    train_sentencepiece(CORPUS, folder / "sp" / "nano.model", 512)
    return folder


@pytest.fixture(scope="module", params=["bpe", "sp"])
def tokenizer(request, folder) -> TextTokenizer:
    return load_text_tokenizer(folder / request.param)


def changed(**fields) -> str:
    """DOCUMENT with some of its fields replaced; `model` is updated."""
    document = json.loads(DOCUMENT)
    document["model"] |= fields.pop("model", {})
    return json.dumps(document | fields)


# --- the two promises ---------------------------------------------------------------------------

UNICODE = st.one_of(
    st.text(max_size=30),
    # Text that tokenizers tend to lose or misread.
    st.lists(
        st.sampled_from(
            [*ADDED, "<s>", "</s>", "<unk>", "<0x41>", "\u2581", " ", "  ", "\r\n", "\n", "\t"]
            + ["\0", "\x05", "\x7f", "\u2585", "\ufb01", "e\u0301", "\u0301", "\ufeff", "\ufffd"]
            + ["\u200b", "\u2028", "\u3000", "\u202e", "👩‍🚀", "\U0010ffff", "\uffff", "你", "a"]
        ),
        max_size=12,
    ).map("".join),
)


@settings(max_examples=400)
@given(text=UNICODE)
@example(text="")
@example(text=" \u2581 \u2581")
@example(text="<audio_start_baichuan><|im_end|></s>")
def test_any_text_comes_back_and_holds_no_special_token(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_tokens.values())
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_every_character_of_the_basic_plane_comes_back(tokenizer):
    for start in range(0, 0x10000, 64):
        text = "".join(f"{chr(c)}a " for c in range(start, start + 64) if not 0xD800 <= c < 0xE000)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", [*ADDED, "<s>", "</s>", "<unk>", "<pad>"])
def test_a_special_token_in_text_is_ordinary_characters(tokenizer, name):
    for text in (name, f"a{name}b", f" {name} {name}"):
        ids = tokenizer.encode(text)
        assert tokenizer.token_id("eos") not in ids
        assert not set(ids) & set(tokenizer.special_tokens.values())
        assert tokenizer.decode(ids) == text
    # The library by itself falls for it: the test would be empty otherwise.
    if name in ADDED:
        assert LIBRARY.encode(name).ids == [LIBRARY.token_to_id(name)]


def test_ids_are_the_librarys_own_for_text_in_nfc(folder):
    tokenizer = load_text_tokenizer(folder / "bpe")
    for text in CORPUS[:6]:
        nfc = text.replace("e\u0301", "é")
        assert tokenizer.encode(nfc) == LIBRARY.encode(nfc).ids


def test_the_file_s_surroundings_change_no_ids():
    plain = BpeTokenizer(DOCUMENT, "a")
    template = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", plain.token_id("<|im_start|>"))]
    )
    library = bpe_library()
    library.post_processor = template
    library.enable_truncation(3)
    library.enable_padding(length=64)
    other = BpeTokenizer(library.to_str(), "b")
    random_merges = BpeTokenizer(changed(model={"dropout": 0.9}), "c")
    for text in CORPUS[:6]:
        assert other.encode(text) == random_merges.encode(text) == plain.encode(text)


@pytest.mark.parametrize(
    ("text", "position", "code"),
    [("\ud800", 0, "D800"), ("ab\udfffc", 2, "DFFF"), ("😀\udc80 \ud800", 1, "DC80")],
)
def test_lone_surrogates_are_refused(tokenizer, text, position, code):
    with pytest.raises(TokenizerError, match=rf"lone surrogate U\+{code} at position {position} "):
        tokenizer.encode(text)


def test_text_is_str(tokenizer):
    with pytest.raises(TypeError, match="text: expected str, got bytes"):
        tokenizer.encode(b"abc")
    assert check_unicode("\U0010ffff") == "\U0010ffff"


# --- decoding -----------------------------------------------------------------------------------


def test_special_tokens_are_left_out(tokenizer):
    start, end = tokenizer.token_id("audio_start"), tokenizer.token_id("audio_end")
    ids = [start, *tokenizer.encode("a <audio_pad_baichuan>"), end, tokenizer.eos_id]
    assert tokenizer.decode(ids) == "a <audio_pad_baichuan>"


def test_numpy_ids_decode(tokenizer):
    ids = np.array(tokenizer.encode("héllo 你好"), np.int32)
    assert tokenizer.decode(ids) == "héllo 你好"


@pytest.mark.parametrize("offset", [0, 7])
def test_unknown_ids_are_refused(tokenizer, offset):
    for bad in (tokenizer.vocab_size + offset, -1 - offset):
        with pytest.raises(TokenizerError, match=rf"no token has id {bad}, expected one of 0\.\."):
            tokenizer.decode([bad])
    with pytest.raises(TypeError):
        tokenizer.decode([1.0])


def test_an_id_in_a_gap_is_refused():
    tokens = json.loads(DOCUMENT)["added_tokens"]
    for token in tokens:
        token["id"] += 10
    tokenizer = BpeTokenizer(changed(added_tokens=tokens), "gap.json")
    assert tokenizer.vocab_size == 512 + len(ADDED) + 10
    with pytest.raises(TokenizerError, match="gap.json: no token has id 515"):
        tokenizer.decode([515])


@settings(max_examples=200)
@given(data=st.data())
def test_streaming_gives_whole_characters_and_the_same_text(tokenizer, data):
    # Any ids: a model may sample bytes that are no UTF-8.
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    stream = tokenizer.stream()
    parts = [stream.push(i) for i in ids]
    parts.append(stream.flush())
    assert "".join(parts) == tokenizer.decode(ids)


@settings(max_examples=200)
@given(text=UNICODE)
def test_streaming_emits_a_prefix_of_the_text_at_each_id(tokenizer, text):
    stream, so_far = tokenizer.stream(), ""
    for i in tokenizer.encode(text):
        so_far += stream.push(i)
        assert text.startswith(so_far)
    assert so_far == text
    assert stream.flush() == ""


def test_an_unfinished_character_waits_and_is_flushed(tokenizer):
    ids = tokenizer.encode("\U0001f9ff")  # In no vocabulary: spelt in bytes.
    assert len(ids) > 1
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.flush() == "\ufffd"
    assert "".join(stream.push(i) for i in ids) == "\U0001f9ff"


# --- special tokens and the model's config ------------------------------------------------------


def test_special_tokens_have_names(tokenizer):
    tokens = tokenizer.audio_tokens
    for field in dataclasses.fields(AudioTokens):
        assert tokenizer.token_id(field.name) == getattr(tokens, field.name)
        assert tokenizer.token_id(f"<{field.name}_baichuan>") == getattr(tokens, field.name)
    for role, spelling in ROLE_NAMES.items():
        assert tokenizer.token_id(role) == tokenizer.token_id(spelling)
    assert tokenizer.token_id("eos") == tokenizer.eos_id
    with pytest.raises(TokenizerError, match="no special token 'nonesuch'; it has .*<C_Q>"):
        tokenizer.token_id("nonesuch")


def test_an_ordinary_token_is_no_special_token(tokenizer):
    with pytest.raises(TokenizerError, match="no special token 'a'"):
        tokenizer.token_id("a")


def test_check_against_the_model(tokenizer):
    tokens, size = tokenizer.audio_tokens, tokenizer.vocab_size
    tokenizer.check_against(tokens, size)
    tokenizer.check_against(tokens, size + 100)
    with pytest.raises(TokenizerError, match=rf"{size} ids, expected at most .* {size - 1}$"):
        tokenizer.check_against(tokens, size - 1)
    moved = dataclasses.replace(tokens, audio_delim=99)
    message = rf"<audio_delim_baichuan> has id {tokens.audio_delim}, expected 99 \(tokens.audio_de"
    with pytest.raises(TokenizerError, match=message):
        tokenizer.check_against(moved, size)


def test_the_nano_tokenizer_fits_the_nano_config(folder):
    config = model_configs.get_config("nano")
    tokenizer = load_text_tokenizer(folder / "sp" / "nano.model")
    tokenizer.check_against(AudioTokens(**config.tokens), config.llm.vocab_size)
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    assert [names[i] for i in range(15)] == ["<unk>", "<s>", "</s>", *SPECIAL_TOKENS]
    assert [tokenizer.token_id(role) for role in ("system", "user", "assistant")] == [12, 13, 14]
    assert tokenizer.eos_id == 2


def test_a_tokenizer_without_audio_tokens():
    tokens = json.loads(DOCUMENT)["added_tokens"][:1]
    plain = BpeTokenizer(changed(added_tokens=tokens), "plain.json")
    assert plain.decode(plain.encode("<C_Q> hi")) == "<C_Q> hi"
    with pytest.raises(TokenizerError, match="plain.json: no special token '<audio_start_baichua"):
        _ = plain.audio_tokens
    with pytest.raises(TokenizerError, match="<audio_start_baichuan> has id None, expected 151676"):
        plain.check_against(AudioTokens(), 152064)


# --- loading ------------------------------------------------------------------------------------


def test_the_content_tells_the_kind(folder, tmp_path):
    for source, kind in (("bpe/tokenizer.json", BpeTokenizer), ("sp/nano.model", None)):
        (tmp_path / "file.bin").write_bytes((folder / source).read_bytes())
        loaded = load_text_tokenizer(str(tmp_path / "file.bin"))
        assert isinstance(loaded, kind or SentencePieceTokenizer)
        assert loaded.path == str(tmp_path / "file.bin")


@pytest.mark.parametrize("token", ["<|im_end|>", {"content": "<|im_end|>", "lstrip": False}])
def test_eos_is_read_from_the_tokenizer_config(folder, tmp_path, token):
    (tmp_path / "tokenizer.json").write_text("\ufeff" + DOCUMENT, encoding="utf-8")
    assert load_text_tokenizer(tmp_path).eos_id == LIBRARY.token_to_id("<|endoftext|>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": token}))
    assert load_text_tokenizer(tmp_path).eos_id == LIBRARY.token_to_id("<|im_end|>")
    loaded = load_text_tokenizer(tmp_path)
    assert pickle.loads(pickle.dumps(loaded)).eos_id == loaded.eos_id
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": [1]}))
    with pytest.raises(TokenizerError, match=r"tokenizer_config.json: eos_token \[1\], expected"):
        load_text_tokenizer(tmp_path)


def test_a_copy_in_another_process(tokenizer, tmp_path):
    text = "你好, <|im_end|> \u2581\0 world"
    (tmp_path / "pickled").write_bytes(pickle.dumps(tokenizer))
    code = (
        "import pickle, sys\n"
        "tokenizer = pickle.load(open('pickled', 'rb'))\n"
        f"ids = tokenizer.encode({text!r})\n"
        f"assert tokenizer.decode(ids) == {text!r}\n"
        "loaded = {'jax', 'torch', 'transformers', 'tensorflow', 'huggingface_hub'}\n"
        "print(ids, tokenizer.eos_id, loaded & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.stdout == f"{tokenizer.encode(text)} {tokenizer.eos_id} set()\n", run.stderr


def added(*pairs) -> list[dict]:
    return [{"content": name, "id": i} for name, i in pairs]


BAD_JSON = [
    ("", "expected JSON"),
    ("{", "expected JSON"),
    ("[" * 100_000, "expected JSON"),
    ("[1]", "expected a JSON object, got list"),
    ("{}", "model type None, expected a tokenizer.json"),
    (changed(added_tokens=[]), "no added token '<|endoftext|>' to end a text; it has none"),
    (changed(model={"type": "WordPiece"}), "model type 'WordPiece', expected"),
    (changed(model={"vocab": {"a": -1}}), "expected a byte-level BPE tokenizer: .*from -1"),
    (
        changed(model={"vocab": {"a": 2**40}}),
        "expected a byte-level BPE tokenizer: .*1099511627776",
    ),
    (
        changed(model={"vocab": {"a": 0}, "merges": []}),
        "a token for each byte, 255 of 256 are missing",
    ),
    (changed(model={"merges": [["Ġ"]]}), "expected a byte-level BPE tokenizer"),
    (changed(model={"merges": [["Ġ", "nonesuch"]]}), "expected a byte-level BPE tokenizer"),
    (changed(model={"end_of_word_suffix": "</w>"}), "end_of_word_suffix '</w>', expected none"),
    (changed(normalizer={"type": "Lowercase"}), "normalizer 'Lowercase', expected none or NFC"),
    (changed(pre_tokenizer=None), "pre_tokenizer None, expected steps of Sequence, ByteLevel"),
    (changed(pre_tokenizer={"type": "WhitespaceSplit"}), "pre_tokenizer .*WhitespaceSplit"),
    (changed(pre_tokenizer={"type": "Digits", "individual_digits": True}), "comes back as"),
    (
        changed(pre_tokenizer={"type": "Split", "pattern": {"String": "Q"}, "behavior": "Removed"}),
        "pre_tokenizer .*'Removed'.* that remove nothing",
    ),
    (
        changed(
            pre_tokenizer={
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        ),
        "comes back as",
    ),
    (changed(added_tokens=3), "expected a byte-level BPE tokenizer: TypeError"),
    (changed(added_tokens=[{"id": 1}]), "expected a byte-level BPE tokenizer: KeyError"),
    (
        changed(added_tokens=added(("<x>", 600), ("<x>", 601))),
        "expected every token and every id once",
    ),
    (changed(added_tokens=added(("<|endoftext|>", 5))), "expected every token and every id once"),
    (changed(added_tokens=added(("<C_Q>", 600))), "no added token '<|endoftext|>'.* has <C_Q>"),
]


@pytest.mark.parametrize(("content", "message"), BAD_JSON)
def test_bad_tokenizer_json(tmp_path, content, message):
    file = tmp_path / "tokenizer.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match="(?s)" + message.replace("|", r"\|")) as error:
        load_text_tokenizer(file)
    assert str(error.value).startswith(f"{file}: ")


def test_a_vocabulary_with_foreign_characters_is_refused():
    vocab = json.loads(DOCUMENT)["model"]["vocab"] | {"你": 600}
    with pytest.raises(TokenizerError, match=r"'你' \(id 600\) holds characters that stand for no"):
        BpeTokenizer(changed(model={"vocab": vocab}), "x.json")


def test_a_special_token_that_text_can_produce_is_refused(tmp_path):
    # A token of the vocabulary, made by a merge ...
    merges = json.loads(DOCUMENT)["model"]["merges"]
    token = "".join(merges[0])
    tokens = added((token, json.loads(DOCUMENT)["model"]["vocab"][token]), ("<|endoftext|>", 512))
    with pytest.raises(TokenizerError, match="x.json: expected a byte-level BPE tokenizer"):
        BpeTokenizer(changed(added_tokens=tokens), "x.json")
    # ... or as a user-defined symbol of SentencePiece, which is an ordinary token.
    model = tmp_path / "user.model"
    sentencepiece_file(model, user_defined_symbols=["<audio_pad_baichuan>"], **EXACT)
    with pytest.raises(TokenizerError, match="no special token '<audio_pad_baichuan>'"):
        load_text_tokenizer(model).token_id("audio_pad")


def test_missing_and_unreadable_files(folder, tmp_path):
    with pytest.raises(TokenizerError, match="nonesuch: No such file or directory, expected a tok"):
        load_text_tokenizer(tmp_path / "nonesuch")
    with pytest.raises(TokenizerError, match="found neither, expected tokenizer.json or one"):
        load_text_tokenizer(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes((folder / "sp" / "nano.model").read_bytes())
    with pytest.raises(TokenizerError, match="found a.model, b.model, expected"):
        load_text_tokenizer(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(TokenizerError, match="latin.json: expected JSON in UTF-8"):
        load_text_tokenizer(tmp_path / "latin.json")


def sentencepiece_file(path: pathlib.Path, **options) -> None:
    """A model trained with SentencePiece's own defaults but for the options."""
    defaults = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=file, **(defaults | options)
        )


EXACT = {
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "comes back as .* identity normalisation, no dummy prefix"),
        (EXACT | {"add_dummy_prefix": True}, "comes back as"),
        (EXACT | {"remove_extra_whitespaces": True}, "comes back as"),
        (EXACT | {"normalization_rule_name": "nfkc"}, "comes back as"),
        (EXACT | {"normalization_rule_name": "nmt_nfkc"}, "comes back as"),
        (EXACT | {"byte_fallback": False, "vocab_size": 200}, "0 byte pieces, expected 256"),
        (EXACT | {"eos_id": -1}, "no end-of-sentence piece"),
    ],
)
def test_sentencepiece_models_that_lose_text_are_refused(tmp_path, options, message):
    file = tmp_path / "other.model"
    sentencepiece_file(file, **options)
    with pytest.raises(TokenizerError, match=f"(?s)other.model: .*{message}"):
        load_text_tokenizer(file)


def test_corrupt_sentencepiece_models(folder, tmp_path):
    content = (folder / "sp" / "nano.model").read_bytes()
    file = tmp_path / "corrupt.model"
    step = len(content) // 20
    for bad in (b"", b"junk", bytes(100), *(content[:end] for end in range(1, len(content), step))):
        file.write_bytes(bad)
        with pytest.raises(TokenizerError, match="corrupt.model: "):
            load_text_tokenizer(file)
    rng = random.Random(0)
    refused = 0
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= rng.randrange(1, 256)
        try:
            loaded = SentencePieceTokenizer(bytes(damaged), "damaged")
        except TokenizerError:
            refused += 1
        else:
            assert loaded.decode(loaded.encode(CORPUS[3])) == CORPUS[3]
    assert refused > 10
