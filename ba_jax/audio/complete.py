"""Sizes and marks of the end that audio files state about themselves, compared with the file.

ffmpeg and libsndfile return the samples that are there, say nothing of missing ones and give no
access to these sizes. So a few headers (of Ogg and ADTS at every page or frame) are looked at
before anything is decoded. No file tells of a cut between two frames of an MP3 without Xing frame
or of an ADTS file: those pass. A file with a place for its length or its end that is left open
(recorders into a pipe, stopped recordings) may be cut as well: it is read with a warning.
"""

from __future__ import annotations

import collections
import itertools
import logging
import struct
import zlib
from typing import BinaryIO, NamedTuple

from ba_jax.audio.checks import AudioError

_MAX_CHUNKS = 4096  # of a RIFF or Matroska file; real ones have a handful
_BLOCK = 4096  # bytes
_MAX_BOXES = 1 << 16  # of an mp4 file: 9 hours of fragments of a second
# Data sizes of a WAV file that mean "unknown": writers into a pipe cannot go back.
_UNKNOWN_SIZES = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_UNKNOWN_SLACK = 0x10000  # writers round them down to a block, or take a header off
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Container(NamedTuple):
    """Format of a file, and what it states.

    Attributes:
      format: as ffmpeg names it: wav, w64, ogg, mov, matroska, flac, aac; "mp3" for anything else.
      has_end: whether it states its length, or where it ends; not "aac" and "mp3".
      start: offset behind tags in front.
      end: offset behind the last sample, or the file's size.
      for_libsndfile: Ogg Opus or Vorbis in a single stream that ends, FLAC that states its length,
        big-endian WAV.
      ogg_end: position at the end of an Ogg file; its samples, unless it was cut out of a stream.
    """

    format: str
    has_end: bool
    start: int
    end: int
    for_libsndfile: bool = False
    ogg_end: int = 0


class _File(NamedTuple):
    """A file to check, from behind the tags in its front."""

    stream: BinaryIO
    size: int
    name: str
    start: int

    def read(self, offset: int, count: int) -> bytes:
        self.stream.seek(offset)
        return self.stream.read(count)

    def cut_short(self, format: str, problem: str) -> AudioError:
        return cut_short(self.name, format, problem)

    def joined(self, format: str, offset: int) -> AudioError:
        """The error of files behind each other in one file, of a format that has no such files."""
        return AudioError(
            f"{self.name}: a second {format} file begins at byte {offset}, expected a single one",
            "joined files",
        )

    def warn_open(self, format: str, problem: str) -> None:
        """Log that a file may lack its end."""
        logging.warning("%s: %s file %s: recording stopped, or cut", self.name, format, problem)


def cut_short(name: str, format: str, problem: str) -> AudioError:
    """The error of a file that lacks a part."""
    return AudioError(
        f"{name}: {format} file cut short: {problem}, expected a whole file", "truncated audio"
    )


def check_complete(stream: BinaryIO, size: int, name: str) -> Container:
    """Check a file of `size` bytes against the sizes that its container states.

    Raises:
      AudioError: a file that lacks a part of what it states, holds a second file behind, or has a
        damaged Ogg page or ADTS frame.
    """
    start = skip_tags(stream, 0)
    file = _File(stream, size, name, start)
    head = file.read(start, 26)
    end, for_libsndfile, ogg_end = size, False, 0
    if head[:4] == b"OggS":
        format, (has_end, for_libsndfile, ogg_end) = "ogg", _check_ogg(file)
    elif head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        format, (has_end, end) = "wav", _check_wav(file)
        for_libsndfile = head[:4] == b"RIFX"
    elif head[:4] == b"riff":
        format, has_end = "w64", True  # ffmpeg tells what it states
    elif head[:4] == b"fLaC":
        format, has_end = "flac", _check_flac(file, head)
        for_libsndfile = has_end
    elif head[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        format, has_end = "mov", _check_mp4(file)
    elif head[:4] == b"\x1aE\xdf\xa3":
        format, has_end = "matroska", _check_matroska(file)
    elif head[:1] == b"\xff" and head[1:2] and head[1] & 0xF6 == 0xF0:
        format, has_end = "aac", _check_adts(file)
    else:
        format, has_end = "mp3", _check_mp3(file)
    if format in ("mp3", "aac", "flac") and not has_end:
        end = _skip_padding_behind(file)
    return Container(format, has_end, start, end, for_libsndfile, ogg_end)


def skip_tags(stream: BinaryIO, offset: int) -> int:
    """Return the offset behind the tags (ID3, APEv2, Lyrics3) and the padding that start there."""
    count = 0
    while count < _MAX_CHUNKS:
        stream.seek(offset)
        head = stream.read(_BLOCK)
        if not head:
            break
        if head[:3] == b"ID3" and len(head) >= 10:
            length = sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
            length += 20 if head[5] & 0x10 else 10
        elif head[:3] == b"TAG":
            length = 128
        elif head[:8] == b"APETAGEX" and len(head) >= 32:
            length, flags = struct.unpack("<12xI4xI", head[:24])
            length = length + 32 if flags & 1 << 29 else 32  # a footer stands alone here
        elif head[:11] == b"LYRICSBEGIN" and b"LYRICS200" in head:
            length = head.index(b"LYRICS200") + 9
        elif head[:1] in (b"\0", b"\xff"):
            length = len(head) - len(head.lstrip(head[:1]))
            if length < min(16, len(head)):
                break  # the begin of a frame or a box
        else:
            break
        offset += length
        count += length != _BLOCK
    return offset


def _skip_padding_behind(file: _File) -> int:
    """Return where a file of frames ends; ffmpeg would keep megabytes of padding in memory."""
    end = file.size
    while end - file.start > 2 * _BLOCK:
        block = file.read(end - 2 * _BLOCK, 2 * _BLOCK)
        if block.strip(b"\0") and block.strip(b"\xff"):
            break
        end -= _BLOCK
    return end


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of Ogg: the polynomial of zlib with bits in the other order, from 0."""
    crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{crc:032b}"[::-1], 2)


# --- formats --------------------------------------------------------------------------------------


def _check_wav(file: _File) -> tuple[bool, int]:
    """Return whether the size of the data chunk is stated, and the offset of its end."""
    order = ">" if file.read(file.start, 4) == b"RIFX" else "<"
    offset, long_size = file.start + 12, 0
    for _ in range(_MAX_CHUNKS):
        chunk = file.read(offset, 8)
        kind, length = struct.unpack(f"{order}4sI", chunk.ljust(8, b"\0"))
        if kind == b"ds64":  # RF64: 64-bit sizes of the file and of the data chunk
            (long_size,) = struct.unpack("<8xQ", file.stream.read(16).ljust(16, b"\0"))
        if kind == b"data" or len(chunk) < 8:
            break
        offset += 8 + length + length % 2
    if kind != b"data":
        problem = "no data chunk, expected a WAV file of samples"
        raise AudioError(f"{file.name}: {problem}", "not audio")
    offset += 8
    present = file.size - offset
    if long_size and length == 0xFFFFFFFF:
        length = long_size
    elif length == 0 or any(abs(length - value) <= _UNKNOWN_SLACK for value in _UNKNOWN_SIZES):
        if present:
            file.warn_open("wav", "states no length")
        return False, file.size
    if length <= present:
        _check_behind_wav(file, offset + length, order)
        return True, offset + length
    # Some writers state the size of the file, with its header or a part of it.
    header = offset - file.start
    if length - present not in (8, 36, 44, header, header - 8):
        problem = f"its data chunk claims {length} bytes and {present} are there"
        raise file.cut_short("wav", problem)
    if struct.unpack(f"{order}I", file.read(file.start + 4, 4))[0] > file.size - file.start - 8:
        file.warn_open("wav", f"claims {length} bytes of samples and holds {present}")
    return False, file.size


def _check_behind_wav(file: _File, offset: int, order: str) -> None:
    """Check that chunks, tags or padding are all that stands behind the data chunk."""
    data_end = offset
    for _ in range(_MAX_CHUNKS):
        offset += file.read(offset, 1) == b"\0"  # odd sizes are padded, by most writers
        chunk = file.read(offset, 8)
        if len(chunk) < 8 or skip_tags(file.stream, offset) >= file.size:
            return
        kind, length = struct.unpack(f"{order}4sI", chunk)
        if kind in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"data"):
            raise file.joined("wav", offset)
        if not kind.isascii() or not kind.decode().isprintable() or length > file.size - offset - 8:
            break
        offset += 8 + length
    raise AudioError(
        f"{file.name}: {file.size - data_end} bytes behind the samples that its wav header states, "
        "expected chunks or none: a wrong size, or damage",
        "truncated audio",
    )


def _check_flac(file: _File, head: bytes) -> bool:
    has_length = len(head) == 26 and (head[21] & 0x0F or any(head[22:26])) != 0
    if not has_length:
        file.warn_open("flac", "states no length")
    return has_length


def _check_ogg(file: _File) -> tuple[bool, bool, int]:
    """Return whether it is one stream that ends, whether that is Opus or Vorbis, and its end."""
    offset, end, streams, is_xiph, open_streams = file.start, 0, 0, False, {}
    for count in itertools.count():
        if offset >= file.size:
            break
        if count > _MAX_CHUNKS and offset < 64 * count:
            raise _damaged_ogg(file.name, offset, "thousands of empty pages")
        head = file.read(offset, 27 + 255)
        if head[:4] != b"OggS":
            if skip_tags(file.stream, offset) >= file.size:
                break
            raise _damaged_ogg(file.name, offset, f"{head[:4]!r}, expected an Ogg page")
        segments = head[26] if len(head) > 26 else 0
        length = 27 + segments + sum(head[27 : 27 + segments])
        if len(head) < 27 + segments or offset + length > file.size:
            raise file.cut_short("ogg", f"its page at byte {offset} is incomplete")
        page = bytearray(file.read(offset, length))
        flags, end, serial, number, stated = struct.unpack("<5xBqIII", page[:26])
        page[22:26] = bytes(4)
        if (checksum := ogg_checksum(page)) != stated:
            raise _damaged_ogg(file.name, offset, f"checksum {checksum:08x}, expected {stated:08x}")
        is_first = bool(flags & 2)
        if is_first:
            streams += 1
            is_xiph = page[27 + segments :].startswith((b"OpusHead", b"\x01vorbis"))
        elif number != open_streams.get(serial, number):
            problem = f"page {number} follows page {open_streams[serial] - 1}"
            raise file.cut_short("ogg", f"{problem} at byte {offset}")
        if is_first or serial in open_streams:
            open_streams[serial] = number + 1
        if flags & 4:
            open_streams.pop(serial, None)
            is_xiph &= segments > 0  # libsndfile refuses an end without a packet
        offset += length
    if open_streams:
        file.warn_open("ogg", "has no mark of its end")
    is_single = streams == 1 and not open_streams
    return is_single, is_single and is_xiph, end


def _damaged_ogg(name: str, offset: int, problem: str) -> AudioError:
    return AudioError(f"{name}: ogg file damaged at byte {offset}: {problem}", "truncated audio")


def _check_mp4(file: _File) -> bool:
    offset, counts = file.start, collections.Counter()
    while len(head := file.read(offset, 16)) >= 8 and head[4:8].isascii():
        length, kind = struct.unpack(">I4s", head[:8])
        if kind in (b"ftyp", b"moov") and counts[kind]:
            raise file.joined("mp4", offset)
        counts[kind] += 1
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">8xQ", head)
        if length == 0:  # to the end of the file
            length = file.size - offset
        if length < 8:
            break
        if counts.total() > _MAX_BOXES:
            raise AudioError(f"{file.name}: over {_MAX_BOXES} mp4 boxes", "not audio")
        offset += length
        if offset > file.size:
            if skip_tags(file.stream, offset - length) >= file.size:
                break
            raise file.cut_short("mp4", f"it claims {offset} bytes and {file.size} are there")
    # In fragments, an index in front or behind tells how many there are.
    has_end = not counts[b"moof"] or counts[b"mfra"] > 0 or counts[b"sidx"] == 1
    if not has_end:
        file.warn_open("mp4", "is in fragments without an index")
    return has_end


def _check_matroska(file: _File) -> bool:
    offset, segments = file.start, 0
    for _ in range(_MAX_CHUNKS):
        head = file.read(offset, 12).ljust(12, b"\0")
        # Leading zero bits of the first byte tell how many follow.
        id_size = 9 - head[0].bit_length()
        length_size = 9 - head[id_size].bit_length()
        if id_size > 4 or length_size > 8:
            break  # none of Matroska
        if segments and head[:4] == b"\x1aE\xdf\xa3":
            raise file.joined("matroska", offset)
        mask = (1 << 7 * length_size) - 1
        length = int.from_bytes(head[id_size : id_size + length_size], "big") & mask
        offset += id_size + length_size + length
        if head[:4] == b"\x18S\x80g":
            segments += 1
            if length == mask:
                file.warn_open("matroska", "states no length")
                return False
            if offset > file.size:
                problem = f"it claims {offset} bytes and {file.size} are there"
                raise file.cut_short("matroska", problem)
    return True


def _check_adts(file: _File) -> bool:
    offset, begin, block = file.start, 0, b""
    while offset < file.size:
        if offset + 7 > begin + len(block):
            begin, block = offset, file.read(offset, 1 << 20)
        at = offset - begin
        if len(block) < at + 7:
            raise file.cut_short("aac", f"its last frame at byte {offset} is incomplete")
        if block[at] != 0xFF or block[at + 1] & 0xF6 != 0xF0:
            behind = skip_tags(file.stream, offset)
            if behind == offset:
                problem = f"{block[at : at + 4]!r} at byte {offset}, expected an ADTS frame"
                raise AudioError(f"{file.name}: aac file damaged: {problem}", "truncated audio")
            offset, block = behind, b""
            continue
        length = (block[at + 3] & 3) << 11 | block[at + 4] << 3 | block[at + 5] >> 5
        if length <= 7 or offset + length > file.size:
            raise file.cut_short("aac", f"its last frame at byte {offset} is incomplete")
        offset += length
    return False


def _check_mp3(file: _File) -> bool:
    frame = file.read(file.start, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or at < 0 or len(frame) < at + 16:
        return False
    flags, *values = struct.unpack(">III", frame[at + 4 : at + 16])
    claimed = values[flags & 1] if flags & 2 else 0
    if claimed > file.size - file.start:
        there = file.size - file.start
        problem = f"its Xing/Info frame claims {claimed} bytes and {there} are there"
        raise file.cut_short("mp3", problem)
    return False
