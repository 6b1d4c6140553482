"""Lines of JSON: what bad text becomes, and files that were cut short."""

import json
import logging

import pytest

from ba_jax import json_lines


@pytest.mark.parametrize(
    "text", ["\u2028\u2029\x85", "a\rb\nc\x0b\x0c\x1c", "\ud800 \udcff", "\ufeff字😀\0\x7f", ""]
)
def test_a_value_is_one_line_and_comes_back(tmp_path, text):
    encoded = json_lines.encode({"id": text})
    assert encoded.decode("utf-8").splitlines(keepends=True) == [encoded.decode("utf-8")]
    json_lines.append(tmp_path / "x", [{"id": text, "n": 1}])
    assert json_lines.read(tmp_path / "x", "id") == [{"id": text, "n": 1}]


def test_only_damaged_lines_are_left_out(tmp_path, caplog):
    path = tmp_path / "x"
    good = [{"id": "a"}, {"made_with": "m"}, {"id": "字"}]
    bad = [
        b"{",
        b"[1]",
        b"7",
        b"null",
        b'{"id": 7}',
        b'{"i": "a"}',
        b"\xff",
        b"[" * 100_000,
        b"\0\0",
    ]
    whole = b"".join(map(json_lines.encode, good))
    path.write_bytes(b"\n \n".join(bad) + b"\n" + whole)
    with caplog.at_level(logging.WARNING):
        assert json_lines.read(path, "made_with", "id") == good
    assert [record.args[1] for record in caplog.records] == list(range(1, 2 * len(bad), 2))
    assert json_lines.read(tmp_path / "none", "id") == []


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_file_cut_anywhere_grows_on(tmp_path, cut):
    """The line before is kept and the cut one is not, though cut in a character or an escape."""
    path = tmp_path / "x"
    whole = json_lines.encode({"id": "b", "t": "字\x85"})
    path.write_bytes(json_lines.encode({"id": "a"}) + whole[: -1 - cut])
    json_lines.append(path, [{"id": "c"}])
    assert [line["id"] for line in json_lines.read(path, "id")] == ["a", "c"]
    assert json.loads(path.read_bytes().split(b"\n")[-2]) == {"id": "c"}


def test_a_full_disk_is_named():
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        json_lines.append("/dev/full", [{"id": "a"}])
