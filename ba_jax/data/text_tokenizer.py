"""Text tokenizers: byte-level BPE (Qwen2.5) and SentencePiece (nano) behind one interface.

Both keep two promises, and a file that would break one is refused:

  * `encode` never gives a special token, whatever the text is. The library that splits the text
    does not know the special tokens; their ids come from `token_id`, `audio_tokens` and `eos_id`.
  * `decode(encode(text)) == text` for every valid Unicode string: nothing is normalised, stripped
    or prefixed. So the NFC step in Qwen2.5's file is left out: text in NFC, which is nearly all
    text, gets the ids of the released tokenizer, other text is encoded unchanged.

Every id is a fixed string of bytes, so decoding joins bytes and reads UTF-8. A tokenizer pickles as
the content of its file: a worker does not read the file, which may have changed.
"""

from __future__ import annotations

import abc
import codecs
import dataclasses
import functools
import json
import operator
import pathlib
from collections.abc import Iterable, Mapping

import sentencepiece
import tokenizers

from ba_jax.files import list_files
from ba_jax.vocab import AudioTokens

AUDIO_TOKEN_NAMES = {
    field.name: f"<{field.name}_baichuan>" for field in dataclasses.fields(AudioTokens)
}
"""Name in `AudioTokens` -> the release's spelling."""

ROLE_NAMES = {"system": "<B_SYS>", "user": "<C_Q>", "assistant": "<C_A>"}
"""Role of a turn -> the release's spelling of the token that opens it."""

DEFAULT_EOS = "<|endoftext|>"

# Text that other tokenizers change: outer and repeated spaces, line ends, NUL, unnormalised and
# compatibility forms, characters outside every vocabulary, the space symbol of SentencePiece.
_PROBE = (
    "  a \t\r\n\0 \u2581e\u0301 \ufb01 \u4f60\u597d\uff01 \U0001f469\u200d\U0001f680 \U0010fffe  "
)

_CUTTING_STEPS = ("Sequence", "ByteLevel", "Split", "Digits", "Punctuation")
_MAX_ID = 1 << 24  # bounds the memory that a stray id can take


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used, text that is not Unicode, or an unknown id or name."""


class TextTokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      path: its file, for messages.
      vocab_size: highest id + 1, special tokens included. A language model may have more rows;
        sampling must not pick them.
      special_tokens: spelling -> id of the tokens that no text can produce.
      special_names: id -> spelling.
      eos_id: id of the token that ends a text.
    """

    def __init__(self, path: str, vocab_size: int, special_tokens: Mapping[str, int], eos_id: int):
        self.path = path
        self.vocab_size = vocab_size
        self.special_tokens = dict(special_tokens)
        self.eos_id = eos_id
        self.special_names = {token_id: name for name, token_id in special_tokens.items()}

    @abc.abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Ids of text that is valid Unicode."""

    @abc.abstractmethod
    def _piece(self, token_id: int) -> bytes | None:
        """Bytes of an ordinary token in [0, vocab_size); None for an id without token."""

    def encode(self, text: str) -> list[int]:
        """Encode plain text to ids; never gives a special token."""
        return self._encode(check_unicode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids (integers, of Python or NumPy) to exactly the text that was encoded.

        Special tokens are left out. Bytes that are not UTF-8, which a model may sample, become
        U+FFFD.
        """
        return b"".join(map(self._bytes, ids)).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """Make a decoder that takes one id at a time."""
        return StreamDecoder(self)

    def token_id(self, name: str) -> int:
        """Id of a special token: a field of `AudioTokens`, a role, "eos", or a spelling."""
        if name == "eos":
            return self.eos_id
        spelling = AUDIO_TOKEN_NAMES.get(name) or ROLE_NAMES.get(name) or name
        if spelling not in self.special_tokens:
            raise TokenizerError(
                f"{self.path}: no special token {spelling!r}; it has"
                f" {', '.join(self.special_tokens) or 'none'}"
            )
        return self.special_tokens[spelling]

    @functools.cached_property
    def audio_tokens(self) -> AudioTokens:
        """Ids of the tokens that delimit audio."""
        return AudioTokens(**{name: self.token_id(name) for name in AUDIO_TOKEN_NAMES})

    def check_against(self, audio_tokens: AudioTokens, vocab_size: int) -> None:
        """Raise TokenizerError unless ids and size fit the tokens and embedding of a model."""
        wrong = []
        for name, spelling in AUDIO_TOKEN_NAMES.items():
            token_id, expected = self.special_tokens.get(spelling), getattr(audio_tokens, name)
            if token_id != expected:
                wrong.append(f"{spelling} has id {token_id}, expected {expected} (tokens.{name})")
        if wrong:
            raise TokenizerError(f"{self.path}: {'; '.join(wrong)}")
        if self.vocab_size > vocab_size:
            raise TokenizerError(
                f"{self.path}: {self.vocab_size} ids, expected at most the language model's"
                f" vocab_size {vocab_size}"
            )

    def _bytes(self, token_id: int) -> bytes:
        token_id = operator.index(token_id)
        if token_id in self.special_names:
            return b""
        piece = self._piece(token_id) if 0 <= token_id < self.vocab_size else None
        if piece is None:
            raise TokenizerError(
                f"{self.path}: no token has id {token_id}, expected one of 0..{self.vocab_size - 1}"
            )
        return piece

    def _check_promises(self, expected: str) -> None:
        """Check that a probe and the special tokens' names come back as plain text."""
        for text in (_PROBE, *self.special_tokens):
            ids = self.encode(text)
            special = [i for i in ids if i in self.special_names]
            if special:
                raise TokenizerError(
                    f"{self.path}: the text {text!r} gives the special token"
                    f" {self.special_names[special[0]]!r} (id {special[0]}), expected {expected}"
                )
            if (back := self.decode(ids)) != text:
                raise TokenizerError(
                    f"{self.path}: {text!r} comes back as {back!r}, expected {expected}"
                )


class StreamDecoder:
    """Decodes ids as they are sampled, in whole characters.

    The returned strings, joined, equal `TextTokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the characters that this id completes, "" if none."""
        return self._utf8.decode(self._tokenizer._bytes(token_id))

    def flush(self) -> str:
        """End the text: returns U+FFFD for an unfinished character, else ""; then starts anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def check_unicode(text: str, name: str = "text") -> str:
    """Return the text if it is valid Unicode; else raise TokenizerError that names the place."""
    if not isinstance(text, str):
        raise TypeError(f"{name}: expected str, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{name}: lone surrogate U+{ord(text[error.start]):04X} at position {error.start} of"
            f" {len(text)}, expected valid Unicode"
        ) from None
    return text


# --- byte-level BPE -----------------------------------------------------------------------------


def byte_symbols() -> str:
    """The 256 characters that stand for bytes in byte-level BPE files (GPT-2's alphabet).

    Bytes that print in Latin-1 stand for themselves, the others, in order, are U+0100 and up.
    """
    printing = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printing else next(spare)) for byte in range(256))


_BYTE_SYMBOLS = byte_symbols()
_BYTE_OF_SYMBOL = {ord(symbol): byte for byte, symbol in enumerate(_BYTE_SYMBOLS)}


class BpeTokenizer(TextTokenizer):
    """Byte-level BPE from a `tokenizer.json` of Hugging Face tokenizers.

    Every added token counts as special, also if the file does not mark it so (Qwen2.5's
    `<tool_call>`): the library would otherwise produce it from user text.
    """

    def __init__(self, content: str, path: str, eos: str | None = None):
        """Parse the JSON of the file at `path`; `eos` spells the token that ends a text."""
        self._content, self._eos = content, eos
        document = _json_object(content, path)
        _check_model(document, path)
        try:
            added = sorted((token["id"], token["content"]) for token in document["added_tokens"])
            special_tokens = {spelling: token_id for token_id, spelling in added}
            vocab = {
                symbols: token_id
                for symbols, token_id in document["model"]["vocab"].items()
                if special_tokens.get(symbols) != token_id
            }
            ids = [*vocab.values(), *special_tokens.values()]
            if len(set(ids)) < len(vocab) + len(added):
                raise TokenizerError(f"{path}: expected every token and every id once")
            if not 0 <= min(ids) <= max(ids) < _MAX_ID:
                raise ValueError(f"ids from {min(ids)} to {max(ids)}")
            self._library = _bpe_library(document, vocab)
        except TokenizerError:
            raise
        except Exception as error:  # missing keys, wrong types; the library raises Exception
            raise TokenizerError(
                f"{path}: expected a byte-level BPE tokenizer: {error!r}"
            ) from error
        eos = DEFAULT_EOS if eos is None else eos
        if eos not in special_tokens:
            raise TokenizerError(
                f"{path}: no added token {eos!r} to end a text; it has"
                f" {', '.join(special_tokens) or 'none'}"
            )
        _check_byte_symbols(vocab, path)
        super().__init__(path, max(ids) + 1, special_tokens, special_tokens[eos])
        self._symbols: list[str | None] = [None] * self.vocab_size
        for symbols, token_id in vocab.items():
            self._symbols[token_id] = symbols
        self._check_promises("byte-level BPE without prefix space or normalisation")

    def __reduce__(self):
        return type(self), (self._content, self.path, self._eos)

    def _encode(self, text: str) -> list[int]:
        return self._library.encode(text, add_special_tokens=False).ids

    def _piece(self, token_id: int) -> bytes | None:
        symbols = self._symbols[token_id]
        return None if symbols is None else symbols.translate(_BYTE_OF_SYMBOL).encode("latin-1")


def _json_object(content: str, path: str) -> dict:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: expected JSON: {error}") from error
    if not isinstance(document, dict):
        raise TokenizerError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _bpe_library(document: dict, vocab: dict[str, int]) -> tokenizers.Tokenizer:
    """Make a library tokenizer of the file's pre-tokenizer and merges alone."""
    model = document["model"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    # Dropout, which would make encoding random, is left out. Passing the vocabulary takes half the
    # time of writing it as JSON for the library.
    bpe = tokenizers.models.BPE(
        vocab=vocab, merges=merges, ignore_merges=bool(model.get("ignore_merges"))
    )
    library = tokenizers.Tokenizer(bpe)
    shell = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    shell["pre_tokenizer"] = document["pre_tokenizer"]
    library.pre_tokenizer = tokenizers.Tokenizer.from_str(json.dumps(shell)).pre_tokenizer
    return library


def _check_model(document: dict, path: str) -> None:
    """Accept plain BPE without normalisation but NFC, and a pre-tokenizer that only cuts."""
    model, normaliser = document.get("model"), document.get("normalizer")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind != "BPE":
        raise TokenizerError(f"{path}: model type {kind!r}, expected a tokenizer.json with 'BPE'")
    name = normaliser.get("type") if isinstance(normaliser, dict) else normaliser
    if name not in (None, "NFC"):
        raise TokenizerError(f"{path}: normalizer {name!r}, expected none or NFC")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise TokenizerError(f"{path}: {name} {model[name]!r}, expected none")
    _check_pre_tokenizer(document.get("pre_tokenizer"), path)


def _check_pre_tokenizer(step: object, path: str) -> None:
    """Accept only steps that cut: others would lose or add text."""
    kind = step.get("type") if isinstance(step, dict) else step
    if kind not in _CUTTING_STEPS or step.get("behavior") == "Removed":
        raise TokenizerError(
            f"{path}: pre_tokenizer {step!r}, expected steps of {', '.join(_CUTTING_STEPS)} that"
            " remove nothing"
        )
    inner = step.get("pretokenizers", [])
    for part in inner if isinstance(inner, list) else [inner]:
        _check_pre_tokenizer(part, path)


def _check_byte_symbols(vocab: dict[str, int], path: str) -> None:
    if missing := sorted(set(_BYTE_SYMBOLS) - vocab.keys()):
        raise TokenizerError(
            f"{path}: expected byte-level BPE with a token for each byte, {len(missing)} of 256"
            f" are missing, byte 0x{_BYTE_OF_SYMBOL[ord(missing[0])]:02X} first"
        )
    if set("".join(vocab)) - set(_BYTE_SYMBOLS):
        odd = next(symbols for symbols in vocab if set(symbols) - set(_BYTE_SYMBOLS))
        raise TokenizerError(
            f"{path}: token {odd!r} (id {vocab[odd]}) holds characters that stand for no byte,"
            " expected byte-level BPE"
        )


# --- SentencePiece ------------------------------------------------------------------------------

_SPACE_SYMBOL = "\u2581"


class SentencePieceTokenizer(TextTokenizer):
    """SentencePiece with byte fallback, as `ba_jax.corpora.make_tokenizer` trains it.

    SentencePiece writes a space as U+2581 and cannot tell the two apart; here U+2581 in the text is
    encoded as its three bytes.
    """

    def __init__(self, content: bytes, path: str):
        """Parse the serialised ModelProto of the file at `path`."""
        self._content = content
        library = sentencepiece.SentencePieceProcessor()
        try:
            library.LoadFromSerializedProto(content)
            pieces = [library.id_to_piece(token_id) for token_id in range(library.vocab_size())]
        except (RuntimeError, UnicodeError) as error:
            raise TokenizerError(f"{path}: expected a SentencePiece model: {error}") from error
        special_tokens, byte_ids = {}, {}
        self._pieces: list[bytes] = []
        for token_id, piece in enumerate(pieces):
            data = piece.replace(_SPACE_SYMBOL, " ").encode("utf-8")
            if library.is_control(token_id) or library.is_unknown(token_id):
                special_tokens[piece] = token_id
            elif library.is_byte(token_id):
                byte = int(piece[3:5], 16)
                byte_ids[byte], data = token_id, bytes([byte])
            self._pieces.append(data)
        if len(byte_ids) < 256:
            raise TokenizerError(
                f"{path}: {len(byte_ids)} byte pieces, expected 256 (train with byte_fallback)"
            )
        if library.eos_id() < 0:
            raise TokenizerError(f"{path}: no end-of-sentence piece, expected </s>")
        super().__init__(path, library.vocab_size(), special_tokens, library.eos_id())
        self._library = library
        self._space_symbol_ids = [byte_ids[byte] for byte in _SPACE_SYMBOL.encode("utf-8")]
        self._check_promises(
            "a model with byte_fallback, identity normalisation, no dummy prefix and no stripping"
            " of spaces"
        )

    def __reduce__(self):
        return type(self), (self._content, self.path)

    def _encode(self, text: str) -> list[int]:
        first, *others = text.split(_SPACE_SYMBOL)
        ids = list(self._library.encode(first))
        for part in others:
            ids += self._space_symbol_ids
            ids += self._library.encode(part)
        return ids

    def _piece(self, token_id: int) -> bytes | None:
        return self._pieces[token_id]


# --- files --------------------------------------------------------------------------------------

_EXPECTED = "a tokenizer.json, a SentencePiece *.model, or a folder with one of them"


def load_text_tokenizer(path: str | pathlib.Path) -> TextTokenizer:
    """Read a tokenizer.json, a SentencePiece model, or a folder with one of them.

    Texts of a tokenizer.json end with the `eos_token` of the tokenizer_config.json beside it, else
    with `<|endoftext|>`.
    """
    file = _tokenizer_file(pathlib.Path(path))
    content = _read(file)
    if file.suffix == ".json" or content.lstrip()[:1] == b"{":
        eos = _eos_in_config(file.with_name("tokenizer_config.json"))
        return BpeTokenizer(_text(content, str(file)), str(file), eos)
    return SentencePieceTokenizer(content, str(file))


def _tokenizer_file(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        return path
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    models = list_files(path, ".model", deep=False)
    if len(models) != 1:
        names = ", ".join(model.name for model in models) or "neither"
        raise TokenizerError(f"{path}: found {names}, expected tokenizer.json or one *.model")
    return models[0]


def _read(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise TokenizerError(f"{file}: {reason}, expected {_EXPECTED}") from error


def _text(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: expected JSON in UTF-8: {error}") from error


def _eos_in_config(file: pathlib.Path) -> str | None:
    if not file.is_file():
        return None
    token = _json_object(_text(_read(file), str(file)), str(file)).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise TokenizerError(f"{file}: eos_token {token!r}, expected a token's name")
    return token
