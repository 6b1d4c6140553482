"""Checksums of a checkpoint's files. Orbax keeps none: it restores a flipped bit silently.

STEP/checksums.json holds the size and the CRC-32 of every file in STEP's folders. It is written
after them and before the folder gets its name, so that every complete checkpoint has one. CRC-32
finds every flipped bit, and all but one in 2^32 cases of other damage; it is no protection against
forgery. It is by far the fastest of Python's library: 4.2 GB a second and core on an AMD EPYC
(SHA-256: 1.8, BLAKE2b: 0.9).
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import zlib
from pathlib import Path

from absl import logging

from ba_jax.checkpoints.layout import CHECKPOINTS_FOLDER

FILE = "checksums.json"
BLOCK_BYTES = 16 << 20
MAX_THREADS = 16


def write(folder: str | os.PathLike) -> None:
    """Write the checksums of all files in the folders of `folder`; the file appears whole.

    Raises:
      OSError: a file that cannot be read, or a full disk.
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
        json.dump({"files": files, "crc32": _crc_of_entries(files)}, stream, indent=0)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(folder / FILE)


def damage(
    folder: str | os.PathLike, within: str = "", share: int = 0, shares: int = 1
) -> str | None:
    """Compare a checkpoint with its checksums: the first problem, or None.

    Args:
      folder: a step's folder. Without checksums the answer is None.
      within: check only this one of its folders.
      share, shares: check every `shares`-th file from `share` on, to divide the work among hosts.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        files = {name: [size, crc] for name, (size, crc) in content["files"].items()}
        intact = content["crc32"] == _crc_of_entries(files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        return f"{path}: damaged itself"
    names = [name for name in sorted(files) if name.startswith(f"{within}/" if within else "")]
    names = names[share::shares]
    with _threads(len(names)) as pool:
        compared = pool.map(lambda name: _compare(Path(folder) / name, files[name]), names)
        return next((problem for problem in compared if problem), None)


def warn_if_lost(folder: Path) -> None:
    """Warn if a step's folder of a run has no checksums; other folders never have any."""
    if folder.parent.name == CHECKPOINTS_FOLDER and not (folder / FILE).exists():
        logging.warning("%s: missing, so a changed bit would not be noticed", folder / FILE)


def _threads(files: int) -> concurrent.futures.ThreadPoolExecutor:
    count = min(MAX_THREADS, os.cpu_count() or 1, max(files, 1))
    return concurrent.futures.ThreadPoolExecutor(count, "ba_jax-checksums")


def _crc_of_entries(files: dict) -> int:
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())


def _checksum(path: Path) -> list[int]:
    """[size, CRC-32]."""
    size = value = 0
    block = memoryview(bytearray(min(BLOCK_BYTES, max(path.stat().st_size, 1))))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            size += count
            value = zlib.crc32(block[:count], value)
    return [size, value]


def _compare(path: Path, expected: list[int]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"{path}: {size} bytes, expected {expected[0]}"
        if _checksum(path) != expected:
            return f"{path}: {size} bytes, but their CRC-32 differs from the recorded one"
    except FileNotFoundError:
        return f"{path}: missing"
    except OSError as error:
        return f"{path}: {error.strerror or error}"
    return None
