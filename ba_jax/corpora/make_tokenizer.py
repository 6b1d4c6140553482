"""Making tokenizer files: SentencePiece from a corpus, tokenizer.json from a tiktoken file."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ba_jax.data.text_tokenizer import (
    AUDIO_TOKEN_NAMES,
    ROLE_NAMES,
    BpeTokenizer,
    SentencePieceTokenizer,
    TokenizerError,
    byte_symbols,
    check_unicode,
)
from ba_jax.files import write_whole

SPECIAL_TOKENS = (*AUDIO_TOKEN_NAMES.values(), *ROLE_NAMES.values())
"""A trained tokenizer's special tokens: ids 3, 4, ..., after <unk>, <s>, </s>."""

# Where Qwen2 and Qwen2.5 cut text before BPE: contractions, words with the character before them,
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

# SentencePiece's trainer gives these meanings of its own: line ends, NUL, its space symbol.
_LINE_ENDS = re.compile("[\r\n\0\u2581]+")
# Far above its default, past which it silently leaves a line out.
_MAX_LINE_BYTES = 1 << 24


def train_sentencepiece(
    texts: Iterable[str],
    out: str | pathlib.Path,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    character_coverage: float = 0.9995,
) -> SentencePieceTokenizer:
    """Trains a SentencePiece BPE model with byte fallback and writes it.

    Ids: <unk>, <s>, </s>, the special tokens from 3 on, 256 bytes, merges, characters. The special
    tokens are control symbols, which no text can produce. Digits stay apart. The same texts in the
    same order give the same file, byte for byte.

    Args:
      texts: the corpus, line ends allowed.
      out: the `.model` file to write.
      vocab_size: at most so many ids; fewer if the corpus has no more pairs to merge.
      special_tokens: names, in the order of their ids.
      character_coverage: share of the corpus' characters that get a token of their own; the rest
        are spelt in bytes.

    Raises:
      TokenizerError: for a lone surrogate (naming the text and the position), an empty corpus, a
        repeated special token, or a vocabulary too small for the bytes and characters.
    """
    if len({"<unk>", "<s>", "</s>", *special_tokens}) < 3 + len(special_tokens):
        raise TokenizerError(f"special_tokens {list(special_tokens)}: expected each once")
    lines = []
    for index, text in enumerate(texts):
        lines += filter(str.strip, _LINE_ENDS.split(check_unicode(text, f"texts[{index}]")))
    if not lines:
        raise TokenizerError("texts: expected at least one that is not blank")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=character_coverage,
            # The space: without a piece of its own it comes back as the bytes of its symbol.
            required_chars="\u2581",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            control_symbols=list(special_tokens),
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=_MAX_LINE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(
            f"{out}: training on {len(lines)} lines with vocab_size {vocab_size}: {error}"
        ) from error
    content = model.getvalue()
    tokenizer = SentencePieceTokenizer(content, str(out))
    for index, name in enumerate(special_tokens):
        if tokenizer.special_tokens.get(name) != 3 + index:
            found = tokenizer.special_tokens.get(name)
            raise TokenizerError(f"{out}: {name} has id {found}, expected {3 + index}")
    write_whole(pathlib.Path(out), content)
    return tokenizer


def convert_tiktoken(
    ranks_file: str | pathlib.Path, added_tokens_file: str | pathlib.Path, out: str | pathlib.Path
) -> BpeTokenizer:
    """Writes Qwen's vocabulary as a tokenizer.json that Hugging Face tokenizers reads too.

    A tiktoken file has ranks but no merges; a token's merge is what BPE makes of its bytes with
    the merges of lower rank alone.

    Args:
      ranks_file: lines of `base64 rank`, as in `qwen.tiktoken`; the rank is the id.
      added_tokens_file: JSON, name -> id; the ids must follow the ranks without a gap.
      out: the tokenizer.json to write.

    Raises:
      TokenizerError: naming the file and line, or the token, and what was expected.
    """
    ranks = _read_ranks(pathlib.Path(ranks_file))
    added = _read_added(pathlib.Path(added_tokens_file))
    expected = list(range(len(ranks), len(ranks) + len(added)))
    if list(added.values()) != expected:
        raise TokenizerError(
            f"{added_tokens_file}: ids {sorted(added.values())}, expected"
            f" {len(ranks)}..{len(ranks) + len(added) - 1} after the {len(ranks)} ranks of"
            f" {ranks_file}"
        )
    symbols = byte_symbols()

    def written(data: bytes) -> str:
        return "".join(symbols[byte] for byte in data)

    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            parts = _split(token, ranks, rank)
            if len(parts) != 2:
                raise TokenizerError(
                    f"{ranks_file}: token {token!r} (rank {rank}) is no merge of two tokens of"
                    " lower rank"
                )
            merges.append((written(parts[0]), written(parts[1])))
    vocab = {written(token): rank for token, rank in ranks.items()}
    for name in added:
        if check_unicode(name, f"{added_tokens_file}: {name!r}") in vocab:
            raise TokenizerError(
                f"{added_tokens_file}: {name!r} is an ordinary token of {ranks_file}, expected"
                " names of no other token"
            )
    library = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    library.normalizer = normalizers.NFC()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(QWEN_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(added))
    content = library.to_str()
    tokenizer = BpeTokenizer(content, str(out))
    write_whole(pathlib.Path(out), content.encode("utf-8"))
    return tokenizer


def _read_ranks(file: pathlib.Path) -> dict[bytes, int]:
    """Token -> rank, in the order of the ranks, which are 0, 1, 2, ..."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(file).splitlines(), start=1):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            ordered = int(rank) == len(ranks) and token not in ranks and token != b""
        except (ValueError, binascii.Error):
            ordered = False
        if not ordered:
            raise TokenizerError(
                f"{file}:{number}: {line[:80]!r}, expected a new token in base64 and its rank"
                f" {len(ranks)}"
            )
        ranks[token] = len(ranks)
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise TokenizerError(f"{file}: no token for byte 0x{missing[0]:02X}, expected all 256")
    return ranks


def _read_added(file: pathlib.Path) -> dict[str, int]:
    """Name -> id, in the order of the ids."""
    try:
        added = json.loads(_read(file))
    except ValueError as error:
        raise TokenizerError(f"{file}: expected JSON: {error}") from error
    if not isinstance(added, dict) or not all(isinstance(value, int) for value in added.values()):
        raise TokenizerError(f"{file}: expected an object of names and ids")
    return dict(sorted(added.items(), key=lambda item: item[1]))


def _split(token: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """The parts that BPE leaves of a token with the merges of rank below `limit`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        joined = [ranks.get(a + b, limit) for a, b in zip(parts, parts[1:], strict=False)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= limit:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _read(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{file}: {error.strerror or type(error).__name__}") from error
