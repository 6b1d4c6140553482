"""Writing audio files: WAV, FLAC, Ogg (Vorbis, Opus) and MP3, by libsndfile."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from typing import BinaryIO

import numpy as np

from ba_jax.audio.checks import AudioError, check_channels, check_rate, check_samples

_BLOCK_FRAMES = 1 << 16
# Format -> container, coding, and the rates that it can hold (None: any).
_FORMATS = {
    "wav": ("WAV", "PCM_16", None),
    "flac": ("FLAC", "PCM_16", None),
    "ogg": ("OGG", "VORBIS", None),
    "opus": ("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
    "mp3": (
        "MP3",
        "MPEG_LAYER_III",
        (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    ),
}


def write_audio(
    target: str | os.PathLike | BinaryIO,
    wave,
    sample_rate: int,
    format: str | None = None,
    *,
    subtype: str | None = None,
) -> None:
    """Write an audio file; a path is replaced atomically, or left as it was on an error.

    Args:
      target: path, or a file object open for binary writing.
      wave: floating array (S,) or (S, C), C <= 2, full scale +-1. Samples beyond it are clipped,
        except in floating-point WAV.
      sample_rate: Hz. Opus takes 8, 12, 16, 24 and 48 kHz, MP3 takes 8 to 48 kHz in steps.
      format: "wav" and "flac" (16 bits), "ogg" (Vorbis), "opus" (in Ogg) or "mp3"; by default
        the path's suffix.
      subtype: another coding of libsndfile, such as "FLOAT" or "PCM_24".

    Raises:
      AudioError: unknown format or coding, a rate the format cannot hold, another shape or type, no
        samples, more than 2 channels, NaN or Inf, or a path that cannot be written.
    """
    import soundfile

    is_path = isinstance(target, str | os.PathLike)
    name = os.fspath(target) if is_path else f"<file object {type(target).__name__}>"
    if format is None and is_path:
        format = os.path.splitext(name)[1].lstrip(".").lower()
    if format not in _FORMATS:
        raise AudioError(f"{name}: format {format!r}, expected one of {', '.join(_FORMATS)}")
    container, coding, rates = _FORMATS[format]
    coding = subtype or coding
    if not soundfile.check_format(container, coding):
        known = ", ".join(soundfile.available_subtypes(container))
        raise AudioError(f"{name}: coding {coding!r} in {format}, expected one of {known}")
    check_rate(f"{name}: sample rate", sample_rate)
    if rates and sample_rate not in rates:
        raise AudioError(f"{name}: {format} at {sample_rate} Hz, expected one of {rates}")
    wave = np.asarray(wave)
    if wave.ndim not in (1, 2) or wave.dtype.kind != "f" or not wave.size:
        raise AudioError(
            f"{name}: wave is {wave.dtype}{wave.shape}, expected a floating array (S,) or (S, C)"
        )
    wave_SC = wave if wave.ndim == 2 else wave[:, None]
    check_channels(f"{name}: wave", wave_SC.shape[1])
    check_samples(wave_SC, name)
    if coding not in ("FLOAT", "DOUBLE"):
        wave_SC = np.clip(wave_SC, -1.0, 1.0)

    # In memory: the target need not be seekable, and the encoder hides the error of a full disk.
    encoded = io.BytesIO()
    _encode(encoded, name, wave_SC, sample_rate, container, coding)
    if not is_path:
        target.write(encoded.getvalue())
        return
    folder, base = os.path.split(os.path.abspath(name))
    temporary = os.path.join(folder, f".{base}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(encoded.getvalue())
        os.replace(temporary, name)
    except OSError as error:
        raise AudioError(f"{name}: cannot be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _encode(stream, name: str, wave_SC, rate: int, container: str, coding: str) -> None:
    import soundfile

    try:
        with soundfile.SoundFile(
            stream, "w", rate, wave_SC.shape[1], coding, format=container
        ) as file:
            # Written in blocks: Vorbis encoders put the samples of a whole call on the stack.
            for start in range(0, len(wave_SC), _BLOCK_FRAMES):
                block = np.ascontiguousarray(wave_SC[start : start + _BLOCK_FRAMES])
                file.write(block if block.dtype == np.float64 else block.astype(np.float32))
    except soundfile.SoundFileError as error:
        raise AudioError(f"{name}: cannot be encoded ({error})") from error
