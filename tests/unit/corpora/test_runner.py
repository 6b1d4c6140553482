"""Runs: division into shards, resumption, refusals, reports. Processes: in tests/integration."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import ClassVar

import pytest

from ba_jax.config import ConfigError
from ba_jax.corpora import runner, shards
from ba_jax.corpora.sources.base import Item, Rejected, Rejection, Source
from ba_jax.data.record import Part, Record, RecordSource
from configs import prepare as prepare_config
from tests.unit.corpora.corpora import config, contents, made, manifest, put, rejected


@dataclasses.dataclass(frozen=True)
class Numbers(Source):
    """A source of texts that logs its calls, and misbehaves on demand."""

    count: int = 10
    bad: str = ""
    log: str = ""

    name: ClassVar[str] = "numbers"
    description: ClassVar[str] = "Numbers."
    licence: ClassVar[str] = "none"

    def items(self) -> Iterator[Item | Rejection]:
        for n in range(self.count):
            yield Item(f"n{n}", "dev" if n % 5 == 4 else "train", f"list:{n}", n)

    def records(self, item: Item) -> Iterator[Record | Rejection]:
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{item.id}\n")
        n = item.payload
        if self.bad == "raise" and n == 6:
            raise KeyError("lost")
        if self.bad == "odd" and n % 2:
            raise Rejected("odd", f"{n}, expected an even number", 2.0)
        if self.bad == "all":
            raise Rejected("all")
        if self.bad == "dev" and item.split == "dev":
            raise Rejected("dev")
        yield Record(item.id, "text", "en", (Part(text=str(n)),), self.name)
        if self.bad == "pieces":
            yield Rejection(f"{item.where} second half", "half", "lost")
            yield Record(f"{item.id}-b", "text", "English", (Part(text="b"),), self.name)
            yield Record(item.id, "text", "en", (Part(text="twice"),), self.name)
        if self.bad == "late" and n == 2:
            raise Rejected("late")
        if self.bad == "id":
            yield Record("other", "text", "en", (Part(text="b"),), self.name)

    def finish(self, directory: pathlib.Path) -> None:
        (directory / "extra.txt").write_text("by the source")


@pytest.fixture(autouse=True)
def numbers(monkeypatch):
    monkeypatch.setitem(runner.SOURCES, "numbers", Numbers)


def texts(out: pathlib.Path, split: str = "train") -> list[str]:
    return [record.parts[0].text for record in RecordSource(out, split)]


# --- outputs ---------------------------------------------------------------------------


def test_a_dataset_that_tfds_reads(tmp_path):
    report = runner.prepare(config("numbers"), tmp_path / "out", workers=0)
    assert report["records"] == 10
    assert texts(tmp_path / "out") == ["0", "1", "2", "3", "5", "6", "7", "8"]
    assert texts(tmp_path / "out", "dev") == ["4", "9"]
    assert sorted(contents(tmp_path / "out")) == [
        "LICENSE",
        "dataset_info.json",
        "extra.txt",
        "features.json",
        "numbers-dev.array_record-00000-of-00001",
        "numbers-train.array_record-00000-of-00003",
        "numbers-train.array_record-00001-of-00003",
        "numbers-train.array_record-00002-of-00003",
        "prepare.json",
        "rejected.jsonl",
        "report.json",
        "report.md",
    ]


def test_division_depends_on_the_listing_alone():
    items = list(Numbers(7).items())
    jobs = shards.divide(items, 3)
    results = [(j.split, j.number, j.count, [i.id for i in j.items]) for j in jobs]
    assert results == [
        ("dev", 0, 1, ["n4"]),
        ("train", 0, 2, ["n0", "n1", "n2"]),
        ("train", 1, 2, ["n3", "n5", "n6"]),
    ]


def test_a_run_that_is_complete_is_not_redone(tmp_path):
    log = tmp_path / "log"
    run = config("numbers", log=log)
    first = runner.prepare(run, tmp_path / "out", workers=0)
    before = contents(tmp_path / "out")
    # A run killed at its very end leaves these.
    (tmp_path / "out" / ".prepare").mkdir()
    (tmp_path / "out" / ".prepare" / "train-00000.json").write_text("{}")
    assert runner.prepare(run, tmp_path / "out", workers=0) == first
    assert contents(tmp_path / "out") == before
    assert log.read_text().split() == [f"n{n}" for n in (4, 9, 0, 1, 2, 3, 5, 6, 7, 8)]


def test_a_failed_run_resumes(tmp_path, monkeypatch):
    log = tmp_path / "log"
    run = config("numbers", log=log)
    real = shards.write_shard

    def failing(path, records):
        if "00001-of-00003" in str(path):
            next(iter(records))
            raise OSError("disk full")
        return real(path, records)

    monkeypatch.setattr(shards, "write_shard", failing)
    with pytest.raises(OSError, match="disk full"):
        runner.prepare(run, tmp_path / "out", workers=0)
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    monkeypatch.setattr(shards, "write_shard", real)
    log.unlink()
    runner.prepare(run, tmp_path / "out", workers=0)
    assert log.read_text().split() == ["n3", "n5", "n6", "n7", "n8"]
    runner.prepare(run, tmp_path / "whole", workers=0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_shard_whose_file_was_cut_is_made_again(tmp_path):
    run = config("numbers", bad="odd", max_rejected=0.1)
    with pytest.raises(runner.PrepareError, match="max_rejected"):
        runner.prepare(run, tmp_path / "out", workers=0)
    shard = tmp_path / "out" / "numbers-train.array_record-00001-of-00003"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    run = dataclasses.replace(run, max_rejected=0.9)
    runner.prepare(run, tmp_path / "out", workers=0)
    assert shard.read_bytes() == whole


def test_a_killed_run_leaves_no_traces(tmp_path):
    run = config("numbers")
    runner.prepare(run, tmp_path / "whole", workers=0)
    out = tmp_path / "out"
    plan = runner.make_plan(run)
    out.mkdir()
    assert runner._open_run(run, plan, out, overwrite=False)
    shards.make_shard(plan.jobs[0], plan.source, out, plan.fingerprint)
    plan.jobs[1].claim_path(out).write_text("1 n0 (list:0)")
    (out / ".prepare" / "numbers-train.array_record-00000-of-00003.0a.incomplete").write_text("x")
    runner.prepare(run, out, workers=0)
    assert contents(out) == contents(tmp_path / "whole")


# --- refusals -----------------------------------------------------------------------------------


def test_another_config_is_refused_unless_overwriting(tmp_path):
    out = tmp_path / "out"
    runner.prepare(config("numbers"), out, workers=0)
    before = contents(out)
    other = config("numbers", count=8)
    with pytest.raises(runner.PrepareError, match="source.count was None, is 8.*--overwrite"):
        runner.prepare(other, out, workers=0)
    with pytest.raises(runner.PrepareError, match="items_per_shard was 3, is 2"):
        runner.prepare(config("numbers", items_per_shard=2), out, workers=0)
    assert contents(out) == before
    (out / "mine.txt").write_text("kept")
    assert runner.prepare(other, out, workers=0, overwrite=True)["records"] == 8
    assert (out / "mine.txt").read_text() == "kept"
    assert len(texts(out)) == 7 and len(list(out.glob("*-of-00003"))) == 3


def test_a_corpus_that_changed_is_refused(tmp_path):
    put(tmp_path / "a.wav")
    path = manifest(tmp_path, {"id": "a", "audio": "a.wav", "text": "one"})
    run = config("manifest", path=path)
    runner.prepare(run, tmp_path / "out", workers=0)
    manifest(tmp_path, {"id": "a", "audio": "a.wav", "text": "two"})
    with pytest.raises(runner.PrepareError, match="corpus has changed.*config is the same"):
        runner.prepare(run, tmp_path / "out", workers=0)
    report = runner.prepare(run, tmp_path / "out", workers=0, overwrite=True)
    assert report["records"] == 1 and texts(tmp_path / "out") == ["two"]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(runner.PrepareError, match="not made by prepare"):
            runner.prepare(config("numbers"), tmp_path, workers=0, overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.txt": b"precious"}


def test_a_state_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "prepare.json").write_text("{")
    with pytest.raises(runner.PrepareError, match="no JSON"):
        runner.prepare(config("numbers"), tmp_path, workers=0)


def test_two_runs_at_once_are_refused(tmp_path):
    def second(plan, jobs, directory):
        with pytest.raises(runner.PrepareError, match="another run"):
            runner.prepare(config("numbers"), directory, workers=0)
        for job in jobs:
            shards.make_shard(job, plan.source, directory, plan.fingerprint)

    report = runner.prepare(config("numbers"), tmp_path / "out", run_jobs=second)
    assert report["records"] == 10


def test_a_dataset_with_a_missing_shard_is_not_complete(tmp_path):
    out = tmp_path / "out"
    runner.prepare(config("numbers"), out, workers=0)
    (out / "numbers-train.array_record-00001-of-00003").unlink()
    with pytest.raises(runner.PrepareError, match="00001-of-00003: is missing.*--overwrite"):
        runner.prepare(config("numbers"), out, workers=0)
    runner.prepare(config("numbers"), out, workers=0, overwrite=True)
    assert len(texts(out)) == 8
    (tmp_path / "file").write_text("mine")
    with pytest.raises(runner.PrepareError, match="is a file, expected a folder"):
        runner.prepare(config("numbers"), tmp_path / "file", workers=0)


def test_config_keys_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="unknown keys .'cuont'"):
        runner.make_plan(config("numbers", cuont=3))
    with pytest.raises(ConfigError, match="config.source.count = 'x'"):
        runner.make_plan(config("numbers", count="x"))
    with pytest.raises(ConfigError, match="kind = 'nothing', expected one of .*librispeech"):
        runner.make_plan(config("nothing"))
    with pytest.raises(ConfigError, match="items_per_shard = 0"):
        config("numbers", items_per_shard=0)
    with pytest.raises(ConfigError, match="max_rejected = 2"):
        config("numbers", max_rejected=2.0)
    with pytest.raises(ConfigError, match="coding = 'mp3'"):
        runner.make_plan(config("manifest", audio={"coding": "mp3"}))
    with pytest.raises(ConfigError, match="min_seconds = 2.0, max_seconds = 1.0"):
        audio = {"min_seconds": 2.0, "max_seconds": 1.0}
        runner.make_plan(config("manifest", audio=audio))


NO_NAMES = ("all", "", " ", "a b", "a-b", "-", "../x", "a/b", "a+b", "train[:9]", "a:b", "a.b", "1")
NO_NAMES += ("训练", "é", "_", "a\n", "a\0", "\ud800", "x" * 81)


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_tfds_does_not_read_back_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="name = .*, expected letters, digits and _"):
        runner.make_plan(config("manifest", name=name))
    # Before the source, which is not there, is listed.
    for kind in ("manifest", "text", "crawl", "synthetic", "spliced"):
        with pytest.raises(ConfigError, match="split = .*, expected letters, digits and _"):
            runner.make_plan(config(kind, split=name))
    for kind in ("common_voice", "covost2", "fleurs", "aishell"):
        with pytest.raises(ConfigError, match="split = .*, expected letters, digits and _"):
            runner.make_plan(config(kind, splits=("train", name)))
    path = manifest(tmp_path, json.dumps({"text": "t", "split": name}), {"text": "t"})
    plan = runner.make_plan(config("manifest", path=path))
    assert plan.items == 1
    (rejection,) = plan.rejected
    assert rejection.where == f"{path}:1" and "split" in rejection.detail


@pytest.mark.parametrize("split", ("All", "train_1", "dev", "x" * 80))
def test_names_that_tfds_reads_back(tmp_path, split):
    path = manifest(tmp_path, {"text": "t"})
    records, _ = made(config("manifest", path=path, split=split), tmp_path / "out")
    assert list(records) == ["m-1"]


def test_a_file_name_that_is_not_utf_8_is_a_rejection(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("bad")
    run = config("text", path=tmp_path)
    plan = runner.make_plan(run)
    assert plan.items == 1
    (rejection,) = plan.rejected
    assert rejection.reason == "lone surrogate" and "byte 0xe9" in rejection.detail
    assert "byte 0xe9" in runner.dry_run(run).encode().decode()


def test_a_new_folder_may_hold_what_a_file_manager_left(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"")
    runner.prepare(config("numbers"), tmp_path / "out", workers=0)
    assert len(texts(tmp_path / "out")) == 8


@pytest.mark.parametrize("kind", sorted(runner.SOURCES))
def test_every_kind_has_a_config(kind):
    values = prepare_config.get_config(kind).to_dict()
    fields = {field.name for field in dataclasses.fields(runner.SOURCES[kind])}
    assert set(values["source"]) == fields
    assert f"\n  {kind} " in prepare_config.__doc__
    assert runner.config_from(values).make_source().name


# --- rejections ---------------------------------------------------------------------------------


def test_rejections_are_counted_with_place_and_hours(tmp_path):
    report = runner.prepare(config("numbers", bad="odd"), tmp_path / "out", workers=0)
    assert report["records"] == 5
    assert report["rejected"]["records"] == 5
    assert report["reasons"] == {"odd": {"records": 5, "seconds": 10.0, "hours": 0.0028}}
    rows = rejected(tmp_path / "out")
    assert rows[1] == {
        "where": "list:1",
        "reason": "odd",
        "detail": "1, expected an even number",
        "seconds": 2.0,
    }
    text = (tmp_path / "out" / "report.md").read_text()
    assert "- list:1: odd: 1, expected an even number" in text
    assert "5 rejected (0.003 h known)" in text


def test_pieces_of_an_item(tmp_path):
    records, rows = made(config("numbers", count=1, bad="pieces"), tmp_path / "out")
    assert list(records) == ["n0"]
    results = [(row["where"], row["reason"]) for row in rows]
    assert results == [
        ("list:0 second half", "half"),
        ("list:0", "malformed record"),
        ("list:0", "duplicate id"),
    ]
    assert "language 'English'" in rows[1]["detail"]


def test_an_item_that_is_rejected_late_leaves_no_record(tmp_path):
    records, rows = made(config("numbers", count=4, bad="late"), tmp_path / "out")
    assert sorted(records) == ["n0", "n1", "n3"]
    assert [row["reason"] for row in rows] == ["late"]


def test_a_source_that_fails_names_the_item(tmp_path):
    with pytest.raises(shards.PrepareError, match="list:6: item 'n6': KeyError.*lost"):
        runner.prepare(config("numbers", bad="raise"), tmp_path / "out", workers=0)
    with pytest.raises(shards.PrepareError, match="record 'other', expected an id that begins"):
        runner.prepare(config("numbers", bad="id"), tmp_path / "out2", workers=0)


def test_too_much_rejected(tmp_path):
    run = config("numbers", bad="odd", max_rejected=0.4)
    with pytest.raises(runner.PrepareError, match=r"50.0%, expected at most max_rejected = 40.0%"):
        runner.prepare(run, tmp_path / "out", workers=0)
    assert (tmp_path / "out" / "report.md").is_file()
    assert not (tmp_path / "out" / "dataset_info.json").exists()
    run = dataclasses.replace(run, max_rejected=0.5)
    assert runner.prepare(run, tmp_path / "out", workers=0)["records"] == 5


def test_a_run_without_records_fails(tmp_path):
    with pytest.raises(runner.PrepareError, match="no record was written: 10 rejected"):
        runner.prepare(config("numbers", bad="all"), tmp_path / "out", workers=0)
    assert len(rejected(tmp_path / "out")) == 10


def test_a_split_without_records_is_no_split(tmp_path):
    report = runner.prepare(config("numbers", bad="dev"), tmp_path / "out", workers=0)
    assert report["splits"]["dev"]["records"] == 0
    assert not list((tmp_path / "out").glob("*dev*"))
    assert len(texts(tmp_path / "out")) == 8


# --- the report ---------------------------------------------------------------------------------


def test_report(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.wav", seconds=36.0 if name == "c" else 0.5, rate=4000)
    lines = [
        {"id": "a", "audio": "a.wav", "text": "a", "speaker": "ann"},
        {"id": "b", "audio": "b.wav", "text": "b", "speaker": "bob", "language": "zh"},
        {"id": "c", "audio": "c.wav", "text": "c", "speaker": "ann", "split": "dev"},
        {"id": "t", "text": "text"},
        "{",
    ]
    path = manifest(tmp_path, *lines)
    report = runner.prepare(config("manifest", path=path), tmp_path / "out", workers=0)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["records"], report["seconds"], report["hours"]) == (4, 37.0, 0.0103)
    train, dev = report["splits"]["train"], report["splits"]["dev"]
    assert (train["records"], train["seconds"], train["speakers"], train["shards"]) == (
        3,
        1.0,
        2,
        1,
    )
    assert (dev["records"], dev["hours"], dev["speakers"]) == (1, 0.01, 1)
    assert {k: (v["records"], v["seconds"]) for k, v in report["languages"].items()} == {
        "en": (3, 36.5),
        "zh": (1, 0.5),
    }
    assert {k: v["records"] for k, v in report["kinds"].items()} == {"speech": 3, "text": 1}
    assert report["speakers"]["train"]["bob"]["seconds"] == 0.5
    assert report["speakers"]["dev"]["ann"]["seconds"] == 36.0
    assert report["reasons"]["malformed JSON"]["records"] == 1
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "# manifest: 4 records, 0.010 h" in text
    assert "| dev   | 1       | 0.010 | 1        | 1      |" in text
    assert "| dev   | ann     | 1     | 0.010 |" in text
    assert f"- {path}:5: malformed JSON: " in text


def test_long_reports_are_shortened(tmp_path):
    lines = ["{"] * 15 + [{"text": "t"}]
    path = manifest(tmp_path, *lines)
    runner.prepare(config("manifest", path=path), tmp_path / "out", workers=0)
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert text.count("malformed JSON: ") == 10
    assert "- and 5 more of 'malformed JSON', see rejected.jsonl" in text
    assert len(rejected(tmp_path / "out")) == 15


def test_dry_run(tmp_path):
    put(tmp_path / "a.wav")
    path = manifest(
        tmp_path,
        {"id": "a", "audio": "a.wav", "text": "a", "duration": 36.0},
        {"id": "a", "text": "again"},
        {"id": "b", "audio": "gone.wav", "text": "b"},
        {"id": "c", "text": "c", "split": "dev"},
    )
    before = contents(tmp_path)
    text = runner.dry_run(config("manifest", path=path))
    assert "2 items listed, nothing written" in text
    assert "- train: 1 items in 1 shards, 0.01 h" in text
    assert "- dev: 1 items in 1 shards, hours not known before reading" in text
    assert f"- {path}:2: duplicate id: 'a' is also at {path}:1" in text
    assert f"- {path}:3: missing file: {tmp_path / 'gone.wav'}" in text
    assert contents(tmp_path) == before
    with pytest.raises(runner.PrepareError, match="nothing to make records of"):
        runner.dry_run(config("manifest", path=manifest(tmp_path, "{")))


def test_listing_is_cheap(tmp_path):
    """Listing opens no audio file."""
    (tmp_path / "a.wav").write_bytes(b"no audio")
    path = manifest(tmp_path, {"id": "a", "audio": "a.wav", "text": "a"})
    assert "1 items listed" in runner.dry_run(config("manifest", path=path))


def test_thousands_of_lines(tmp_path):
    lines = [{"id": f"t{n}", "text": f"text {n}"} for n in range(4_000)]
    path = manifest(tmp_path, *lines)
    run = config("manifest", items_per_shard=2000, path=path)
    report = runner.prepare(run, tmp_path / "out", workers=0)
    assert report["records"] == 4_000
    assert report["splits"]["train"]["shards"] == 2
    source = RecordSource(tmp_path / "out", "train")
    assert source[3777].parts[0].text == "text 3777"
    assert len(source) == 4_000
