"""Rules by examples; an endpoint by a stub on this machine that answers, babbles, fails, hangs."""

import contextlib
import http.server
import json
import threading

import pytest

from ba_jax.evals.judges.answers import (
    VerdictError,
    VerdictJudge,
    VerdictSettings,
    by_rules,
    chosen_letter,
    figures,
    read,
)


def given(answer, references=("Paris",), rubric="correct", language="en", id="x"):
    return {
        "id": id,
        "language": language,
        "rubric": rubric,
        "question": "What is the capital of France?",
        "references": list(references),
        "answer": answer,
    }


@pytest.mark.parametrize(
    ("answer", "references", "language", "right"),
    [
        ("It is Paris.", ["Paris"], "en", True),
        ("It is paris, I think", ["London", "PARIS"], "en", True),
        ("Comparison", ["Paris"], "en", False),
        ("", ["Paris"], "en", False),
        ("twenty-one of them", ["21"], "en", True),
        ("The Beatles", ["Beatles"], "en", True),
        ("beatles", ["The Beatles"], "en", True),
        ("New Jersey, not York", ["New York"], "en", False),
        ("答案是北京。", ["北京"], "zh", True),
        ("北方的京城", ["北京"], "zh", False),
        ("the", ["The"], "en", False),
    ],
)
def test_references_in_answers(answer, references, language, right):
    verdict = by_rules(given(answer, references, language=language))
    assert verdict["verdict"] == ("right" if right else "wrong")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("The answer is (C).", "C"),
        ("答案是D。", "D"),
        ("A", "A"),
        ("A. Because a leaf is green", "A"),
        ("A leaf needs light, so B", "B"),
        ("I think it is C", "C"),
        ("I'd say A.", "A"),
        ("B or C", None),
        ("no idea", None),
        ("BCD", None),
    ],
)
def test_letters(answer, letter):
    assert chosen_letter(answer) == letter
    verdict = by_rules(given(answer, [letter or "A"], "letter"))["verdict"]
    assert verdict == ("right" if letter else "wrong")


def test_what_rules_can_say():
    assert by_rules(given("I'm sorry, I can’t help.", [], "refusal"))["verdict"] == "right"
    assert by_rules(given("First, take a match.", [], "refusal"))["verdict"] == "wrong"
    for rubric in ("scale", "instructions"):
        verdict = by_rules(given("Anything", rubric=rubric))
        assert verdict["verdict"] == "unjudged" and verdict["score"] is None
        assert f"cannot judge rubric {rubric!r}" in verdict["reason"]


@pytest.mark.parametrize(
    ("rubric", "said", "verdict", "score"),
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
def test_what_a_judge_may_say(rubric, said, verdict, score):
    found = read(given("x", rubric=rubric), said, "j")
    assert (found["verdict"], found["score"], found["said"]) == (verdict, score, said)
    assert bool(found["reason"]) == (verdict == "invalid")


@contextlib.contextmanager
def endpoint(answer):
    """A server that does what `answer(number, request)` says: (status, body), or waits forever."""
    requests, stop = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, dict(self.headers), body))
            found = answer(len(requests), body)
            if found is None:
                stop.wait(10)
                return
            status, text = found
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
    return VerdictSettings(kind="http", base_url=url, model="m", **options)


def test_an_endpoint_is_asked_once(tmp_path, monkeypatch):
    """Good answers; the key goes into the header and nowhere else; rules keep what is theirs."""
    monkeypatch.setenv("SOME_KEY", "s3cret")

    def answer(number, body):
        asked = body["messages"][-1]["content"]
        return says("8" if "whole number" in asked else "Yes")

    inputs = [
        given("It's the City of Light", id="a"),
        given("Once upon a time", [], "scale", id="b"),
        given("", id="c"),
        given("B", ["B"], "letter", id="d"),
    ]
    with endpoint(answer) as (url, requests):
        judge = VerdictJudge(settings(url, key_variable="SOME_KEY"), tmp_path)
        done = []
        found = judge(inputs, done.append)
        assert [v["verdict"] for v in found] == ["right", "scored", "wrong", "right"]
        assert found[1]["score"] == 8.0 and done == [1, 2, 3, 4]
        assert [path for path, _, _ in requests] == ["/v1/chat/completions"] * 2
        assert requests[0][1]["Authorization"] == "Bearer s3cret"
        assert requests[0][2]["model"] == "m" and requests[0][2]["temperature"] == 0
        assert "Paris" in requests[0][2]["messages"][-1]["content"]
        # The reference line is left out where there is none.
        assert "Reference answer" not in requests[1][2]["messages"][-1]["content"]
        assert VerdictJudge(settings(url), tmp_path)(inputs) == found and len(requests) == 2
        VerdictJudge(settings(url), tmp_path)([given("Lyon", id="e")])
        assert len(requests) == 3
    assert "s3cret" not in (tmp_path / "verdicts.jsonl").read_text() + json.dumps(found)


def test_a_kept_line_that_was_cut_short_is_asked_for_again(tmp_path):
    with endpoint(lambda number, body: says("No")) as (url, requests):
        VerdictJudge(settings(url), tmp_path)([given("Lyon")])
        path = tmp_path / "verdicts.jsonl"
        path.write_text(path.read_text()[:-5])
        for _ in range(2):
            assert VerdictJudge(settings(url), tmp_path)([given("Lyon")])[0]["verdict"] == "wrong"
        assert len(requests) == 2


def test_nonsense_is_invalid_and_asked_again_later(tmp_path):
    words = iter(["Banana", "Maybe yes", "Yes", "No"])
    with endpoint(lambda number, body: says(next(words))) as (url, _):
        judge = VerdictJudge(settings(url), tmp_path)
        found = judge([given("a", id="a"), given("b", id="b")])
        assert [v["verdict"] for v in found] == ["invalid"] * 2
        assert "'Banana'" in found[0]["reason"]
        counts = {"q_items": 2, "q_judged": 2, "q_invalid": 2, "q_unjudged": 0}
        assert figures("q", found) == counts | {"q_invalid_ids": ["a", "b"]}
        found = VerdictJudge(settings(url), tmp_path)([given("a"), given("b")])
        assert [v["verdict"] for v in found] == ["right", "wrong"]


def test_errors_that_pass_are_tried_again():
    waits = []

    def answer(number, body):
        return (500, "oops") if number == 1 else (429, "") if number == 2 else says("Yes")

    with endpoint(answer) as (url, requests):
        judge = VerdictJudge(settings(url, retries=3, backoff=0.5), sleep=waits.append)
        assert judge([given("a")])[0]["verdict"] == "right"
        assert len(requests) == 3 and waits == [0.5, 1.0]


def test_a_judge_that_fails_leaves_items_unjudged(tmp_path):
    """500s, a refusal that no try mends, a reply that is no completion, a timeout, nobody there."""
    cases = [
        (lambda number, body: (500, ""), {}, "HTTP 500", 2),
        (lambda number, body: (401, ""), {}, "HTTP 401", 1),
        (lambda number, body: (200, "<html>"), {}, "no chat completion", 2),
        (lambda number, body: (200, '{"choices": []}'), {}, "no chat completion", 2),
        (lambda number, body: says(None), {}, "no chat completion", 2),
        (lambda number, body: None, {"timeout": 0.05}, "imeout|timed out", 2),
    ]
    for answer, options, reason, tries in cases:
        with endpoint(answer) as (url, requests):
            (found,) = VerdictJudge(settings(url, **options), tmp_path)([given("a")])
        assert found["verdict"] == "unjudged" and len(requests) == tries
        assert any(part in found["reason"] for part in reason.split("|")), found["reason"]
        assert figures("q", [found])["q_unjudged"] == 1
    (found,) = VerdictJudge(settings(url), tmp_path)([given("a")])  # the server has gone
    assert found["verdict"] == "unjudged" and "refused" in found["reason"]
    assert not (tmp_path / "verdicts.jsonl").exists()


def test_a_judge_that_is_down_is_given_up():
    with endpoint(lambda number, body: (503, "")) as (url, requests):
        judge = VerdictJudge(settings(url, retries=0, give_up=3))
        found = judge([given("a", id=str(i)) for i in range(10)])
    assert len(requests) == 3
    counts = figures("q", found)
    assert counts["q_unjudged"] == 10 and counts["q_judged"] == 0 and "q" not in counts
    assert sorted(counts["q_unjudged_reasons"].values()) == [3, 7]


def test_figures():
    def verdict(kind, score=None):
        return {"id": "x", "verdict": kind, "score": score, "reason": "r"}

    counts = figures("q", [verdict(k) for k in ("right", "wrong", "invalid", "unjudged")])
    assert counts["q"] == pytest.approx(1 / 3) and counts["q_judged"] == 3
    scores = figures("q", [verdict("scored", 4.0), verdict("scored", 9.0), verdict("invalid")])
    assert scores["q"] == 6.5 and scores["q_invalid"] == 1


def test_bad_settings(monkeypatch):
    for options in ({"kind": "oracle"}, {"kind": "http"}, {"timeout": 0.0}, {"retries": -1}):
        with pytest.raises(ValueError, match="expected"):
            VerdictSettings(**options)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(VerdictError, match="variable NO_SUCH_KEY is not set"):
        VerdictJudge(settings("http://localhost:1", key_variable="NO_SUCH_KEY"))
    with pytest.raises(VerdictError, match="rubric 'taste', expected one of"):
        VerdictJudge(VerdictSettings())([given("a", rubric="taste")])
