"""Checksums of a folder: every kind of damage is found and named."""

from __future__ import annotations

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.checkpoints import checksums

FILES = {"weights/a": b"12345678", "weights/d/b": bytes(100), "train/a": b"x", "train/none": b""}


def write(folder: pathlib.Path) -> pathlib.Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "beside").write_text("of no folder")
    checksums.write(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("step"))


def test_intact_files_pass(folder):
    assert checksums.damage(folder) is None
    assert sorted(json.loads((folder / checksums.FILE).read_text())["files"]) == sorted(FILES)
    (folder / "beside").write_text("changed")
    assert checksums.damage(folder) is None
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


@given(name=st.sampled_from(sorted(n for n in FILES if FILES[n])), bit=st.integers(0, 799))
def test_any_flipped_bit_is_detected(folder, name, bit):
    content = bytearray(FILES[name])
    bit %= 8 * len(content)
    content[bit // 8] ^= 1 << (bit % 8)
    (folder / name).write_bytes(content)
    try:
        assert checksums.damage(folder).startswith(f"{folder / name}: {len(content)} bytes, but")
        part = name.split("/")[0]
        assert checksums.damage(folder, part) is not None
        assert checksums.damage(folder, "train" if part == "weights" else "weights") is None
        # Each file is checked by one of the hosts.
        problems = [checksums.damage(folder, share=number, shares=3) for number in range(3)]
        assert sum(problem is not None for problem in problems) == 1
    finally:
        (folder / name).write_bytes(FILES[name])


def test_other_damage_is_named(tmp_path):
    folder = write(tmp_path)
    (folder / "weights/a").write_bytes(b"1234567")
    assert checksums.damage(folder) == f"{folder / 'weights/a'}: 7 bytes, expected 8"
    (folder / "weights/a").unlink()
    assert checksums.damage(folder) == f"{folder / 'weights/a'}: missing"
    path = folder / checksums.FILE
    other = [
        f'{{"files": {files}, "crc32": 0}}' for files in ("{}", "[]", '{"a": 1}', '{"a": "xy"}')
    ]
    for text in ("", "{", "{}", "[]", "[" * 10_000, "\0", *other, path.read_text()[:-9] + "1}"):
        path.write_text(text)
        assert checksums.damage(folder) == f"{path}: damaged itself", text
    path.unlink()
    path.mkdir()
    assert checksums.damage(folder) == f"{path}: damaged itself"
    path.rmdir()
    assert checksums.damage(folder) is None  # nothing can be said


def test_files_of_many_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 16)
    folder = write(tmp_path)
    assert checksums.damage(folder) is None
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 7)
    assert checksums.damage(folder) is None
