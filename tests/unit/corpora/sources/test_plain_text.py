"""Plain text."""

from __future__ import annotations

import pytest

from ba_jax.config import ConfigError
from tests.unit.corpora.corpora import config, listed, made, put_text


def test_plain_text(tmp_path):
    put_text(
        tmp_path / "books" / "a" / "one.txt",
        b"\xef\xbb\xbfFirst line,\r\nsecond line.\r\n\r\n\r\nNext <|endoftext|> one.\n",
    )
    put_text(tmp_path / "books" / "two.txt", b"caf\xe9\nsame paragraph\n\ngood\n" + b"x" * 60)
    put_text(tmp_path / "books" / "notes.md", "not text")
    run = config("text", path=tmp_path / "books", max_characters=50)
    records, rejections = made(run, tmp_path / "out")
    assert {id: record.parts[0].text for id, record in records.items()} == {
        "a/one-000001": "First line,\nsecond line.",
        "a/one-000002": "Next <|endoftext|> one.",
    }
    assert records["a/one-000001"].kind == "text"
    assert [(r["where"].rsplit("/", 1)[1], r["reason"]) for r in rejections] == [
        ("two.txt:1", "not UTF-8"),
        ("two.txt:4", "paragraph too long"),
    ]


def test_plain_text_line_by_line(tmp_path):
    path = put_text(tmp_path / "lines.txt", "一\n\n二\n三")
    items, _ = listed(config("text", path=path, paragraphs="line", language="zh"))
    assert [item.payload for item in items.values()] == ["一", "二", "三"]
    assert [item.where for item in items.values()] == [f"{path}:{n}" for n in (1, 3, 4)]
    with pytest.raises(ConfigError, match="paragraphs = 'page'"):
        listed(config("text", path=path, paragraphs="page"))


def test_a_folder_of_texts_as_systems_leave_it(tmp_path):
    for name in ("b.txt", "b.TXT", "sub/c.Txt"):
        put_text(tmp_path / name, f"{name}\n\u200b\n\ufeff")
    for name in ("._b.txt", ".git/d.txt", "__MACOSX/b.txt", "Thumbs.db", ".DS_Store"):
        put_text(tmp_path / name, b"\x00\x05\x16\x07")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    items, rejections = listed(config("text", path=tmp_path))
    assert [item.payload for item in items.values()] == ["b.TXT", "b.txt", "sub/c.Txt"]
    assert rejections == []
