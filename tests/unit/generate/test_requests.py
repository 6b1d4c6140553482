"""Requests: files, folders, lists; an invalid line fails alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.generate.requests import RequestError, UserTurn, read_requests


def lines(path, *rows):
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


def test_file_and_folder_of_recordings(tmp_path):
    for name in ("b.wav", "deep/a.M4A", "deep/notes.md", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (request,) = read_requests("asr", tmp_path / "b.wav", "zh")
    assert (request.id, request.language, request.turns) == (
        "b",
        "zh",
        (UserTurn(str(tmp_path / "b.wav")),),
    )
    requests = read_requests("reconstruct", tmp_path, "en")
    assert [request.id for request in requests] == ["b", "deep/a"]
    requests = read_requests("chat", tmp_path, "en", system="Be short.")
    assert [request.id for request in requests] == ["b", "c", "deep/a"]
    assert requests[1].turns == (UserTurn(text="x"),) and requests[1].system == "Be short."


def test_texts_line_by_line(tmp_path):
    path = tmp_path / "say.txt"
    path.write_text("one\n\n  two \n", encoding="utf-8")
    requests = read_requests("tts", path, "en")
    assert [(r.id, r.turns[0].text, r.where) for r in requests] == [
        ("say-1", "one", f"{path}:1"),
        ("say-3", "two", f"{path}:3"),
    ]
    path.write_bytes(
        b"\xef\xbb\xbfone\r\n \r\n\xff bad\na\xe2\x80\xa8b\xc2\x85c\x0bd\re\n"
        b"\xef\xbb\xbftwo\ncut \xe4\xbd"
    )
    requests = read_requests("tts", path, "en")
    assert [r.turns[0].text for r in requests if r.turns] == ["one", "a\u2028b\x85c\x0bd\re", "two"]
    assert [r.where for r in requests if r.refusal] == [f"{path}:3", f"{path}:6"]
    assert "0xff in position 0" in requests[1].refusal
    path.write_bytes("字\n".encode("utf-16"))
    with pytest.raises(
        RequestError, match="say.txt: begins as UTF-16, expected a text file in UTF-8"
    ):
        read_requests("tts", path, "en")
    (tmp_path / "good.txt").write_text("one")
    good, bad = read_requests("tts", tmp_path, "en")
    assert not good.refusal and (bad.id, bad.refusal[:16]) == ("say", "begins as UTF-16")


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\r', ""),
        ('{"text": "a\u2028b\x85c"}'.encode(), ""),
        (b'{"text": "a", "meta": "\\ud800"}', ""),
        (b'{"text": "a", "id": "\\ud800"}', ""),
        (b'{"audio": "a\\u0000.wav"}', ""),  # fails when it is read
        (b'{"audio": "\\udcff.wav"}', ""),
        (b'{"audio": "%s.wav"}' % (b"a" * 5000), ""),
        (b'{"text": "\\ud800"}', "text: lone surrogate U+D800 at position 0"),
        (b'{"turns": [{"text": "a"}, {"text": "b\\udcff"}]}', "text: lone surrogate U+DCFF"),
        (b'{"text": "a", "system": "\\ud800"}', "system: lone surrogate U+D800"),
        (b'{"text": "\xff"}', "can't decode byte 0xff in position 10"),
        (b'{"text": "\xed\xa0\x80"}', "can't decode byte 0xed"),
        (b'{"text": "a\rb"}', "Invalid control character"),
        (b"[" * 100_000, "maximum recursion depth"),
        (b'{"text": "a", "meta": %s1%s}' % (b"[" * 200, b"]" * 200), "meta of over 100 levels"),
        (b'{"text": "a", "meta": {"a": NaN}}', "meta: Out of range float values"),
        (b'{"text": "a", "meta": 1e999}', "meta: Out of range float values"),
        (b'{"text": "a", "meta": 1%s}' % (b"0" * 5000), "Exceeds the limit"),
        (b'{"text": %s}' % (b"1" * 4000), "text 111"),
        *[
            (b'{"text": %s}' % value, "expected text that is not empty")
            for value in (b"null", b"1", b"true", b"NaN", b"[]", b'["a"]', b"{}", b'" \\n"')
        ],
        *[
            (b'{"text": "a", "id": %s}' % value, "expected text")
            for value in (b"null", b"7", b"1.5", b"false", b"[]", b"{}", b'""')
        ],
        (b'{"turns": [{"role": "assistant", "text": "a"}]}', "{'role': 'assistant', 'text': 'a'}"),
        (b'{"turns": [null]}', "None, expected"),
        (b'{"text": "a", "seed": 1}', "keys ['seed']"),
    ],
)
def test_a_line_gives_a_request_or_a_short_reason(tmp_path, line, refusal):
    path = tmp_path / "list.jsonl"
    path.write_bytes(line + b'\n{"text": "good"}\n')
    odd, good = read_requests("chat", path, "en")
    assert good.turns and not good.refusal
    assert refusal in odd.refusal and bool(odd.refusal) == bool(refusal) == (not odd.turns)
    assert len(odd.refusal) < 250


def test_home_folders_and_variables_in_a_list(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "$HOME.wav").write_bytes(b"x")
    names = ("~/x.wav", "${HOME}/x.wav", "$HOME.wav", "x.wav", "$NOT_SET/x.wav", "gs://b/x.wav")
    path = lines(tmp_path / "list.jsonl", *({"audio": name} for name in names))
    *good, unset, address = read_requests("asr", path, "en")
    audio = [request.turns[0].audio for request in good]
    assert audio[:2] == ["/home/ann/x.wav"] * 2
    assert audio[2:] == [str(tmp_path / "$HOME.wav"), str(tmp_path / "x.wav")]
    assert "$NOT_SET is not set" in unset.refusal and "expected a path" in address.refusal


def test_list_with_invalid_lines(tmp_path):
    path = lines(
        tmp_path / "list.jsonl",
        {"id": "a/b", "audio": "x.wav", "meta": [1]},
        "{",
        "",
        {"audio": "y.wav", "language": "fr"},
        {"id": "c", "adio": "y.wav"},
        {"id": "../up", "audio": "y.wav"},
        {"id": "d", "audio": ""},
        [1],
    )
    requests = read_requests("asr", path, "zh")
    assert [bool(request.refusal) for request in requests] == [False] + 6 * [True]
    first = requests[0]
    assert (first.id, first.language, first.meta) == ("a/b", "zh", [1])
    assert first.turns == (UserTurn(audio=str(tmp_path / "x.wav")),)
    assert [request.where.rsplit(":")[-1] for request in requests] == list("1245678")
    refusals = " | ".join(request.refusal for request in requests[1:])
    for message in (
        "language 'fr', expected one of",
        r"keys ['adio']: asr takes ['audio',",
        "id '../up', expected a name",
        "audio '', expected text that is not empty",
        "list, expected an object",
    ):
        assert message in refusals
    assert requests[1].id == "000002", "a line without an id has its number"


def test_conversations(tmp_path):
    turns = [{"audio": "a.wav"}, {"text": "and then?"}]
    path = lines(
        tmp_path / "list.jsonl",
        {"turns": turns, "system": "Be short."},
        {"text": "hello"},
        {"turns": turns, "text": "both"},
        {"turns": []},
        {"turns": [{"audio": "a.wav", "text": "both"}]},
    )
    requests = read_requests("chat", path, "en", system="Be long.")
    assert requests[0].turns == (
        UserTurn(audio=str(tmp_path / "a.wav")),
        UserTurn(text="and then?"),
    )
    assert requests[0].system == "Be short." and requests[1].system == "Be long."
    assert requests[1].turns == (UserTurn(text="hello"),)
    assert ["both" in r.refusal or "turns []" in r.refusal for r in requests[2:]] == 3 * [True]


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("asr", "nothing.wav", None, "nothing.wav: no such file or folder"),
        ("asr", "a.txt", "x", "a.txt: asr takes .wav, .flac"),
        ("tts", "a.wav", "x", "a.wav: tts takes .txt, .jsonl"),
        ("tts", "a.txt", "\n", "a.txt: no request in it"),
        ("asr", "a.jsonl", "", "a.jsonl: no request in it"),
        ("sing", "a.jsonl", "", "task 'sing', expected one of"),
    ],
)
def test_input_without_requests(tmp_path, task, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        read_requests(task, tmp_path / name, "en")
    with pytest.raises(RequestError, match="language 'fr'"):
        read_requests("asr", tmp_path, "fr")


def test_duplicate_ids_and_an_empty_folder(tmp_path):
    with pytest.raises(RequestError, match=r"no \.wav, .* files"):
        read_requests("asr", tmp_path, "en")
    for name in ("a.wav", "a.mp3"):
        (tmp_path / name).write_bytes(b"x")
    first, second = read_requests("asr", tmp_path, "en")
    assert (first.id, first.refusal, second.id) == ("a", "", "a (2)")
    assert second.refusal == f"id 'a' is also that of {first.where}"
    rows = [{"id": id, "audio": "x"} for id in ("a", "a", "a (2)", "a", "000007", "000001", "b")]
    requests = read_requests("asr", lines(tmp_path / "list.jsonl", "{", *rows, {"id": "b"}), "en")
    ids = ["000001 (2)", "a", "a (3)", "a (2)", "a (4)", "000007", "000001", "b", "b (2)"]
    assert [r.id for r in requests] == ids
    assert [r.id for r in requests if r.refusal] == ["000001 (2)", "a (3)", "a (4)", "b (2)"]


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_line_becomes_a_request(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "list.jsonl"
    path.write_text(f'{{"audio": "x"}}\n{text}\n', encoding="utf-8")
    requests = read_requests("asr", path, "en")
    assert not requests[0].refusal
    assert all(request.refusal or request.turns for request in requests)
