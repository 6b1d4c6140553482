"""Tables, JSON objects and paths: whatever they hold gives values, a rejection or a clear error."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from ba_jax.corpora.sources import listing
from ba_jax.corpora.sources.base import Rejected, Rejection, SourceError
from tests.unit.corpora.corpora import put_text

NEEDED = ("id", "text")


def rows(folder: pathlib.Path, content: str | bytes, **options) -> list:
    """The rows of a table, each by its columns, or the reason of its rejection."""
    path = put_text(folder / "t.tsv", content)
    listed = listing.read_rows(path, NEEDED, **options)
    return [row.reason if isinstance(row, Rejection) else row[1] for row in listed]


@pytest.mark.parametrize(
    ("cell", "text"),
    (
        ('"""Doubled,"" she says."', '"Doubled," she says.'),
        ('"""Whole."""', '"Whole."'),
        ('"a\tb"', "a\tb"),
        # Marks that no CSV writer leaves so: the table has no quoting.
        ('"Whole."', '"Whole."'),
        ('"Open', '"Open'),
        ('"Yes," he said, "no."', '"Yes," he said, "no."'),
        ('He said "hi".', 'He said "hi".'),
        ('a ""b"" c', 'a ""b"" c'),
        ('""', '""'),
        ('5" pipe', '5" pipe'),
        ("back\\slash", "back\\slash"),
    ),
)
def test_quotation_marks_are_undone_where_the_file_quotes(tmp_path, cell, text):
    assert rows(tmp_path, f"id\ttext\n1\t{cell}\n") == [{"id": "1", "text": text}]
    listed = rows(tmp_path, f"1\t{cell}\n", columns=NEEDED)
    assert listed == [{"id": "1", "text": text}]


def test_a_table_that_quotes_everything(tmp_path):
    content = '"id"\t"text"\n"1"\t"Hi."\n2\t"a ""b"""\n3\t"open\n'
    assert rows(tmp_path, content) == [
        {"id": "1", "text": "Hi."},
        {"id": "2", "text": 'a "b"'},
        "not a row",
    ]


def test_escaped_separators(tmp_path):
    content = 'id\ttext\n1\ta\\\tb\n2\t"""Hi,"" x"\n3\t"a\\\\b"\n'
    assert [row["text"] for row in rows(tmp_path, content, escaped=True)] == [
        "a\tb",
        '"Hi," x',
        '"a\\b"',
    ]


@pytest.mark.parametrize("columns", (None, ("id", "other", "text")))
@pytest.mark.parametrize(
    "content",
    (
        b"text\tx\tid\nHi.\t0\t1\n",
        b"\xef\xbb\xbftext\tx\t id\r\nHi.\t0\t1\r\n\r\n",
        b"\r\ntext\tid\nHi.\t1",
    ),
)
def test_columns_are_known_by_their_names(tmp_path, content, columns):
    (row,) = rows(tmp_path, content, columns=columns)
    assert (row["id"], row["text"]) == ("1", "Hi.")


@pytest.mark.parametrize(
    ("content", "message"),
    (
        ("id\n1\n", r"t.tsv:1: columns \['id'\], expected also \['text'\]"),
        ("id,text\n1,Hi\n", r"t.tsv:1: .*expected also \['id', 'text'\]"),
        ("1\tHi\n", r"t.tsv:1: .*expected also"),
        ("id\ttext\ttext\n", r"t.tsv:1: .*expected \['text'\] once"),
        ("", "t.tsv: is empty"),
        ("id\ttext".encode("utf-16"), r"t.tsv:1: header not UTF-8 \(byte 0xff at position 0"),
    ),
)
def test_a_table_without_its_columns(tmp_path, content, message):
    with pytest.raises(SourceError, match=message):
        rows(tmp_path, content)


def test_rows_of_another_length_are_counted(tmp_path):
    assert rows(tmp_path, "id\ttext\n1\n1\tHi\n1\tHi\tx\n") == [
        "wrong number of columns",
        {"id": "1", "text": "Hi"},
        "wrong number of columns",
    ]


@pytest.mark.parametrize(
    "value", ("nan", "inf", "-inf", "1e999", "-1", "0", "abc", "1" + "0" * 400)
)
def test_lengths_that_are_no_sensible_numbers(value):
    with pytest.raises(Rejected) as caught:
        listing.parse_seconds(value)
    assert caught.value.reason == "bad times" and repr(value)[:50] in caught.value.detail


def test_lengths():
    assert listing.parse_seconds(" ") == 0.0
    assert listing.parse_seconds("500", 1e-3) == 0.5


KNOWN = {"id": (str,), "start": (int, float), "words": (list,), "loss": (bool,)}


def test_null_is_as_if_the_key_were_absent():
    fields = {"id": "x", "start": None, "words": None, "loss": None, "other": None}
    assert listing.check_fields(fields, KNOWN) == {"id": "x"}


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    (
        ('{"id": null}', "bad value", "id null, expected str"),
        ("{}", "bad value", "id missing, expected str"),
        ('{"id": "x", "start": true}', "bad value", "start True, expected int or float"),
        ('{"id": "x", "start": "1"}', "bad value", "start '1', expected int or float"),
        ('{"id": "x", "start": [1]}', "bad value", "start [1], expected int or float"),
        ('{"id": "x", "loss": 1}', "bad value", "loss 1, expected bool"),
        ('{"id": "\\ud800"}', "lone surrogate", "id holds '\\ud800', expected whole characters"),
        ('{"id": "x", "start": 1, "start": 2}', "malformed JSON", "'start' twice"),
        ('{"id": "x", "start": NaN}', "malformed JSON", "NaN is not JSON"),
        ('{"id": "x", "start": -Infinity}', "malformed JSON", "-Infinity is not JSON"),
        ('{"id": "x", "start": 1' + "0" * 5000 + "}", "malformed JSON", "5001 digits"),
        ("[" * 100_000, "malformed JSON", "recursion"),
        ("null", "malformed JSON", "None, expected an object"),
    ),
)
def test_objects_that_are_rejected(fields, reason, detail):
    with pytest.raises(Rejected) as caught:
        listing.check_fields(listing.parse_object(fields), KNOWN, needed=("id",))
    assert caught.value.reason == reason
    assert detail in caught.value.detail


@pytest.mark.parametrize(
    ("content", "message"),
    (
        (b"", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{\n"caf\xe9": 1}', "a.json:2: byte 0xe9 at position 6, expected UTF-8"),
    ),
)
def test_files_that_are_no_json(tmp_path, content, message):
    with pytest.raises(SourceError, match=message):
        listing.read_json(put_text(tmp_path / "a.json", content))


def test_a_repeated_key_spoils_its_object_alone(tmp_path):
    path = put_text(tmp_path / "a.json", '[{"a": 1, "a": 2}, {"a": 1}]')
    bad, good = listing.read_json(path)
    assert good == {"a": 1}
    with pytest.raises(Rejected, match="'a' twice"):
        listing.check_fields(bad, {"a": (int,)})


@pytest.mark.parametrize(
    ("name", "file"),
    (("a.wav", "a.WAV"), ("a.WAV", "a.wav"), ("a.flac", "a.Flac"), ("x/../b.c.wav", "b.c.WAV")),
)
def test_a_suffix_in_another_case(tmp_path, name, file):
    (tmp_path / "x").mkdir()
    put_text(tmp_path / file, "")
    assert os.path.samefile(listing.find_inside(tmp_path, name), tmp_path / file)


def test_a_suffix_in_another_case_leads_not_out_of_the_root(tmp_path):
    put_text(tmp_path / "secret.wav", "")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.WAV").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(Rejected, match="path leaves the root"):
        listing.find_inside(tmp_path / "root", "a.wav")


@pytest.mark.parametrize(
    ("name", "reason"),
    (
        ("file:///data/a.wav", "bad path"),
        ("file:a.wav", "bad path"),
        ("s3://bucket/a.wav", "bad path"),
        ("._a.wav", "bad path"),
        ("a\0.wav", "bad path"),
        ("loop.wav", "missing file"),
        ("dangling.wav", "missing file"),
        ("a" * 300 + ".wav", "missing file"),
        ("wav\\a.wav", "missing file"),
        ("caf\udce9.wav", "lone surrogate"),
    ),
)
def test_names_of_no_file(tmp_path, name, reason):
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "dangling.wav").symlink_to("none.wav")
    put_text(tmp_path / "._a.wav", "of macOS")
    with pytest.raises(Rejected) as caught:
        listing.find_inside(tmp_path, name)
    assert caught.value.reason == reason
    json.dumps(caught.value.detail).encode()
