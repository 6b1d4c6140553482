"""Valid and damaged tables."""

import pathlib

import pytest

from ba_jax.evals.benchmarks.tables import TableRow, language_of, read_table
from ba_jax.evals.items import EvalError


def test_csv(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffa,b ,c\n1,"x, ""y""\nz",é\n\n2,,\n', encoding="utf-8")
    rows = list(read_table(path, ("a", "b")))
    assert [dict(row.values) for row in rows] == [
        {"a": "1", "b": 'x, "y"\nz', "c": "é"},
        {"a": "2", "b": "", "c": ""},
    ]
    assert rows[0].text("b") == 'x, "y"\nz' and rows[1].where == f"{path}, row 3"
    with pytest.raises(EvalError, match=r"row 3: column 'b' holds '', expected text"):
        rows[1].text("b")
    with pytest.raises(EvalError, match=r"holds '2', expected one of \['A', 'B'\]"):
        rows[1].one_of("a", ("A", "B"))
    with pytest.raises(EvalError, match=r"no column \['d'\], expected \['a', 'd'\]; found"):
        list(read_table(path, ("a", "d")))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no rows, expected a table with columns"),
        (b"a,b\n", "no rows"),
        (b"a,b\n1\n", "row 1: 1 values, expected 2"),
        (b"a,b\n\xff\xfe,2\n", "no CSV in UTF-8"),
        (b'a,b\n"1,2\n', "no CSV in UTF-8"),
    ],
)
def test_damaged_csv(tmp_path, data, message):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(EvalError, match=message):
        list(read_table(path, ("a",)))
    with pytest.raises(EvalError, match=r"gone.csv: no such file; expected a table with columns"):
        list(read_table(tmp_path / "gone.csv", ("a",)))


def test_jsonl(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n\n{"a": "ü"}\n', encoding="utf-8")
    assert [(row.number, row.values["a"]) for row in read_table(path, ("a",))] == [(1, 1), (3, "ü")]
    for text, message in (
        ('{"a": 1}\n{"b": 1}\n', r"row 2: no column \['a'\]"),
        ('{"a": 1}\n{"a"\n', "row 2: no JSON"),
        ("[1]\n", "row 1: list, expected an object"),
        ('{"a": ' + 9999 * "[", "row 1: no JSON"),
        ("\n", "no rows"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(EvalError, match=message):
            list(read_table(path, ("a",)))


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"a": list(range(100)), "b": [b"x"] * 100}), path)
    rows = list(read_table(path, ("a", "b")))
    assert [row.values["a"] for row in rows] == list(range(100)) and rows[99].number == 100
    with pytest.raises(EvalError, match=r"no column \['c'\]"):
        list(read_table(path, ("c",)))
    path.write_bytes(b"no parquet at all")
    with pytest.raises(EvalError, match="no Parquet"):
        list(read_table(path, ("a",)))
    parquet.write_table(pyarrow.table({"a": pyarrow.array([], "int64")}), path)
    with pytest.raises(EvalError, match="no rows"):
        list(read_table(path, ("a",)))


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("Paris", ("Paris",)),
        ("['Sinclair Lewis', \"O'Neill\"]", ("Sinclair Lewis", "O'Neill")),
        ("['a' 'b'\n 'c']", ("a", "b", "c")),
        ('["x\\u00e9", "it\'s"]', ("xé", "it's")),
        ("['say \\'hi\\'']", ("say 'hi'",)),
        (["a", "b"], ("a", "b")),
    ],
)
def test_lists_of_texts(value, texts):
    assert TableRow("t, row 1", 1, {"c": value}).texts("c") == texts


@pytest.mark.parametrize(
    "value", ["", "[]", "[1, 2]", "['a', 2]", r"['\x']", "['a\nb']", [], [""], None]
)
def test_no_list_of_texts(value):
    with pytest.raises(EvalError, match="t, row 1: column 'c' holds"):
        TableRow("t, row 1", 1, {"c": value}).texts("c")


def test_files_stay_inside(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").touch()
    (tmp_path / "b.wav").touch()
    row = TableRow("t, row 1", 1, {})
    assert row.file(tmp_path / "in", "a.wav") == tmp_path / "in" / "a.wav"
    with pytest.raises(EvalError, match=r"row 1: no file .*c.wav"):
        row.file(tmp_path / "in", "c.wav")
    for name in ("../b.wav", str(tmp_path / "b.wav")):
        with pytest.raises(EvalError, match="lies outside"):
            row.file(pathlib.Path(tmp_path / "in"), name)
    for name in ("a\0", 300 * "a", "a\ud800"):
        with pytest.raises(EvalError, match=r"row 1: 'a.* is no file's name"):
            row.file(tmp_path / "in", name)


def test_languages():
    assert language_of("What is 3 plus 4?") == "en" and language_of("ABC的和?") == "zh"
    assert language_of("\U00020bb7\uff1f") == "zh"  # a rare character


def test_letters_of_any_width_and_texts_that_are_not_seen():
    row = TableRow("t, row 1", 1, {"c": " \uff22\u200b", "d": "\ufeff \u200b"})
    assert row.one_of("c", ("A", "B")) == "B"
    with pytest.raises(EvalError, match="column 'd' holds"):
        row.text("d")
