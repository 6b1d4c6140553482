"""Stages of a made-up suite: saving, going on, hosts, and scoring again."""

import json
import threading
import types

import pytest

from ba_jax.data.record import Part, Record
from ba_jax.evals import runner
from ba_jax.evals.runner import HostError, Hosts, LineError
from ba_jax.evals.suite import EvalError, Suite, items_of
from ba_jax.types import Failure

MADE = {"generate": "g", "present": "p", "judge": "j"}


class Doubling(Suite):
    """The model doubles a number, the judge adds one; 3 fails to generate, 5 is not judged."""

    name = "doubling"
    judged = True

    def __init__(self, count=8, stop_after=None):
        self.count, self.stop_after = count, stop_after
        self.calls = {stage: [] for stage in runner.FOLDERS}

    def items(self, bench):
        return items_of([Record(str(n), "text", "en", (Part("x"),)) for n in range(self.count)])

    def _called(self, stage, items):
        self.calls[stage].append([item.number for item in items])
        if self.stop_after == (stage, len(self.calls[stage])):
            raise KeyboardInterrupt

    def generate(self, bench, items):
        self._called("generate", items)
        return [
            Failure("three") if item.number == 3 else {"doubled": 2 * item.number} for item in items
        ]

    def present(self, bench, items, made):
        self._called("present", items)
        return [{"shown": line["doubled"]} for line in made]

    def judge(self, bench, items, made, given):
        self._called("judge", items)
        assert [line["doubled"] for line in made] == [line["shown"] for line in given]
        return [
            Failure("five") if item.number == 5 else {"answer": line["shown"] + 1}
            for item, line in zip(items, given, strict=True)
        ]

    def score(self, bench, item, made, given, judged):
        return {"id": item.id, "language": "en", "answer": judged and judged["answer"]}

    def figures(self, bench, rows):
        return {"sum": sum(row.get("answer") or 0 for row in rows)}


def bench_in(folder, save_every=2, damaged=()):
    return types.SimpleNamespace(
        out=folder,
        settings=types.SimpleNamespace(save_every=save_every),
        damaged=dict(damaged),
        begin=lambda total: None,
        advance=lambda count: None,
    )


def saved(folder, stage, name="doubling"):
    lines = (folder / runner.FOLDERS[stage] / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_item_once_in_batches_and_all_is_saved(tmp_path):
    suite = Doubling()
    found = runner.run(suite, bench_in(tmp_path), MADE)
    assert suite.calls["generate"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    # 3 is in none of the later stages
    assert suite.calls["present"] == suite.calls["judge"] == [[0, 1], [2, 4], [5, 6], [7]]
    assert [row["id"] for row in found["items"]] == [str(n) for n in range(8)]
    assert found["figures"] == {"sum": 1 + 3 + 5 + 9 + 13 + 15, "doubling_failed": 2}
    assert found["failed"] == [
        {"id": "3", "stage": "generate", "reason": "three"},
        {"id": "5", "stage": "judge", "reason": "five"},
    ]
    header, *lines = saved(tmp_path, "generate")
    assert header == {"made_with": "g"} and len(lines) == 8
    assert lines[3] == {"id": "3", "failed": "three"} and lines[4] == {"id": "4", "doubled": 8}
    assert [line["id"] for line in saved(tmp_path, "judge")[1:]] == list("0124567")
    assert not (tmp_path / "hosts").exists()


@pytest.mark.parametrize("stop", [("generate", 3), ("present", 1), ("judge", 4)], ids=str)
def test_goes_on_after_what_is_saved(tmp_path, stop):
    whole = runner.run(Doubling(), bench_in(tmp_path / "whole"), MADE)
    first = Doubling(stop_after=stop)
    with pytest.raises(KeyboardInterrupt):
        runner.run(first, bench_in(tmp_path / "cut"), MADE)
    second = Doubling()
    assert runner.run(second, bench_in(tmp_path / "cut"), MADE) == whole
    for stage in runner.FOLDERS:
        before = first.calls[stage][:-1] if stage == stop[0] else first.calls[stage]
        done = [number for batch in [*before, *second.calls[stage]] for number in batch]
        assert sorted(done) == sorted(set(done)), f"{stage}: an item twice"
        path = f"{runner.FOLDERS[stage]}/doubling.jsonl"
        assert (tmp_path / "cut" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_a_line_that_was_cut_short_does_not_count(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        runner.run(Doubling(stop_after=("generate", 3)), bench_in(tmp_path), MADE)
    path = tmp_path / "hosts" / "0" / "generations" / "doubling.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    suite = Doubling()
    assert runner.run(suite, bench_in(tmp_path), MADE)["figures"]["sum"] == 46
    assert suite.calls["generate"][0] == [3, 4]  # of 0 to 3, that of 3 was cut
    path = tmp_path / "generations" / "doubling.jsonl"
    path.write_text(path.read_text().replace('{"id":"2"', '{"id":'))
    with pytest.raises(LineError, match=r"doubling.jsonl:4: no line of an evaluation"):
        runner.run(Doubling(), bench_in(tmp_path), MADE)


def test_lines_that_were_made_otherwise_are_not_used(tmp_path):
    runner.run(Doubling(), bench_in(tmp_path), MADE)
    suite = Doubling()
    runner.run(suite, bench_in(tmp_path), MADE)
    assert suite.calls == {"generate": [], "present": [], "judge": []}
    # another judge: what was generated and given to it stays
    suite = Doubling()
    runner.run(suite, bench_in(tmp_path), MADE | {"judge": "other"})
    assert not suite.calls["generate"] and not suite.calls["present"]
    assert sum(map(len, suite.calls["judge"])) == 7
    suite = Doubling()
    runner.run(suite, bench_in(tmp_path), dict.fromkeys(MADE, "other"))
    assert sum(map(len, suite.calls["generate"])) == 8


def test_scored_and_judged_again(tmp_path):
    runner.run(Doubling(), bench_in(tmp_path), MADE)
    other = dict.fromkeys(MADE, "nothing is known of the model")
    path = tmp_path / "judged" / "doubling.jsonl"
    path.write_text(path.read_text().replace('"answer":15', '"answer":1015'))
    suite = Doubling()
    found = runner.run(suite, bench_in(tmp_path), other, start="score")
    assert found["figures"]["sum"] == 1046 and not any(suite.calls.values())
    assert found["made_with"] == MADE
    found = runner.run(suite, bench_in(tmp_path), other, start="judge")
    assert found["figures"]["sum"] == 46 and not suite.calls["generate"] + suite.calls["present"]
    assert found["made_with"] == MADE | {"judge": other["judge"]}
    found = runner.run(suite, bench_in(tmp_path), MADE, start="generate")
    assert sum(map(len, suite.calls["generate"])) == 8
    # more items than there are lines
    with pytest.raises(LineError, match="no line for 1 of 9 items of doubling, such as '8'"):
        runner.run(Doubling(9), bench_in(tmp_path), MADE, start="score")
    with pytest.raises(LineError, match=r"judged/doubling.jsonl: no such file"):
        path.unlink()
        runner.run(Doubling(), bench_in(tmp_path), MADE, start="score")


def on_hosts(folder, suites, token="t", start="go on", together=False):
    """One thread a host; what each gave or raised."""
    found = [None] * len(suites)

    def work(index):
        hosts = Hosts(index, len(suites), token, together)
        try:
            found[index] = runner.run(suites[index], bench_in(folder), MADE, hosts, start)
        except BaseException as error:  # noqa: BLE001 (an interrupt, which a thread keeps)
            found[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(suites))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return found


def test_hosts_share_the_items(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_POLL", 0.01)
    whole = runner.run(Doubling(), bench_in(tmp_path / "one"), MADE)
    suites = [Doubling() for _ in range(3)]
    found = on_hosts(tmp_path / "three", suites)
    assert found == [whole, None, None]
    assert [suite.calls["generate"] for suite in suites] == [
        [[0, 3], [6]],
        [[1, 4], [7]],
        [[2, 5]],
    ]
    for stage in runner.FOLDERS:
        assert saved(tmp_path / "three", stage) == saved(tmp_path / "one", stage)
    # once more from the start: the marks of the run before mislead nobody
    suites = [Doubling() for _ in range(3)]
    assert on_hosts(tmp_path / "three", suites, "u", start="generate")[0] == whole
    assert sum(len(batch) for suite in suites for batch in suite.calls["generate"]) == 8


def test_a_host_that_stops_stops_the_others_and_any_number_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_POLL", 0.01)
    whole = runner.run(Doubling(), bench_in(tmp_path / "one"), MADE)
    suites = [Doubling(), Doubling(stop_after=("generate", 2))]
    first, second = on_hosts(tmp_path / "two", suites)
    assert isinstance(first, HostError) and "host 1 stopped" in str(first)
    assert isinstance(second, KeyboardInterrupt)
    suite = Doubling()
    assert runner.run(suite, bench_in(tmp_path / "two"), MADE) == whole
    assert suite.calls["generate"] == [[5, 7]]


def test_hosts_that_work_together_do_the_same_and_one_writes(tmp_path, monkeypatch):
    """Whatever was saved: each sees the same lines before the first adds its own."""
    monkeypatch.setattr(runner, "_POLL", 0.01)
    whole = runner.run(Doubling(), bench_in(tmp_path / "one"), MADE)
    stopped = [Doubling(stop_after=("present", 2)), Doubling()]
    before = on_hosts(tmp_path / "two", stopped, "s", together=True)
    assert [type(error) for error in before] == [KeyboardInterrupt, HostError]
    assert not (tmp_path / "two" / "hosts" / "1").exists()
    suites = [Doubling(), Doubling()]
    assert on_hosts(tmp_path / "two", suites, together=True) == [whole, None]
    assert [suite.calls for suite in suites] == [
        {"generate": [], "present": [[2, 4], [5, 6], [7]], "judge": suites[0].calls["judge"]},
        {"generate": [], "present": [[2, 4], [5, 6], [7]], "judge": []},
    ]
    assert sum(map(len, suites[0].calls["judge"])) == 7
    for stage in runner.FOLDERS:
        assert saved(tmp_path / "two", stage) == saved(tmp_path / "one", stage)
    # one that stops before the other comes to a stage does not keep it waiting
    suites = [Doubling(), Doubling(stop_after=("generate", 4))]
    first, _ = on_hosts(tmp_path / "three", suites, together=True)
    assert isinstance(first, HostError) and "host 1 stopped" in str(first)


def test_no_items_two_of_one_id_and_damaged_records(tmp_path):
    with pytest.raises(EvalError, match="doubling: no items"):
        runner.run(Doubling(0), bench_in(tmp_path), MADE)
    twice = Doubling()
    twice.items = lambda bench: Doubling(2).items(bench) + Doubling(1).items(bench)
    with pytest.raises(EvalError, match="2 items with the id '0'"):
        runner.run(twice, bench_in(tmp_path), MADE)
    found = runner.run(Doubling(2), bench_in(tmp_path, damaged={4: "no record"}), MADE)
    assert found["failed"] == [{"id": "record-4", "stage": "generate", "reason": "no record"}]
    assert found["items"][2]["correct"] is False


def test_a_score_that_cannot_be_made_is_a_failure(tmp_path):
    suite = Doubling(2)

    def score(bench, item, made, given, judged):
        if item.number:
            raise ValueError("a reference without words")
        return {"id": item.id, "language": "en", "answer": 1}

    suite.score = score
    suite.figures = lambda bench, rows: {"right": sum(row.get("correct", True) for row in rows)}
    found = runner.run(suite, bench_in(tmp_path), MADE)
    assert found["failed"] == [{"id": "1", "stage": "score", "reason": "a reference without words"}]
    assert found["figures"]["right"] == 1
