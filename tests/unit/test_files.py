"""Atomic writes."""

import pytest

from ba_jax import files


def test_writes_text_and_bytes_and_creates_folders(tmp_path):
    for content in ("ä 字\n", b"\0\xff", ""):
        files.write_whole(tmp_path / "a" / "b", content)
        written = (tmp_path / "a" / "b").read_bytes()
        assert written == (content if isinstance(content, bytes) else content.encode())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_whole(path, "before")
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "00")
    (tmp_path / ".x.json.00.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.json'"):
        files.write_whole(path, "after")
    with pytest.raises(UnicodeEncodeError):
        files.write_whole(path, "\ud800")
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(OSError, match="x.json/y"):
        files.write_whole(path / "y", "below a file")


def test_unused_names(tmp_path):
    path = tmp_path / "x.json"
    assert files.unused(path) == path
    path.symlink_to("gone")  # a dead link has the name too
    (tmp_path / "x.json-2").mkdir()
    assert files.unused(path) == tmp_path / "x.json-3"
