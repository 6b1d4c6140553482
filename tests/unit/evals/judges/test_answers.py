"""An endpoint: a stub server on this machine that answers, babbles, fails or hangs."""

import contextlib
import http.server
import json
import threading

import pytest

from ba_jax.evals.items import EvalError
from ba_jax.evals.judges.answers import (
    AnswerJudge,
    AnswerJudgeSettings,
    parse_reply,
)
from ba_jax.evals.suites.spoken_qa import figures_of_verdicts
from tests.unit.evals.score_cases import read_cases


def question(answer, references=("Paris",), rubric="correct", language="en", id="x"):
    return {
        "id": id,
        "language": language,
        "rubric": rubric,
        "question": "What is the capital of France?",
        "references": list(references),
        "answer": answer,
    }


@pytest.mark.parametrize(
    ("rubric", "reply", "verdict", "score"),
    [
        ("correct", "Yes", "right", None),
        ("correct", " no. ", "wrong", None),
        ("correct", "**Yes**", "right", None),
        ("correct", "Yes and no", "invalid", None),
        ("correct", "", "invalid", None),
        ("correct", "7", "invalid", None),
        ("scale", "7", "scored", 7.0),
        ("scale", "10/10", "scored", 10.0),
        ("scale", "7.5", "scored", 7.5),
        ("scale", "11", "invalid", None),
        ("scale", "0", "invalid", None),
        ("scale", "7 or 8", "invalid", None),
        ("scale", "Yes", "invalid", None),
    ],
)
def test_replies(rubric, reply, verdict, score):
    result = parse_reply(question("x", rubric=rubric), reply, "j")
    assert (result["verdict"], result["score"], result["said"]) == (verdict, score, reply)
    assert bool(result["reason"]) == (verdict == "invalid")


@pytest.mark.parametrize(("reply", "verdict"), read_cases("yes_no"))
def test_odd_replies(reply, verdict):
    """Fences, JSON, thoughts, labels, quotes, cases, widths, reasons and contradictions."""
    assert parse_reply(question("x"), reply, "j")["verdict"] == verdict


@pytest.mark.parametrize(("reply", "score"), read_cases("scale"))
def test_odd_scores(reply, score):
    assert parse_reply(question("x", rubric="scale"), reply, "j")["score"] == score


@contextlib.contextmanager
def endpoint(answer):
    """A server that sends `answer(number, request)`: (status, body), or waits on None."""
    requests, stop = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            reply = answer(len(requests), body)
            if reply is None:
                stop.wait(10)
                return
            status, text = reply
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        stop.set()
        server.shutdown()
        thread.join()
        server.server_close()


def says(text):
    return 200, json.dumps({"choices": [{"message": {"content": text}}]})


def settings(url, **options):
    options = {"retries": 1, "backoff": 0.0, "concurrency": 1, "timeout": 5.0} | options
    return AnswerJudgeSettings(kind="http", base_url=url, model="m", **options)


def test_a_question_is_sent_once(tmp_path, monkeypatch):
    """The key goes into the header and nowhere else; letters are judged by rules."""
    monkeypatch.setenv("SOME_KEY", "s3cret")

    def answer(number, body):
        asked = body["messages"][-1]["content"]
        return says("8" if "whole number" in asked else "Yes")

    inputs = [
        question("It's the City of Light", id="a"),
        question("Once upon a time", [], "scale", id="b"),
        question("", id="c"),
        question("B", ["B"], "letter", id="d"),
    ]
    with endpoint(answer) as (url, requests):
        judge = AnswerJudge(settings(url, key_variable="SOME_KEY"), tmp_path)
        done = []
        verdicts = judge(inputs, done.append)
        assert [v["verdict"] for v in verdicts] == ["right", "scored", "wrong", "right"]
        assert verdicts[1]["score"] == 8.0 and done == [1, 2, 3, 4]
        assert [path for path, _, _ in requests] == ["/v1/chat/completions"] * 2
        assert requests[0][1]["Authorization"] == "Bearer s3cret"
        assert requests[0][2]["model"] == "m" and requests[0][2]["temperature"] == 0
        assert "Paris" in requests[0][2]["messages"][-1]["content"]
        # The reference line is left out where there is none.
        assert "Reference answer" not in requests[1][2]["messages"][-1]["content"]
        assert AnswerJudge(settings(url), tmp_path)(inputs) == verdicts and len(requests) == 2
        AnswerJudge(settings(url), tmp_path)([question("Lyon", id="e")])
        assert len(requests) == 3
    assert "s3cret" not in (tmp_path / "verdicts.jsonl").read_text() + json.dumps(verdicts)


def test_a_saved_reply_that_was_cut_short_is_requested_again(tmp_path):
    with endpoint(lambda number, body: says("No")) as (url, requests):
        AnswerJudge(settings(url), tmp_path)([question("Lyon")])
        path = tmp_path / "verdicts.jsonl"
        path.write_bytes(path.read_bytes()[:-5] + "字".encode()[:2])
        for _ in range(2):
            assert AnswerJudge(settings(url), tmp_path)([question("Lyon")])[0]["verdict"] == "wrong"
        assert len(requests) == 2


def test_half_a_surrogate_pair_is_sent(tmp_path):
    with endpoint(lambda number, body: says("Yes")) as (url, requests):
        for _ in range(2):
            (verdict,) = AnswerJudge(settings(url), tmp_path)([question("Paris \udcff")])
            assert verdict["verdict"] == "right"
        assert len(requests) == 1
        assert "Paris \udcff" in requests[0][2]["messages"][-1]["content"]


def test_nonsense_is_invalid_and_requested_again_later(tmp_path):
    words = iter(["Banana", "Maybe yes", "Yes", "No"])
    with endpoint(lambda number, body: says(next(words))) as (url, _):
        judge = AnswerJudge(settings(url), tmp_path)
        verdicts = judge([question("a", id="a"), question("b", id="b")])
        assert [v["verdict"] for v in verdicts] == ["invalid"] * 2
        assert "'Banana'" in verdicts[0]["reason"]
        counts = {"q_items": 2, "q_judged": 2, "q_invalid": 2, "q_unjudged": 0}
        assert figures_of_verdicts("q", verdicts) == counts | {"q_invalid_ids": ["a", "b"]}
        verdicts = AnswerJudge(settings(url), tmp_path)([question("a"), question("b")])
        assert [v["verdict"] for v in verdicts] == ["right", "wrong"]


def test_temporary_errors_are_retried():
    waits = []

    def answer(number, body):
        return (500, "oops") if number == 1 else (429, "") if number == 2 else says("Yes")

    with endpoint(answer) as (url, requests):
        judge = AnswerJudge(settings(url, retries=3, backoff=0.5), sleep=waits.append)
        assert judge([question("a")])[0]["verdict"] == "right"
        assert len(requests) == 3 and waits == [0.5, 1.0]


def test_a_judge_that_fails_leaves_items_unjudged(tmp_path):
    """HTTP 500, a permanent error, replies that are no completion, a timeout, no server."""
    cases = [
        (lambda number, body: (500, ""), {}, "HTTP 500", 2),
        (lambda number, body: (401, ""), {}, "HTTP 401", 1),
        (lambda number, body: (200, "<html>"), {}, "no chat completion", 2),
        (lambda number, body: (200, '{"choices": []}'), {}, "no chat completion", 2),
        (lambda number, body: says(None), {}, "no chat completion", 2),
        (lambda number, body: (200, 9999 * "["), {}, "no chat completion", 2),
        (lambda number, body: None, {"timeout": 0.05}, "imeout|timed out", 2),
    ]
    for answer, options, reason, tries in cases:
        with endpoint(answer) as (url, requests):
            (verdict,) = AnswerJudge(settings(url, **options), tmp_path)([question("a")])
        assert verdict["verdict"] == "unjudged" and len(requests) == tries
        assert any(part in verdict["reason"] for part in reason.split("|")), verdict["reason"]
        assert figures_of_verdicts("q", [verdict])["q_unjudged"] == 1
    (verdict,) = AnswerJudge(settings(url), tmp_path)([question("a")])  # the server has gone
    assert verdict["verdict"] == "unjudged" and "refused" in verdict["reason"]
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_a_judge_that_is_down_is_given_up():
    with endpoint(lambda number, body: (503, "")) as (url, requests):
        judge = AnswerJudge(settings(url, retries=0, give_up=3))
        verdicts = judge([question("a", id=str(i)) for i in range(10)])
    assert len(requests) == 3
    counts = figures_of_verdicts("q", verdicts)
    assert counts["q_unjudged"] == 10 and counts["q_judged"] == 0 and "q" not in counts
    assert sorted(counts["q_unjudged_reasons"].values()) == [3, 7]


def test_bad_settings(monkeypatch):
    for options in ({"kind": "oracle"}, {"kind": "http"}, {"timeout": 0.0}, {"retries": -1}):
        with pytest.raises(ValueError, match="expected"):
            AnswerJudgeSettings(**options)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(EvalError, match="variable NO_SUCH_KEY is not set"):
        AnswerJudge(settings("http://localhost:1", key_variable="NO_SUCH_KEY"))
    with pytest.raises(EvalError, match="rubric 'taste', expected one of"):
        AnswerJudge(AnswerJudgeSettings())([question("a", rubric="taste")])
