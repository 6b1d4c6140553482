"""Tables of an evaluation's folder."""

import html.parser
import json

import pytest

from ba_jax.report import evaluation
from ba_jax.report.runs import ReportError, read_figures

EVIL = '<script>alert("x")</script> | a\nb \ud800'


@pytest.fixture
def folder(tmp_path):
    figures = {
        "asr_wer": 0.25,
        "asr_wer_ci95": [0.125, 0.5],
        "asr_failed": 1,
        "qa_s2s": None,
        "qa_s2s_ci95": None,
        "mel_mae_by_codebooks": {"1": 1.0, "8": 0.5},
        "asr_scored": EVIL,
        "seconds": {"asr": 1.5},
    }
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    (tmp_path / "audio" / "tts").mkdir(parents=True)
    (tmp_path / "audio" / "tts" / "a.wav").write_bytes(b"RIFF")
    items = [
        {
            "suite": "tts",
            "id": "a",
            "language": "en",
            "reference": "one two",
            "hypothesis": "one three",
            "correct": False,
            "errors": 1,
            "units": 2,
            "audio": {"generated": "audio/tts/a.wav", "reference": "audio/gone.wav"},
        },
        {"suite": "tts", "id": "b", "reference": EVIL, "hypothesis": "", "failed": EVIL},
    ]
    (tmp_path / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    failed = {"suite": "tts", "id": "b", "stage": "judge", "reason": EVIL}
    (tmp_path / "failed.jsonl").write_text(json.dumps(failed) + "\n")
    return tmp_path


class Tags(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_page_has_players_and_escapes(folder):
    evaluation.write(folder)
    text = (folder / "index.html").read_text(encoding="utf-8")
    tags = Tags(text).tags
    # A player for the file that exists, at its path, and none for the missing one.
    players = [attributes["src"] for tag, attributes in tags if tag == "audio"]
    assert players == ["audio/tts/a.wav"]
    assert "missing: audio/gone.wav" in text
    assert sum(tag == "script" for tag, _ in tags) == 1  # the one that sorts
    assert "alert(&#34;x&#34;)" in text and "<mark>three</mark>" in text
    assert "not measured" in text and "judge" in text


def test_markdown(folder):
    evaluation.write(folder)
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    assert "| asr_wer | 0.25 | 0.125 to 0.5 |" in lines
    assert "| qa_s2s | not measured |  |" in lines
    assert "| mel_mae_by_codebooks/8 | 0.5 |  |" in lines
    assert not any(line.startswith("| asr_wer_ci95") or "seconds" in line for line in lines)
    (failed,) = (line for line in lines if line.startswith("| tts | b | judge |"))
    assert failed == '| tts | b | judge | <script>alert("x")</script> \\| a b ? |'


def test_intervals_are_read(folder):
    figures, _ = read_figures(folder / "figures.json")
    assert figures["asr_wer_ci95/low"] == 0.125 and figures["asr_wer_ci95/high"] == 0.5
    assert figures["qa_s2s_ci95"] is None
    (folder / "figures.json").write_text('{"asr_wer_ci95": [1, 2, 3]}')
    with pytest.raises(ReportError, match=r"asr_wer_ci95 = \[1, 2, 3\]"):
        read_figures(folder / "figures.json")


def test_a_folder_without_figures(tmp_path):
    with pytest.raises(ReportError, match="no figures.json"):
        evaluation.write(tmp_path)
