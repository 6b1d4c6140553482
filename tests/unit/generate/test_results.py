"""Results: saving, resuming, and refusal of other settings."""

import json
import unicodedata

import numpy as np
import pytest

from ba_jax.audio import AudioError, read_audio, write
from ba_jax.generate.results import Results, ResultsError

MADE = {"task": "asr", "settings": {"rows": (1, 2)}}


def test_resume(tmp_path):
    first = Results(tmp_path / "out", MADE)
    first.add([{"id": "a", "text": "天"}, {"id": "b", "error": "gone"}])
    path = tmp_path / "out" / "results.jsonl"
    with open(path, "a") as file:
        file.write('{"id": "c", "te')  # killed here
    again = Results(tmp_path / "out", MADE)
    assert list(again.lines) == ["a", "b"] and again.lines["a"]["text"] == "天"
    again.add([{"id": "c"}])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    retried = Results(tmp_path / "out", MADE, retry=True)
    assert list(retried.lines) == ["a", "c"] and "gone" in path.read_text()
    retried.add([{"id": "b"}])
    assert "gone" not in path.read_text(), "what failed is tried again"


def test_other_settings_are_refused(tmp_path):
    Results(tmp_path, MADE).add([{"id": "a"}])
    with pytest.raises(ResultsError, match="made with other settings; choose another --out"):
        Results(tmp_path, MADE | {"settings": 1})
    other = Results(tmp_path, MADE | {"settings": 1}, overwrite=True)
    assert not other.lines and list(Results(tmp_path, MADE).lines) == ["a"], "nothing is lost yet"
    other.add([{"id": "b"}])
    assert list(Results(tmp_path, MADE | {"settings": 1}).lines) == ["b"]
    for content in (None, "", "{", "[1]", "7"):
        (tmp_path / "made_with.json").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "made_with.json").write_text(content)
        with pytest.raises(ResultsError, match="results.jsonl without made_with.json"):
            Results(tmp_path, MADE)


def test_a_start_that_fails_leaves_no_mark(tmp_path):
    Results(tmp_path, MADE)
    assert not list(tmp_path.iterdir())
    # A stamp of earlier versions, without results.
    (tmp_path / "made_with.json").write_text('{"task": "other"}')
    (tmp_path / "results.jsonl").touch()
    Results(tmp_path, MADE).add([{"id": "a"}])
    assert list(Results(tmp_path, MADE).lines) == ["a"]


def test_damaged_lines_are_made_again(tmp_path):
    Results(tmp_path, MADE).add([{"id": "a", "text": "天"}, {"id": "b"}])
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"{\n\xff\n" + whole + '{"id": "天'.encode()[:-1])
    again = Results(tmp_path, MADE)
    assert list(again.lines) == ["a", "b"]
    again.add([{"id": "c"}])
    assert path.read_bytes() == whole + b'{"id":"c"}\n'


@pytest.mark.parametrize("id", ["a", "a/b", "字 1", "A:b", "a-1", "é" * 100])
def test_plain_ids_name_their_files(tmp_path, id):
    assert Results(tmp_path, MADE).wave_path(id) == tmp_path / "audio" / f"{id}.wav"


def test_ids_never_share_a_file(tmp_path):
    """Neither on a file system that ignores case or normalises Unicode."""
    ids = [
        *("s", "./s", "s/.", "s/", "/s", "S", "s.", "s ", " s", "..", ".", "a/b", "a//b", "a/../b"),
        *("caf\u00e9", "cafe\u0301", "a.wav", "a.wav/b", "a.wav.partial/b", "a", "x\0", "x\n", "x"),
        *(
            "\ud800",
            "\udcff",
            "\u2028",
            "字" * 84,
            "字" * 85,
            "x" * 256,
            "y" * 5000,
            "a/" * 3000 + "b",
        ),
    ]
    results = Results(tmp_path, MADE)
    wave_S = np.zeros(240, np.float32)
    saved = [
        results.save(results.wave_path(id, turn), wave_S, 24000) for id in ids for turn in (0, 9)
    ]
    keys = {unicodedata.normalize("NFC", path).casefold() for path in saved}
    assert len(keys) == 2 * len(ids) == len([*tmp_path.rglob("*.wav")])
    # The same ids name the same files when the run is resumed, whatever is left to do.
    results.add([{"id": id} for id in ids])
    again = Results(tmp_path, MADE)
    assert [again.relative(again.wave_path(id, t)) for id in ids[::-1] for t in (9, 0)] == saved[
        ::-1
    ]


def test_errors_of_waves(tmp_path, monkeypatch):
    """NaN fails the request alone; a full disk ends the run, which can be resumed."""
    results = Results(tmp_path, MADE)
    path = results.wave_path("a")
    with pytest.raises(AudioError, match="sample 0 is nan"):
        results.save(path, np.full(9, np.nan, np.float32), 24000)
    monkeypatch.setattr(write.secrets, "token_hex", lambda count: "00")
    monkeypatch.setattr(write, "open", lambda *_: open("/dev/full", "wb"), raising=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.wav'"):
        results.save(path, np.zeros(9, np.float32), 24000)
    assert not path.exists()


def test_waves_are_at_24_khz(tmp_path):
    results = Results(tmp_path, MADE)
    path = results.wave_path("deep/name", 1)
    wave_S = np.sin(np.arange(16000) / 10).astype(np.float32) / 2
    assert results.save(path, wave_S, 16000) == "audio/deep/name-2.wav"
    saved_S, rate = read_audio(path)
    assert rate == 24000 and len(saved_S) == 24000


def test_host_that_does_not_write(tmp_path):
    """It has the same interface and touches no file."""
    out = tmp_path / "out"
    results = Results(out, {"task": "tts"}, writes=False)
    path = results.wave_path("a")
    assert results.save(path, np.zeros(240, np.float32), 24000) == "audio/a.wav"
    results.add([{"id": "a", "audio": "audio/a.wav"}])
    assert list(results.lines) == ["a"] and not out.exists()
