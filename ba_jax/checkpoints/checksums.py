"""Checksums of a checkpoint's files, which Orbax does not keep: it restores a flipped bit silently.

STEP/checksums.json holds the size and the CRC-32 of every file in STEP's folders. It is written
when all of them are, before the folder gets its name, so that a checkpoint that counts as complete
has one. CRC-32 finds every flipped bit, and of other damage all but one case in 2^32; against
whoever forges files it does nothing. It is the fastest in Python's library by far: 4.2 GB a second
and core on an AMD EPYC, where SHA-256 does 1.8 and BLAKE2b 0.9; with reading, 1.07 GB that the
system still has in memory take 0.4 CPU-seconds.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

FILE = "checksums.json"
BLOCK_BYTES = 16 << 20
MAX_THREADS = 16


def write(folder: str | os.PathLike) -> None:
    """Writes the checksums of what the folders of `folder` hold; it appears whole.

    Raises:
      OSError: a file that cannot be read, or no room.
    """
    folder = Path(folder)
    names = [
        path.relative_to(folder).as_posix()
        for part in sorted(folder.iterdir())
        if part.is_dir()
        for path in sorted(part.rglob("*"))
        if path.is_file()
    ]
    with _threads(len(names)) as pool:
        sums = pool.map(lambda name: _checksum(folder / name), names)
        files = dict(zip(names, sums, strict=True))
    partial = folder / f"{FILE}.partial"
    with partial.open("w", encoding="utf-8") as stream:
        json.dump({"files": files, "crc32": _own(files)}, stream, indent=0)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(folder / FILE)


def damage(
    folder: str | os.PathLike, within: str = "", share: int = 0, shares: int = 1
) -> str | None:
    """The first damaged file of a checkpoint and what is wrong with it; None: none is.

    Args:
      folder: with checksums; without them nothing can be said, which is None too.
      within: of its folders only this one.
      share, shares: look at every `shares`-th file from `share` on: hosts divide the work.
    """
    path = Path(folder) / FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = json.loads(text)
        files = found["files"]
        whole = found["crc32"] == _own(files)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        return f"{path}: damaged itself"
    names = [name for name in sorted(files) if name.startswith(f"{within}/" if within else "")]
    mine = names[share::shares]
    with _threads(len(mine)) as pool:
        compared = pool.map(lambda name: _compare(Path(folder) / name, files[name]), mine)
        return next((problem for problem in compared if problem), None)


def _threads(files: int) -> concurrent.futures.ThreadPoolExecutor:
    most = min(MAX_THREADS, os.cpu_count() or 1, max(files, 1))
    return concurrent.futures.ThreadPoolExecutor(most, "ba_jax-checksums")


def _own(files: dict) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _blocks(path: Path) -> Iterator[memoryview]:
    block = memoryview(bytearray(min(BLOCK_BYTES, max(path.stat().st_size, 1))))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            yield block[:count]


def _checksum(path: Path) -> list[int]:
    """[size, CRC-32]."""
    size = value = 0
    for block in _blocks(path):
        size += len(block)
        value = zlib.crc32(block, value)
    return [size, value]


def _compare(path: Path, expected: list[int]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"{path}: {size} bytes, expected {expected[0]}"
        if _checksum(path) != expected:
            return f"{path}: {size} bytes, but not those that were written (CRC-32)"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None
