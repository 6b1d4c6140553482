"""The report of a small job: the page, the files beside it, the summary, the errors."""

import html.parser
import json
import math
import pathlib
import re
import urllib.parse
import zlib

import pytest

from ba_jax.report import targets
from ba_jax.report.__main__ import main, write_report
from ba_jax.report.page import Files, format_column, format_number
from ba_jax.report.runs import ReportError, read_figures, read_items, read_metrics, read_runs

EVIL = '<script>alert("1")</script>&amp;\'"'
VOID = {"meta", "img", "link", "br", "hr", "input"}
KEYS = [
    "asr_wer",
    "qa_s2t",
    "qa_s2s",
    "tts_judge_wer",
    "judge_wer_on_reference",
    "mel_mae_by_codebooks",
    "t2t_before",
    "t2t_after",
    "t2t_after_single_stage",
    "minutes",
]


def png(shade: int) -> bytes:
    """A grey picture of one pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    head = (1).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    pixels = zlib.compress(bytes([0, shade]))
    data = chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def write(path: pathlib.Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content, ensure_ascii=False)
    if isinstance(content, list):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def item(number: int, correct: bool, **more) -> dict:
    return {
        "suite": "tts",
        "id": f"t{number}",
        "language": "zh",
        "reference": "蜘蛛有八条腿。",
        "hypothesis": "蜘蛛有八条腿" if correct else "知了有八条腿",
        "correct": correct,
        "errors": 0 if correct else 2,
        "units": 6,
        "audio": {},
    } | more


@pytest.fixture
def runs(tmp_path) -> pathlib.Path:
    """Two stages, one without steps, and three evaluated checkpoints; many files are missing."""
    folder = tmp_path / "runs"
    lines = ["step,name,value"]
    for step in range(1, 41):
        loss = "nan" if step == 20 else repr(100 / step**2)
        lines += [f"{step},loss,{loss}", f"{step},learning_rate,0.001"]
        lines += [f"{step},codebook/{q}/use,{step / 40 / (q + 1)}" for q in range(8)]
        lines += [f"{step},codebook/{q}/perplexity,{step * (q + 1)}" for q in range(8)]
    lines += ["20,eval/loss,0.5", "40,eval/loss,0.25", f"40,{EVIL},1"]
    write(folder / "tokenizer/metrics.csv", "\n".join(lines) + "\n")
    write(folder / "tokenizer/timings.csv", "step,name,value\n10,throughput/tokens_per_second,9\n")
    write(folder / "tokenizer/config.json", {"stage": EVIL})
    for step, shade in ((5, 10), (10, 20), (40, 30)):
        write(folder / f"tokenizer/pictures/{step}/0/target.png", png(shade))
        write(folder / f"tokenizer/pictures/{step}/0/wave.wav", b"RIFF%d" % step)
    write(folder / "tokenizer/pictures/40/图<1>.png", png(40))
    write(folder / "stage1/metrics.csv", "step,name,value\n")
    write(folder / "downloads/readme.txt", "no stage")
    stage2 = folder / "eval/stage2"
    write(stage2 / "audio/tts/0.wav", b"RIFF generated")
    write(stage2 / "audio/reference/0.wav", b"RIFF reference")
    sounds = {"generated": "audio/tts/0.wav", "reference": "audio/reference/0.wav"}
    items = [item(0, True, audio=sounds), item(1, False, audio={"generated": "audio/tts/1.wav"})]
    items += [item(2, False, id=EVIL, reference=EVIL, hypothesis="", audio={"generated": ""})]
    items += [{"suite": EVIL, "id": 7}]
    write(stage2 / "items.jsonl", items)
    figures = {
        "asr_wer": 0.1,
        "qa_s2t": 0.79,
        "qa_s2s": None,
        "qa_t2t": 0.9,
        "tts_judge_wer": math.nan,
        "judge_wer_on_reference": 0.02,
        "tts_judge": EVIL,
        "seconds": {"asr": 3.5},
    }
    write(stage2 / "figures.json", figures)
    write(folder / "eval/text_lm/figures.json", {"qa_t2t": 0.96})
    mel = {"8": 0.5, "1": 1.0, "4": 0.6}
    write(folder / "eval/flow/figures.json", {"mel_mae_by_codebooks": mel})
    write(folder / "minutes.json", {"tokenizer": 7.5, "stage1": 0.25, EVIL: 1})
    write(folder / "commands.txt", f"python -m ba_jax.train {EVIL}\n")
    return folder


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced; collects links, attributes and text."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        assert len(named) == len(attributes), f"{tag}: an attribute twice"
        assert not any(name.startswith("on") for name in named), f"{tag}: a handler"
        self.tags.append((tag, named))
        self.links += [named[name] for name in ("href", "src") if name in named]
        self.ids += [named["id"]] if "id" in named else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))


@pytest.fixture
def report(runs, tmp_path) -> tuple[pathlib.Path, Page]:
    out = tmp_path / "report"
    write_report(runs, out)
    return out, Page((out / "index.html").read_text(encoding="utf-8"))


def test_page_is_one_folder_that_needs_nothing_else(report):
    out, page = report
    assert {path.name for path in out.iterdir()} == {"index.html", "summary.json", "files"}
    linked = {link for link in page.links if not link.startswith(("#", "data:image/svg"))}
    for link in linked:
        parts = urllib.parse.urlsplit(link)
        assert not parts.scheme and not parts.netloc and link.startswith("files/")
        assert (out / link).is_file()
    assert {f"files/{path.name}" for path in (out / "files").iterdir()} == linked
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    source = (out / "index.html").read_text(encoding="utf-8")
    assert "http://" not in source and "https://" not in source and "url(" not in source
    assert [tag for tag, _ in page.tags if tag in ("link", "iframe", "base")] == []
    assert [named for tag, named in page.tags if tag == "script"] == [{}]  # only ours


def test_data_is_escaped(report):
    out, page = report
    assert "<script>alert" not in (out / "index.html").read_text(encoding="utf-8")
    # In the items, the notes, the settings, minutes, commands, and the name of a metric.
    assert page.text.count(EVIL) >= 8
    assert "蜘蛛有八条腿。" in page.text and "图<1>, step 40" in page.text


def test_missing_input_is_reported(report):
    _, page = report
    assert "metrics.csv has no values." in page.text  # stage1
    assert "missing: audio/tts/1.wav" in page.text
    assert "after the single stagenot measured" in page.text
    assert "train: 1 value not finite, the first at step 20" in page.text
    assert "downloads" not in page.text


def test_first_and_last_pictures_lie_side_by_side(report):
    out, page = report
    shown = [n["src"] for tag, n in page.tags if tag == "img" and n.get("class") != "chart"]
    contents = [(out / src).read_bytes() for src in shown]
    assert contents == [png(10), png(30), png(40)]  # step 10 is neither first nor last
    sounds = [(out / n["src"]).read_bytes() for tag, n in page.tags if tag == "audio"]
    assert sounds == [b"RIFF5", b"RIFF40", b"RIFF generated", b"RIFF reference"]


def test_errors_are_marked(report):
    _, page = report
    assert sum(named.get("class") == "wrong" for _, named in page.tags) == 2
    marks = [i for i, (tag, _) in enumerate(page.tags) if tag == "mark"]
    # Both texts of t1, in Listen and in its table; the reference of the third item, in both too.
    assert len(marks) == 2 * (2 + 1)
    assert "tts, 3 items, 1 of 3 right, 4 errors in 18 units (22.2 %)" in page.text


def test_summary_holds_exactly_what_was_measured(report):
    out, _ = report
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert list(summary) == KEYS
    assert summary == {
        "asr_wer": 0.1,
        "qa_s2t": 0.79,
        "qa_s2s": None,
        "tts_judge_wer": None,  # NaN
        "judge_wer_on_reference": 0.02,
        "mel_mae_by_codebooks": {"1": 1.0, "4": 0.6, "8": 0.5},
        "t2t_before": 0.96,
        "t2t_after": 0.9,
        "t2t_after_single_stage": None,
        "minutes": 8.75,
    }


def test_headline_judges_by_the_targets(runs, report):
    summary, origin = targets.summarise(read_runs(runs))
    rows = targets.headline(summary, origin)
    assert [(row.reached, row.verdict) for row in rows] == [
        ("10.0 %", "pass"),  # the bound itself
        ("79.0 %", "fail"),
        ("", "not measured"),
        ("not a number", "fail"),
        ("50.0 %", "pass"),
        ("-6.0 points", "fail"),
        ("8.8 min", "pass"),
    ]
    assert rows[4].source == "eval/flow" and rows[5].source == "eval/text_lm, eval/stage2"
    for row in rows:
        assert f"{row.label}{row.reached or '–'}{row.asked}{row.verdict}" in report[1].text


def test_figures_of_other_versions_are_not_compared(runs):
    write(runs / "eval/text_lm/figures.json", {"qa_t2t": 0.96, "normalisers": {"en": "version 1"}})
    rows = targets.headline(*targets.summarise(read_runs(runs)))
    assert rows[5].verdict == "not comparable" and rows[0].verdict == "pass"
    assert rows[5].source == f"eval/text_lm{targets.OTHER_VERSION}, eval/stage2"


def test_targets():
    asked = {t.keys[0]: (t.at_most, t.bound) for t in targets.TARGETS}
    assert asked["asr_wer"] == (True, 0.10)
    assert asked["qa_s2t"] == (False, 0.80)
    assert asked["qa_s2s"] == (False, 0.70)
    assert asked["tts_judge_wer"] == (True, 0.30)
    assert asked["minutes"] == (True, 25)


@pytest.mark.parametrize(
    ("errors", "gain"),
    [
        (None, None),
        ({"1": 2.0}, None),
        ({"4": 1.0, "8": 0.5}, None),
        ({"1": 2.0, "8": None}, None),
        ({"1": 2.0, "2": 1.5, "10": 1.0}, 0.5),  # by number, not by letters
    ],
)
def test_codebook_gain_is_the_most_against_one(errors, gain):
    assert targets.codebook_gain({"mel_mae_by_codebooks": errors}) == gain


def test_tokenizer_counts_before_flow(runs):
    write(runs / "eval/tokenizer/figures.json", {"mel_mae_by_codebooks": {"1": 3.0, "8": 1.0}})
    summary, origin = targets.summarise(read_runs(runs))
    assert summary["mel_mae_by_codebooks"] == {"1": 3.0, "8": 1.0}
    assert origin["mel_mae_by_codebooks"] == "eval/tokenizer"


def test_command_prints_the_headline_and_replaces_a_report(runs, tmp_path, capsys):
    out = tmp_path / "new/report"
    arguments = [f"--runs={runs}", f"--out={out}"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"word error rate +10\.0 % +at most 10 % +pass", printed)
    assert re.search(r"written answer: accuracy +79\.0 % +at least 80 % +fail", printed)
    assert re.search(r"spoken answer: accuracy +- +at least 70 % +not measured", printed)
    assert "before stage 1 96.0 %, after stage 2 90.0 %, after the single stage not" in printed
    (runs / "tokenizer/pictures/40/0/target.png").unlink()
    before = len(list((out / "files").iterdir()))
    assert main(arguments) == 0
    assert len(list((out / "files").iterdir())) == before - 1  # no file of the old report remains
    assert [path.name for path in out.parent.iterdir()] == ["report"]


def test_minutes_alone_make_a_report(tmp_path):
    write(tmp_path / "runs/minutes.json", {"tokenizer": 1.5})
    summary = write_report(tmp_path / "runs", tmp_path / "report")
    assert summary == dict.fromkeys(KEYS) | {"minutes": 1.5}
    page = Page((tmp_path / "report/index.html").read_text(encoding="utf-8"))
    assert "No stage has metrics or pictures." in page.text
    assert "No evaluation has items." in page.text
    assert "commands.txt is missing" in page.text
    assert not (tmp_path / "report/files").exists()


def test_recordings_to_listen_to_are_spread_and_all_are_linked(tmp_path):
    folder = tmp_path / "runs/eval/stage2"
    for number in range(20):
        write(folder / f"audio/{number}.wav", b"RIFF%d" % number)
    items = [item(n, True, audio={"generated": f"audio/{n}.wav"}) for n in range(20)]
    write(folder / "items.jsonl", items)
    out = tmp_path / "report"
    write_report(tmp_path / "runs", out)
    page = Page((out / "index.html").read_text(encoding="utf-8"))
    played = [(out / n["src"]).read_bytes() for tag, n in page.tags if tag == "audio"]
    assert played == [b"RIFF%d" % n for n in (0, 3, 5, 8, 11, 14, 16, 19)]
    linked = [n["href"] for tag, n in page.tags if tag == "a" and n["href"].startswith("files/")]
    assert [(out / link).read_bytes() for link in linked] == [b"RIFF%d" % n for n in range(20)]
    # The table is long, so it is closed at first.
    assert [named for tag, named in page.tags if tag == "details"] == [{}]


def test_half_a_surrogate_pair_is_written(tmp_path):
    write(tmp_path / "runs/eval/stage2/items.jsonl", '{"suite": "asr", "id": "\\ud800"}\n')
    write_report(tmp_path / "runs", tmp_path / "report")
    Page((tmp_path / "report/index.html").read_text(encoding="utf-8"))


def test_files_have_plain_names_and_equal_files_are_copied_once(tmp_path):
    for name, content in (("a.wav", b"1"), ("b.wav", b"2"), ("c.wav", b"1")):
        write(tmp_path / name, content)
    files = Files(tmp_path / "files")
    assert files.add(tmp_path / "a.wav", "问/../x y") == "files/x-y.wav"
    assert (
        files.add(tmp_path / "b.wav", "X Y") == "files/X-Y-2.wav"
    )  # names are unique without case
    assert files.add(tmp_path / "c.wav", "other") == "files/x-y.wav"
    assert (tmp_path / "files/X-Y-2.wav").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (-1.25, "−1.25"),
        (12000, "12k"),
        (9999, "9999"),
        (3.4e6, "3.4M"),
        (2e9, "2G"),
        (0.0001, "1e-4"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
    ],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text


def test_columns_are_aligned():
    assert format_column([1.0, 0.95, None, math.nan]) == ["1.000", "0.950", None, "NaN"]
    assert format_column([62.6, 7.125]) == ["62.60", "7.12"]
    assert format_column([3.0, 0.0, 12.0]) == ["3", "0", "12"]
    assert format_column([2e7, 1.0]) == ["20M", "1"]
    assert format_column([]) == []


# --- reading ------------------------------------------------------------------------------------


def test_later_line_of_a_step_counts_and_half_a_line_does_not(tmp_path):
    path = tmp_path / "metrics.csv"
    write(path, "step,name,value\n2,loss,1.0\n1,loss,4.0\n2,loss,0.5\n3,loss,0.")
    assert read_metrics(path) == {"loss": ((1, 4.0), (2, 0.5))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"metrics\.csv, line 1: '', expected the header"),
        ("step,loss\n1,2\n", r"metrics\.csv, line 1: 'step,loss', expected the header"),
        ("step,name,value\n1,loss\n", r"metrics\.csv, line 2: '1,loss', expected step,name"),
        ("step,name,value\n1,loss,2\n1.5,loss,2\n", r"metrics\.csv, line 3: '1.5,loss,2'"),
        ("step,name,value\n1,loss,low\n", r"metrics\.csv, line 2: .*low'"),
        (b"step,name,value\n1,\xff,2\n", r"metrics\.csv: not UTF-8 at byte 18"),
    ],
)
def test_malformed_metrics_are_named(tmp_path, text, message):
    write(tmp_path / "metrics.csv", text)
    with pytest.raises(ReportError, match=message):
        read_metrics(tmp_path / "metrics.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"figures\.json:1: not JSON"),
        ("[1]", r"figures\.json: expected an object"),
        ('{"asr_wer": true}', r"figures\.json: asr_wer = True"),
        ('{"a": {"b": [1]}}', r"figures\.json: a/b = \[1\]"),
    ],
)
def test_malformed_figures_are_named(tmp_path, text, message):
    write(tmp_path / "figures.json", text)
    with pytest.raises(ReportError, match=message):
        read_figures(tmp_path / "figures.json")


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"asr_wer": -0.1}, r"stage2/figures\.json: asr_wer = -0\.1: expected 0 or more"),
        ({"qa_s2t": 87.5}, r"stage2/figures\.json: qa_s2t = 87\.5: expected a share"),
        ({"mel_mae_by_codebooks": {"all": 1}}, r"mel_mae_by_codebooks: 'all': expected a number"),
    ],
)
def test_impossible_figures_are_named(tmp_path, figures, message):
    write(tmp_path / "eval/stage2/figures.json", figures)
    with pytest.raises(ReportError, match=message):
        targets.summarise(read_runs(tmp_path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"items\.jsonl:2: not JSON"),
        ("3", r"items\.jsonl:2: expected an object"),
        ('{"id": "a"}', r"items\.jsonl:2: suite = None: expected a text"),
        ('{"suite": "a", "id": "b", "reference": 3}', r"reference = 3: expected a text"),
        ('{"suite": "a", "id": "b", "correct": "yes"}', r"correct = 'yes': expected true"),
        ('{"suite": "a", "id": "b", "errors": -1}', r"errors = -1: expected a count"),
        ('{"suite": "a", "id": "b", "question": 1}', r"question = 1: expected a text"),
        ('{"suite": "a", "id": "b", "audio": "x.wav"}', r"audio = 'x.wav': expected label"),
        ('{"suite": "a", "id": "b", "audio": ["x.wav"]}', r"audio: None -> 'x.wav'"),
        ('{"suite": "a", "id": "b", "audio": {"r": "../x.wav"}}', r"'../x.wav' lies outside"),
        ('{"suite": "a", "id": "b", "audio": {"r": "/etc/x.wav"}}', r"lies outside"),
        ('{"suite": "a", "id": "b", "audio": {"r": "x.html"}}', r"'x.html': expected one of"),
    ],
)
def test_malformed_items_are_named(tmp_path, line, message):
    write(tmp_path / "items.jsonl", '{"suite": "a", "id": "ok"}\n' + line + "\n")
    with pytest.raises(ReportError, match=message):
        read_items(tmp_path / "items.jsonl")


def test_recordings_may_be_a_list(tmp_path):
    write(tmp_path / "x.wav", b"RIFF")
    content = {"suite": "a", "id": "b", "audio": [{"label": "generated", "path": "x.wav"}]}
    write(tmp_path / "items.jsonl", [content])
    (sound,) = read_items(tmp_path / "items.jsonl")[0].audio
    assert (sound.label, sound.path) == ("generated", tmp_path / "x.wav")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("minutes.json", {"a": -1}, r"minutes\.json: a = -1: expected minutes"),
        ("minutes.json", "[]", r"minutes\.json: expected an object"),
        ("flow/pictures/last/a.png", png(1), r"pictures/last: expected a folder named by its step"),
        ("flow/pictures/3/a.png", b"GIF89a", r"3/a\.png: not a PNG file"),
        ("flow/notes.txt", "", r"runs: nothing to report; expected <stage>/metrics\.csv"),
    ],
)
def test_command_names_the_fault_and_keeps_the_old_report(tmp_path, capsys, name, content, message):
    write(tmp_path / "good/minutes.json", {"a": 1})
    out = tmp_path / "report"
    write_report(tmp_path / "good", out)
    before = (out / "index.html").read_bytes()
    write(tmp_path / "runs" / name, content)
    capsys.readouterr()
    assert main([f"--runs={tmp_path / 'runs'}", f"--out={out}"]) == 2
    assert re.search("^ba_jax.report: .*" + message, capsys.readouterr().err)
    assert (out / "index.html").read_bytes() == before


def test_folder_that_is_no_report_is_unchanged(runs, tmp_path):
    with pytest.raises(ReportError, match="runs: holds commands.txt, .*an earlier report"):
        write_report(runs, runs)
    other = tmp_path / "other"
    write(other / "files/mine.txt", "mine")
    with pytest.raises(ReportError, match="other: holds files; expected a new folder"):
        write_report(runs, other)
    assert (other / "files/mine.txt").read_text() == "mine"
    with pytest.raises(ReportError, match="no-such: no such folder"):
        write_report(tmp_path / "no-such", tmp_path / "report")
