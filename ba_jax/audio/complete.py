"""Sizes that audio files state about themselves, compared with the file.

ffmpeg and libsndfile return the samples that are there and say nothing of missing ones. These
checks look at a few headers (of Ogg at every page) before anything is decoded.
"""

from __future__ import annotations

import logging
import struct
import zlib
from typing import BinaryIO

from ba_jax.audio.checks import AudioError

_MAX_CHUNKS = 4096  # of a RIFF file; real ones have a handful
# Data sizes of a WAV file that mean "unknown": writers into a pipe cannot go back.
_UNKNOWN_SIZES = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_UNKNOWN_SLACK = 0x2000  # writers round them down to a block, or take a header off
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def cut_short(name: str, format: str, problem: str) -> AudioError:
    """The error of a file that lacks a part."""
    return AudioError(
        f"{name}: {format} file cut short: {problem}, expected a whole file", "truncated audio"
    )


def check_complete(stream: BinaryIO, size: int, name: str) -> bool:
    """Check a file of `size` bytes against the sizes that its container states.

    WAV: the data chunk; sizes that mean "unknown" pass. Ogg: all pages, with their checksums; a
    last page without the mark of the end logs a warning. MP3: the byte count of a Xing frame.
    Other formats pass.

    Returns:
      True for Ogg Opus in a single stream that ends.

    Raises:
      AudioError: a file that lacks a part of what it states, or a damaged Ogg page.
    """
    head = _read_at(stream, 0, 12)
    if head[:4] == b"OggS":
        return _check_ogg(stream, size, name)
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:] == b"WAVE":
        _check_wav(stream, size, name)
    else:
        _check_mp3(stream, size, name)
    return False


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of Ogg: the polynomial of zlib with bits in the other order, from 0."""
    crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


def _read_at(stream: BinaryIO, offset: int, count: int) -> bytes:
    stream.seek(offset)
    return stream.read(count)


def _check_wav(stream: BinaryIO, size: int, name: str) -> None:
    head = _read_at(stream, 0, 12)
    order = ">" if head[:4] == b"RIFX" else "<"
    offset, long_size = 12, 0
    for _ in range(_MAX_CHUNKS):
        chunk = _read_at(stream, offset, 8)
        if len(chunk) < 8:
            return
        kind, length = struct.unpack(f"{order}4sI", chunk)
        if kind == b"ds64":  # RF64: 64-bit sizes of the file and of the data chunk
            (long_size,) = struct.unpack("<8xQ", stream.read(16).ljust(16, b"\0"))
        if kind == b"data":
            break
        offset += 8 + length + length % 2
    else:
        return
    present = size - offset - 8
    if long_size and length == 0xFFFFFFFF:
        length = long_size
    elif any(abs(length - unknown) <= _UNKNOWN_SLACK for unknown in _UNKNOWN_SIZES):
        return
    # Some writers state the size of the file, with its header or a part of it.
    if length > present and length not in (size, size - 8, present + 8):
        problem = f"its data chunk claims {length} bytes and {present} are there"
        raise cut_short(name, "wav", problem)


def _check_ogg(stream: BinaryIO, size: int, name: str) -> bool:
    offset, streams, flags, is_opus = 0, 0, 0, False
    while offset < size:
        head = _read_at(stream, offset, 27 + 255)
        if head[:4] != b"OggS":
            if not head.strip(b"\0\xff") or head[:3] in (b"TAG", b"ID3", b"APE"):
                break
            raise _damaged_ogg(name, offset, f"{head[:4]!r}, expected an Ogg page")
        segments = head[26] if len(head) > 26 else 0
        length = 27 + segments + sum(head[27 : 27 + segments])
        if len(head) < 27 + segments or offset + length > size:
            raise cut_short(name, "ogg", f"its page at byte {offset} is incomplete")
        page = bytearray(_read_at(stream, offset, length))
        stated = int.from_bytes(page[22:26], "little")
        page[22:26] = bytes(4)
        if (checksum := ogg_checksum(page)) != stated:
            raise _damaged_ogg(name, offset, f"checksum {checksum:08x}, expected {stated:08x}")
        flags = page[5]
        if flags & 2:  # the first page of a stream
            streams += 1
            is_opus = page[27 + segments :].startswith(b"OpusHead")
        offset += length
    has_end = bool(flags & 4)
    if not has_end:
        logging.warning(
            "%s: its last page is not marked as the end: recording stopped, or cut there", name
        )
    return streams == 1 and is_opus and has_end


def _damaged_ogg(name: str, offset: int, problem: str) -> AudioError:
    return AudioError(f"{name}: ogg file damaged at byte {offset}: {problem}", "truncated audio")


def _check_mp3(stream: BinaryIO, size: int, name: str) -> None:
    start = 0
    while (head := _read_at(stream, start, 10))[:3] == b"ID3" and len(head) == 10:
        length = sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:]))
        start += 10 + length + (10 if head[5] & 0x10 else 0)
    frame = _read_at(stream, start, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or len(frame) < at + 16:
        return
    flags, *values = struct.unpack(">III", frame[at + 4 : at + 16])
    claimed = values[flags & 1] if flags & 2 else 0
    if claimed > size - start:
        problem = f"its Xing/Info frame claims {claimed} bytes and {size - start} are there"
        raise cut_short(name, "mp3", problem)
