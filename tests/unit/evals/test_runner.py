"""Phases of a fake suite: saving, resuming, sharing among hosts, and scoring again."""

import json
import threading
import types

import pytest

from ba_jax.data.record import Part, Record
from ba_jax.evals import runner
from ba_jax.evals.items import EvalError, make_items
from ba_jax.evals.runner import Hosts
from ba_jax.evals.suite import Suite
from ba_jax.types import Failure
from tests.processes import PATIENCE

MADE_WITH = {"generate": "g", "present": "p", "judge": "j"}


class Doubling(Suite):
    """The model doubles a number, the judge adds 1; 3 fails to generate, 5 is not judged."""

    name = "doubling"
    judged = True

    def __init__(self, count=8, stop_after=None):
        self.count, self.stop_after = count, stop_after
        self.calls = {phase: [] for phase in runner.FOLDERS}

    def items(self, bench):
        return make_items([Record(str(n), "text", "en", (Part("x"),)) for n in range(self.count)])

    def _record_call(self, phase, items):
        self.calls[phase].append([item.number for item in items])
        if self.stop_after == (phase, len(self.calls[phase])):
            raise KeyboardInterrupt

    def generate(self, bench, items):
        self._record_call("generate", items)
        return [
            Failure("three") if item.number == 3 else {"doubled": 2 * item.number} for item in items
        ]

    def present(self, bench, items, generated):
        self._record_call("present", items)
        return [{"shown": line["doubled"]} for line in generated]

    def judge(self, bench, items, presented):
        self._record_call("judge", items)
        return [
            Failure("five") if item.number == 5 else {"answer": line["shown"] + 1}
            for item, line in zip(items, presented, strict=True)
        ]

    def score(self, bench, item, outputs):
        return {"id": item.id, "language": "en", "answer": outputs.judged.get("answer")}

    def figures(self, bench, rows):
        return {"sum": sum(row.get("answer") or 0 for row in rows)}


def bench_in(folder, save_every=2, damaged=()):
    return types.SimpleNamespace(
        out=folder,
        settings=types.SimpleNamespace(save_every=save_every),
        records=types.SimpleNamespace(damaged=dict(damaged)),
        begin=lambda total: None,
        advance=lambda count: None,
    )


def saved(folder, phase, name="doubling"):
    lines = (folder / runner.FOLDERS[phase] / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_each_item_runs_once_in_batches_and_every_line_is_saved(tmp_path):
    suite = Doubling()
    result = runner.run(suite, bench_in(tmp_path), MADE_WITH)
    assert suite.calls["generate"] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    # 3 is in no later phase
    assert suite.calls["present"] == suite.calls["judge"] == [[0, 1], [2, 4], [5, 6], [7]]
    assert [row["id"] for row in result["items"]] == [str(n) for n in range(8)]
    assert result["figures"] == {"sum": 1 + 3 + 5 + 9 + 13 + 15, "doubling_failed": 2}
    assert result["failed"] == [
        {"id": "3", "stage": "generate", "reason": "three"},
        {"id": "5", "stage": "judge", "reason": "five"},
    ]
    header, *lines = saved(tmp_path, "generate")
    assert header == {"made_with": "g"} and len(lines) == 8
    assert lines[3] == {"id": "3", "failed": "three"} and lines[4] == {"id": "4", "doubled": 8}
    assert [line["id"] for line in saved(tmp_path, "judge")[1:]] == list("0124567")
    assert not (tmp_path / "hosts").exists()


@pytest.mark.parametrize("stop", [("generate", 3), ("present", 1), ("judge", 4)], ids=str)
def test_resumes_after_the_saved_lines(tmp_path, stop):
    whole = runner.run(Doubling(), bench_in(tmp_path / "whole"), MADE_WITH)
    first = Doubling(stop_after=stop)
    with pytest.raises(KeyboardInterrupt):
        runner.run(first, bench_in(tmp_path / "cut"), MADE_WITH)
    second = Doubling()
    assert runner.run(second, bench_in(tmp_path / "cut"), MADE_WITH) == whole
    for phase in runner.FOLDERS:
        before = first.calls[phase][:-1] if phase == stop[0] else first.calls[phase]
        done = [number for batch in [*before, *second.calls[phase]] for number in batch]
        assert sorted(done) == sorted(set(done)), f"{phase}: an item twice"
        path = f"{runner.FOLDERS[phase]}/doubling.jsonl"
        assert (tmp_path / "cut" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_a_line_that_was_cut_short_is_ignored(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        runner.run(Doubling(stop_after=("generate", 3)), bench_in(tmp_path), MADE_WITH)
    path = tmp_path / "hosts" / "0" / "generations" / "doubling.jsonl"
    path.write_bytes(path.read_bytes()[:-4])
    suite = Doubling()
    assert runner.run(suite, bench_in(tmp_path), MADE_WITH)["figures"]["sum"] == 46
    assert suite.calls["generate"][0] == [3, 4]  # the line of 3 was cut
    path = tmp_path / "generations" / "doubling.jsonl"
    path.write_text(path.read_text().replace('{"id":"2"', '{"id":'))
    suite = Doubling()
    assert runner.run(suite, bench_in(tmp_path), MADE_WITH)["figures"]["sum"] == 46
    assert suite.calls["generate"] == [[2]], "a damaged line is made again"
    path.write_bytes(b"{" + path.read_bytes())
    assert runner.run(suite, bench_in(tmp_path), MADE_WITH)["figures"]["sum"] == 46


def test_lines_of_other_settings_are_not_used(tmp_path):
    runner.run(Doubling(), bench_in(tmp_path), MADE_WITH)
    suite = Doubling()
    runner.run(suite, bench_in(tmp_path), MADE_WITH)
    assert suite.calls == {"generate": [], "present": [], "judge": []}
    # another judge: the generations and its inputs stay
    suite = Doubling()
    runner.run(suite, bench_in(tmp_path), MADE_WITH | {"judge": "other"})
    assert not suite.calls["generate"] and not suite.calls["present"]
    assert sum(map(len, suite.calls["judge"])) == 7
    suite = Doubling()
    runner.run(suite, bench_in(tmp_path), dict.fromkeys(MADE_WITH, "other"))
    assert sum(map(len, suite.calls["generate"])) == 8


def test_scores_and_judges_again(tmp_path):
    runner.run(Doubling(), bench_in(tmp_path), MADE_WITH)
    other = dict.fromkeys(MADE_WITH, "an unknown model")
    path = tmp_path / "judged" / "doubling.jsonl"
    path.write_text(path.read_text().replace('"answer":15', '"answer":1015'))
    suite = Doubling()
    result = runner.run(suite, bench_in(tmp_path), other, start="score")
    assert result["figures"]["sum"] == 1046 and not any(suite.calls.values())
    assert result["made_with"] == MADE_WITH
    result = runner.run(suite, bench_in(tmp_path), other, start="judge")
    assert result["figures"]["sum"] == 46 and not suite.calls["generate"] + suite.calls["present"]
    assert result["made_with"] == MADE_WITH | {"judge": other["judge"]}
    result = runner.run(suite, bench_in(tmp_path), MADE_WITH, start="generate")
    assert sum(map(len, suite.calls["generate"])) == 8
    # more items than there are lines
    with pytest.raises(EvalError, match="no line for 1 of 9 items of doubling, such as '8'"):
        runner.run(Doubling(9), bench_in(tmp_path), MADE_WITH, start="score")
    with pytest.raises(EvalError, match=r"judged/doubling.jsonl: no such file"):
        path.unlink()
        runner.run(Doubling(), bench_in(tmp_path), MADE_WITH, start="score")


def on_hosts(folder, suites, start="resume", together=False):
    """Run a thread for each host; returns each one's result or error."""
    results = [None] * len(suites)
    barrier = threading.Barrier(len(suites), timeout=PATIENCE)
    names = [[] for _ in suites]

    def work(index):
        def wait(name):
            names[index].append(name)
            barrier.wait()

        hosts = Hosts(index, len(suites), together, wait)
        try:
            results[index] = runner.run(suites[index], bench_in(folder), MADE_WITH, hosts, start)
        except BaseException as error:  # noqa: BLE001 (an interrupt, which a thread keeps)
            results[index] = error
            barrier.abort()  # JAX ends the other processes

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(suites))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    if not any(isinstance(result, BaseException) for result in results):
        assert all(own == names[0] and len(set(own)) == len(own) for own in names)
    return results


def test_hosts_share_the_items(tmp_path):
    whole = runner.run(Doubling(), bench_in(tmp_path / "one"), MADE_WITH)
    suites = [Doubling() for _ in range(3)]
    assert on_hosts(tmp_path / "three", suites) == [whole, None, None]
    assert [suite.calls["generate"] for suite in suites] == [
        [[0, 3], [6]],
        [[1, 4], [7]],
        [[2, 5]],
    ]
    for phase in runner.FOLDERS:
        assert saved(tmp_path / "three", phase) == saved(tmp_path / "one", phase)
    # Again from the start: nothing is taken from the run before.
    suites = [Doubling() for _ in range(3)]
    assert on_hosts(tmp_path / "three", suites, start="generate")[0] == whole
    assert sum(len(batch) for suite in suites for batch in suite.calls["generate"]) == 8


def test_any_number_of_hosts_resumes_after_a_host_stopped(tmp_path):
    whole = runner.run(Doubling(), bench_in(tmp_path / "one"), MADE_WITH)
    suites = [Doubling(), Doubling(stop_after=("generate", 2))]
    first, second = on_hosts(tmp_path / "two", suites)
    assert isinstance(first, threading.BrokenBarrierError)
    assert isinstance(second, KeyboardInterrupt)
    suite = Doubling()
    assert runner.run(suite, bench_in(tmp_path / "two"), MADE_WITH) == whole
    assert suite.calls["generate"] == [[5, 7]]


def test_hosts_of_one_mesh_run_all_items_and_the_first_writes(tmp_path):
    """Each host sees the same saved lines before the first adds new ones."""
    whole = runner.run(Doubling(), bench_in(tmp_path / "one"), MADE_WITH)
    stopped = [Doubling(stop_after=("present", 2)), Doubling()]
    results = on_hosts(tmp_path / "two", stopped, together=True)
    assert [type(error) for error in results] == [KeyboardInterrupt, threading.BrokenBarrierError]
    assert not (tmp_path / "two" / "hosts" / "1").exists()
    suites = [Doubling(), Doubling()]
    assert on_hosts(tmp_path / "two", suites, together=True) == [whole, None]
    remaining = [[2, 4], [5, 6], [7]]
    assert [suite.calls for suite in suites] == [
        {"generate": [], "present": remaining, "judge": suites[0].calls["judge"]},
        {"generate": [], "present": remaining, "judge": []},
    ]
    assert sum(map(len, suites[0].calls["judge"])) == 7
    for phase in runner.FOLDERS:
        assert saved(tmp_path / "two", phase) == saved(tmp_path / "one", phase)


def test_no_items_duplicate_ids_and_damaged_records(tmp_path):
    with pytest.raises(EvalError, match="doubling: no items in the data"):
        runner.run(Doubling(0), bench_in(tmp_path), MADE_WITH)
    twice = Doubling()
    twice.items = lambda bench: Doubling(2).items(bench) + Doubling(1).items(bench)
    with pytest.raises(EvalError, match="2 items with the id '0'"):
        runner.run(twice, bench_in(tmp_path), MADE_WITH)
    result = runner.run(Doubling(2), bench_in(tmp_path, damaged={4: "no record"}), MADE_WITH)
    assert result["failed"] == [{"id": "record-4", "stage": "generate", "reason": "no record"}]
    assert result["items"][2]["correct"] is False


def test_a_score_that_raises_is_a_failure(tmp_path):
    suite = Doubling(2)

    def score(bench, item, outputs):
        if item.number:
            raise ValueError("a reference without words")
        return {"id": item.id, "language": "en", "answer": 1}

    suite.score = score
    suite.figures = lambda bench, rows: {"right": sum(row.get("correct", True) for row in rows)}
    result = runner.run(suite, bench_in(tmp_path), MADE_WITH)
    assert result["failed"] == [
        {"id": "1", "stage": "score", "reason": "a reference without words"}
    ]
    assert result["figures"]["right"] == 1
