"""What kind of audio file this is, and whether its end is missing, read from the container alone.

libsndfile decodes what is there and returns it without a word when a WAV, Ogg or MP3 file was cut
short. These checks read a few headers (an MP3 without an index: one header a frame) and allocate
next to nothing, whatever the headers claim.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import BinaryIO

_MAX_CHUNKS = 4096  # of a RIFF file; real ones have a handful
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes, the longest page
_PIECE = 1 << 16  # bytes read at a time


def find_kind(stream: BinaryIO) -> str | None:
    """ "wav", "flac", "ogg" or "mp3" by the file's first bytes; None if it is none of them.

    The stream is read from its start and left anywhere.
    """
    start = _skip_id3(stream)
    head = _read_at(stream, start, 16)
    if start == 0 and head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS":
        return "ogg"
    length = _mp3_frame_bytes(head[:4])
    if length is None:
        return None
    # Two set bytes are little evidence: the next frame must start where this one says.
    following = _read_at(stream, start + length, 4)
    is_mp3 = len(following) < 4 or _mp3_frame_bytes(following) or following[:3] == b"TAG"
    return "mp3" if is_mp3 else None


def find_truncation(
    stream: BinaryIO, kind: str, size: int, max_seconds: float = math.inf
) -> str | None:
    """What shows that a file of `size` bytes is cut short, as a phrase; None if nothing does.

    No frame past `max_seconds` is looked at.

    WAV: the data chunk against the file size. Ogg: the last page must be whole and marked as the
    stream's last. MP3: the byte count of its Xing/Info frame if it has one, and the last frame
    must be whole; an MP3 without such a frame that is cut between two frames shows nothing.
    FLAC: nothing here; its decoder notices.
    """
    if kind == "wav":
        return _wav_truncation(stream, size)
    if kind == "ogg":
        return _ogg_truncation(stream, size)
    if kind == "mp3":
        return _mp3_truncation(stream, size, max_seconds)
    return None


def _read_at(stream: BinaryIO, offset: int, count: int) -> bytes:
    stream.seek(offset)
    return stream.read(count)


def _skip_id3(stream: BinaryIO) -> int:
    """The offset behind an ID3v2 tag at the file's start, or 0."""
    head = _read_at(stream, 0, 10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:10]:  # seven bits a byte
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _wav_truncation(stream: BinaryIO, size: int) -> str | None:
    head = _read_at(stream, 0, 4)
    order = ">" if head == b"RIFX" else "<"
    offset, long_data = 12, None
    for _ in range(_MAX_CHUNKS):
        chunk = _read_at(stream, offset, 8)
        if len(chunk) < 8:
            return "has no data chunk"
        name, length = struct.unpack(f"{order}4sI", chunk)
        if name == b"ds64":  # RF64: 64-bit sizes of the file and of the data chunk
            sizes = stream.read(16)
            long_data = struct.unpack("<8xQ", sizes)[0] if len(sizes) == 16 else None
        if name == b"data":
            if length == 0xFFFFFFFF and head == b"RF64" and long_data is not None:
                length = long_data
            present = size - offset - 8
            if length > present:
                return f"its data chunk claims {length} bytes and {present} are there"
            return None
        offset += 8 + length + length % 2
    return f"has no data chunk among its first {_MAX_CHUNKS} chunks"


def _ogg_truncation(stream: BinaryIO, size: int) -> str | None:
    start = max(0, size - 2 * _OGG_PAGE)
    tail = _read_at(stream, start, 2 * _OGG_PAGE)
    page = tail.rfind(b"OggS")
    if page < 0:
        return "its last page is missing"
    segments = tail[page + 26] if page + 26 < len(tail) else None
    table = tail[page + 27 : page + 27 + (segments or 0)]
    if segments is None or page + 27 + segments + sum(table) > len(tail):
        return f"its last page, at byte {start + page}, is incomplete"
    if not tail[page + 5] & 4:
        return f"its last page, at byte {start + page}, is not marked as the end of the stream"
    return None


# kbit/s by bit rate index 1..14, for MPEG-1 layers I, II, III, then MPEG-2 layers I and II/III.
_MP3_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


@functools.lru_cache(maxsize=1024)
def _mp3_frame_bytes(header: bytes) -> int | None:
    """Bytes of the MPEG audio frame that starts with this header; None if it is not one."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    kbits_index, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or layer == 4 or rate_index == 3 or kbits_index in (0, 15):
        return None  # reserved values, and the free format, whose frames state no length
    kbits = _MP3_KBITS[1 if version == 3 else 2, layer][kbits_index - 1]
    rate = _MP3_RATES[version][rate_index]
    padding = header[2] >> 1 & 1
    if layer == 1:
        return (12000 * kbits // rate + padding) * 4
    samples_per_byte = 72000 if layer == 3 and version != 3 else 144000
    return samples_per_byte * kbits // rate + padding


def _mp3_truncation(stream: BinaryIO, size: int, max_seconds: float) -> str | None:
    start = _skip_id3(stream)
    if start >= size:
        return f"its ID3 tag claims {start} bytes of {size}"
    claimed = _mp3_index_bytes(stream, start)
    if claimed is not None and claimed > size - start:
        return f"its Xing/Info frame claims {claimed} bytes and {size - start} are there"
    _, end, following = _walk_mp3(stream, start, size, max_seconds)
    if end > size:
        return f"its last frame ends {end - size} bytes past the file"
    if following[:1] == b"\xff" and len(following) < 4:
        return "its last frame header is incomplete"
    return None


def _walk_mp3(
    stream: BinaryIO, start: int, size: int, max_seconds: float
) -> tuple[int, int, bytes]:
    """Steps from header to header: (frames, the offset behind the last, four bytes from there).

    Stops one second past `max_seconds`.
    """
    header = _read_at(stream, start, 4)
    rate = _MP3_RATES[header[1] >> 3 & 3][header[2] >> 2 & 3]
    # The fewest samples a frame has at each rate: 384 in layer I, 576 in MPEG-2 layer III.
    max_frames = (max_seconds + 1) * rate / (384 if header[1] >> 1 & 3 == 3 else 576)
    frames, offset, piece, piece_start = 0, start, b"", start
    while offset < size and frames < max_frames:
        if offset + 4 > piece_start + len(piece):
            piece, piece_start = _read_at(stream, offset, _PIECE), offset
        header = piece[offset - piece_start : offset - piece_start + 4]
        length = _mp3_frame_bytes(header)
        if length is None:
            return frames, offset, header
        frames, offset = frames + 1, offset + length
    return frames, offset, _read_at(stream, offset, 4)


def make_mp3_index(
    stream: BinaryIO, size: int, max_seconds: float = math.inf
) -> tuple[bytes, int, int] | None:
    """A Xing frame to put before the frames of an MP3 file that has none; None if it needs none.

    Returns the frame, and the offsets where the file's frames start and end (or where they pass
    `max_seconds`).

    Without one, libsndfile guesses the number of samples from the first frames and decodes no
    more than that: a variable bit rate would lose its end in silence. None is made for layers I
    and II, which have no such frame, or if other than tags or zeros follow the frames.
    """
    start = _skip_id3(stream)
    header = bytearray(_read_at(stream, start, 4))
    if header[1] >> 1 & 3 != 1 or _mp3_index_bytes(stream, start) is not None:
        return None
    frames, end, following = _walk_mp3(stream, start, size, max_seconds)
    is_tag = following[:3] in (b"TAG", b"APE", b"LYR")
    # (a frame follows where the walk stopped for max_seconds)
    is_frame = _mp3_frame_bytes(following) is not None
    if end != size and not (is_tag or is_frame or following == bytes(4)):
        return None
    header[1] |= 1  # no checksum
    for kbits_index in range(1, 15):
        header[2] = kbits_index << 4 | header[2] & 0x0C
        length = _mp3_frame_bytes(bytes(header))
        if length >= 64:
            break
    is_mono, is_mpeg1 = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    side_info = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    index = bytes(header) + bytes(side_info)
    index += struct.pack(">4sIII", b"Xing", 3, frames, end - start + length)
    return index + bytes(length - len(index)), start, end


def _mp3_index_bytes(stream: BinaryIO, start: int) -> int | None:
    """The byte count in the first frame's Xing or Info header, if there is one."""
    frame = _read_at(stream, start, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 16:
        return None
    flags, *values = struct.unpack(">III", frame[at + 4 : at + 16])
    has_frames, has_bytes = flags & 1, flags & 2
    return values[1 if has_frames else 0] if has_bytes else None
