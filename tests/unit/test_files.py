"""Atomic writes, and listing folders."""

import os

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


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def listed(folder, *suffixes, **options):
    paths = files.list_files(folder, *suffixes, **options)
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_is_listed_by_suffix_in_any_case_without_litter(tmp_path):
    put(tmp_path, "b.WAV", "a.wav", "sub/c.Wav", "d.flac", "e.wave", "wav", "x.wav/f.wav")
    put(tmp_path, "._a.wav", ".DS_Store", "Thumbs.db", ".git/a.wav", "__MACOSX/a.wav", ".wav")
    os.mkfifo(tmp_path / "pipe.wav")
    assert listed(tmp_path, ".wav") == ["a.wav", "b.WAV", "sub/c.Wav", "x.wav/f.wav"]
    assert listed(tmp_path, ".wav", ".flac", deep=False) == ["a.wav", "b.WAV", "d.flac"]
    assert listed(tmp_path / "none", ".wav") == []


def test_a_hidden_folder_is_listed_if_it_is_named(tmp_path):
    put(tmp_path, ".cache/a.wav")
    assert listed(tmp_path / ".cache", ".wav") == ["a.wav"]


def test_links_are_followed_once(tmp_path):
    put(tmp_path, "data/a/x.wav", "disk/y.wav")
    for link, target in (("a/loop", "data"), ("0", "data/a"), ("disk", "disk"), ("z", "disk")):
        (tmp_path / "data" / link).symlink_to(tmp_path / target)
    (tmp_path / "data" / "self").symlink_to("self")
    (tmp_path / "data" / "gone.wav").symlink_to("none")  # for its reader to report
    assert listed(tmp_path / "data", ".wav") == ["a/x.wav", "disk/y.wav", "gone.wav"]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(files.os, "scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        files.list_files(tmp_path, ".wav")
