"""Component groups, special-token ids, codebook sizes, checks on ids that come from outside.

The checks run on the host, before ids reach a device: inside a jitted gather an id out of range
gives NaN or wraps around silently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

COMPONENTS = (
    "audio_encoder",
    "vq_bridge",
    "audio_decoder",
    "flow_prenet",
    "flow_unet",
    "vocoder",
    "llm",
    "audio_embed",
    "audio_head",
)
"""Components of the model, in the order of their use: file, Linen module, section of the config and
entry of the parameter tree carry these names."""

SPEECH_ENCODER = ("audio_encoder", "vq_bridge")
"""Recordings to codes."""

SPEECH_TOKENIZER = (*SPEECH_ENCODER, "audio_decoder")
"""Components of the audio tokenizer (paper section 3.1)."""

SPEECH_DECODER = ("vq_bridge", "audio_decoder", "flow_prenet", "flow_unet")
"""Codes to mels; the vocoder follows."""

LANGUAGE_MODEL = ("llm", "audio_embed", "audio_head")
"""Components that read and write interleaved text and codes."""

CODEBOOK_SIZES = (8192, 4096, 2048, 1024, 1024, 1024, 1024, 1024)
"""Codes a codebook of the released tokenizer (paper section 3.1)."""


class TokenIdError(ValueError):
    """A token id outside the vocabulary."""


class CodeError(ValueError):
    """An audio code outside its codebook, or codes of the wrong shape."""


@dataclasses.dataclass(frozen=True)
class AudioTokens:
    """Ids of the tokens that delimit audio in the text stream; defaults are the release's."""

    audio_start: int = 151676
    audio_end: int = 151677
    audio_pad: int = 151678
    audio_delim: int = 151693
    audiotext_start: int = 151697
    audiotext_end: int = 151698
    audiotext_pad: int = 151699
    audiogen_start: int = 151700
    audiogen_end: int = 151701


def check_token_ids(ids, vocab_size: int, name: str = "token ids") -> np.ndarray:
    """Check that all ids lie in [0, vocab_size); return them as an int32 array.

    Raises:
      TokenIdError: naming the first id out of range and its index, or a non-integer dtype.
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TokenIdError(f"{name}: expected integers, got dtype {ids.dtype}")
    bad = (ids < 0) | (ids >= vocab_size)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise TokenIdError(
            f"{name}{list(where)} is {int(ids[where])}, expected 0..{vocab_size - 1}"
            f" ({int(bad.sum())} of {ids.size} are out of range)"
        )
    return ids.astype(np.int32)


def check_codes(
    codes, codebook_sizes: Sequence[int], *, allow_end: bool = False, name: str = "codes"
) -> np.ndarray:
    """Check that all codes (..., Q) lie in their codebooks; return them as an int32 array.

    Args:
      codes: integers; the last axis runs over the codebooks.
      codebook_sizes: (Q,) sizes.
      allow_end: also accept the extra class `codebook_sizes[q]`, "end of audio", which the
        embedding tables and the audio head have but the quantiser has not.
      name: what to call the array in the message, a file name for example.

    Raises:
      CodeError: naming the first code out of range, its index and what was expected.
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise CodeError(f"{name}: expected integers, got dtype {codes.dtype}")
    if codes.ndim < 1 or codes.shape[-1] != len(codebook_sizes):
        raise CodeError(
            f"{name}: expected a last axis of {len(codebook_sizes)} codebooks, got {codes.shape}"
        )
    limit = np.asarray(codebook_sizes) + (1 if allow_end else 0)
    bad = (codes < 0) | (codes >= limit)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise CodeError(
            f"{name}{list(where)} is {int(codes[where])}, expected 0..{int(limit[where[-1]]) - 1}"
            f" for codebook {where[-1]} ({int(bad.sum())} of {codes.size} are out of range)"
        )
    return codes.astype(np.int32)
