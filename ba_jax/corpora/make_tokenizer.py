"""Train a SentencePiece text tokenizer on a corpus."""

from __future__ import annotations

import io
import pathlib
import re
from collections.abc import Iterable, Sequence

import sentencepiece

from ba_jax.data.text_tokenizer import (
    AUDIO_TOKEN_NAMES,
    ROLE_NAMES,
    SentencePieceTokenizer,
    TokenizerError,
    check_unicode,
)
from ba_jax.files import write_whole

SPECIAL_TOKENS = (*AUDIO_TOKEN_NAMES.values(), *ROLE_NAMES.values())
"""A trained tokenizer's special tokens: ids 3, 4, ..., after <unk>, <s>, </s>."""

# Characters with a meaning to SentencePiece's trainer: line ends, NUL, its space symbol.
_LINE_ENDS = re.compile("[\r\n\0\u2581]+")
# Far above the default: the trainer silently omits longer lines.
_MAX_LINE_BYTES = 1 << 24


def train_sentencepiece(
    texts: Iterable[str],
    out: str | pathlib.Path,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
) -> SentencePieceTokenizer:
    """Train a SentencePiece BPE model with byte fallback and write it.

    Ids: <unk>, <s>, </s>, the special tokens from 3 on, 256 bytes, merges, characters. The special
    tokens are control symbols, which no text can produce. Digits are not merged. The same texts in
    the same order give the same file, byte for byte. There are fewer ids than `vocab_size` if the
    corpus runs out of pairs to merge.
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
            character_coverage=0.9995,  # the other characters are spelt in bytes
            # Without a piece for the space symbol, spaces decode to the bytes of that symbol.
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
            id = tokenizer.special_tokens.get(name)
            raise TokenizerError(f"{out}: {name} has id {id}, expected {3 + index}")
    write_whole(pathlib.Path(out), content)
    return tokenizer
