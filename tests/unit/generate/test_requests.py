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
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RequestError, match="say.txt: .*expected a text file in UTF-8"):
        read_requests("tts", path, "en")


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
    with pytest.raises(RequestError, match=r"a\.wav: id 'a' is also that of .*a\.mp3"):
        read_requests("asr", tmp_path, "en")


@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_line_becomes_a_request(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "list.jsonl"
    path.write_text(f'{{"audio": "x"}}\n{text}\n', encoding="utf-8")
    requests = read_requests("asr", path, "en")
    assert not requests[0].refusal
    assert all(request.refusal or request.turns for request in requests)
