"""Counting records: same with processes and cache, nothing lost, damage named or counted."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pickle

import numpy as np
import pytest

from ba_jax.data import index
from ba_jax.data.examples import NotForTask
from ba_jax.data.index import count
from ba_jax.data.record import Part, Record, RecordError, RecordSource
from tests.unit.data import small_corpus


@dataclasses.dataclass(frozen=True)
class Measure:
    """Measure a row per part, (part, centiseconds); log each call in the file `calls`."""

    calls: str = ""
    fail_at: str = ""

    def __call__(self, record: Record) -> list[tuple[int, ...]]:
        if self.calls:
            with open(self.calls, "a") as file:
                file.write(f"{record.id}\n")
        if record.id == self.fail_at:
            raise RecordError("it hurts")
        if record.kind == "text":
            raise NotForTask("no speech")
        return [(i, round(100 * part.seconds)) for i, part in enumerate(record.parts)]


@dataclasses.dataclass(frozen=True)
class Dies:
    def __call__(self, record: Record) -> list[tuple[int, ...]]:
        if record.id == "en9":
            os._exit(3)
        return [(0, 0)]


class Picky(Exception):  # noqa: N818 (what a library might raise)
    """Pickles, but cannot be made again from what was pickled."""

    def __init__(self, a, b):
        super().__init__(a)


@dataclasses.dataclass(frozen=True)
class Raises:
    def __call__(self, record: Record) -> list[tuple[int, ...]]:
        raise Picky(1, 2)


@pytest.fixture
def source(small_dataset) -> RecordSource:
    return RecordSource(small_dataset, "train")


@pytest.fixture
def short_runs(monkeypatch):
    """Several runs of records in a small dataset."""
    monkeypatch.setattr(index, "_RUN", 5)


def assert_equal(a: index.Count, b: index.Count) -> None:
    np.testing.assert_array_equal(a.records_N, b.records_N)
    np.testing.assert_array_equal(a.rows_NK, b.rows_NK)
    assert a.left_out == b.left_out


def test_every_record_is_counted_in_order(source, short_runs):
    seen = []
    counted = count(source, Measure(), 2, key=1, progress=seen.append)
    records = small_corpus.records()
    want = [
        (number, i, round(100 * part.seconds))
        for number, record in enumerate(records)
        for i, part in enumerate(record.parts)
        if record.kind != "text"
    ]
    result = np.column_stack([counted.records_N, counted.rows_NK])
    np.testing.assert_array_equal(result, want)
    assert counted.left_out == {"no speech": 4}
    assert sum(seen) == len(source) == len(records) and len(seen) == 6


def test_processes_count_the_same(source, short_runs):
    alone = count(source, Measure(), 2, key=1)
    seen = []
    assert_equal(alone, count(source, Measure(), 2, key=1, workers=2, progress=seen.append))
    assert sum(seen) == len(source)


def test_a_count_is_cached(source, tmp_path):
    cache, calls = tmp_path / "cache", tmp_path / "calls"
    measure = Measure(str(calls))

    def measured(**options) -> int:
        calls.write_text("")
        counted = count(source, measure, 2, cache=str(cache), **{"key": 1} | options)
        assert_equal(counted, plain)
        return len(calls.read_text().splitlines())

    plain = count(source, Measure(), 2, key=1)
    assert measured() == len(source)
    assert measured() == 0
    assert measured(key={"other": [1.5, "x"]}) == len(source)
    assert measured(on_error="skip") == len(source)
    assert measured() == 0
    # Damaged, or half copied: counted again and replaced.
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert measured() == len(source)
    assert measured() == 0
    for file in cache.iterdir():
        file.write_bytes(b"")
    assert measured() == len(source)
    assert [f for f in cache.iterdir() if f.suffix != ".npz"] == []


def test_a_cached_count_is_not_used_for_changed_data(tmp_path):
    cache = str(tmp_path / "cache")
    folder = tmp_path / "data"
    small_corpus.write_dataset(folder, small_corpus.records(1))
    first = count(RecordSource(folder, "train"), Measure(), 2, key=1, cache=cache)
    small_corpus.write_dataset(folder, small_corpus.records(1)[:-4])
    second = count(RecordSource(folder, "train"), Measure(), 2, key=1, cache=cache)
    assert len(second.rows_NK) < len(first.rows_NK)


def test_a_record_that_cannot_be_measured_is_named_or_counted(source):
    where = rf"{source.directory}: split 'train', record 4: it hurts"
    with pytest.raises(RecordError, match=where):
        count(source, Measure(fail_at="en4"), 2, key=1)
    counted = count(source, Measure(fail_at="en4"), 2, key=1, on_error="skip")
    assert counted.left_out == {"damaged": 1, "no speech": 4}
    assert 4 not in counted.records_N and 3 in counted.records_N


class Few:
    """A source of records that nobody checked when they were written."""

    directory, split = pathlib.Path("few"), "train"

    def __init__(self, *records: Record):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> Record:
        return self.records[number]


@pytest.mark.parametrize(
    "part, message",
    [
        (Part("hi", b"x", seconds=float("nan")), "nan seconds"),
        (Part("hi", b"x", seconds=0.0), "0.0 seconds"),
        (Part("hi", b"x", seconds=-1.0), "-1.0 seconds"),
        (Part("hi", codes_NQ=np.full((2, 8), np.nan), seconds=1.0), r"codes float64\(2, 8\)"),
        (Part("hi", codes_NQ=np.full((2, 8), -1), seconds=1.0), "codes from -1 to -1"),
        (Part("hi"), "no speech"),
    ],
)
def test_records_that_are_not_well_formed_are_damaged(part, message):
    bad = Few(Record("a", "speech", "en", (part,), "s"))
    with pytest.raises(RecordError, match=f"few: split 'train', record 0: s:a: part 0: {message}"):
        count(bad, Measure(), 2, key=1)
    assert count(bad, Measure(), 2, key=1, on_error="skip").left_out == {"damaged": 1}


def test_an_empty_count():
    counted = count(Few(), Measure(), 3, key=1)
    assert counted.rows_NK.shape == (0, 3) and counted.records_N.shape == (0,)


@pytest.mark.parametrize("measure", [Dies(), Raises()])
def test_a_process_that_dies_is_an_error_and_no_hang(source, short_runs, measure):
    with pytest.raises(RecordError, match="a process that counts its records died"):
        count(source, measure, 2, key=1, workers=2)


def test_a_process_is_given_the_measure_once(source, short_runs, monkeypatch):
    """A tokenizer of megabytes must not be sent along with every run of records."""
    sizes = []
    real = index.concurrent.futures.ProcessPoolExecutor.submit

    def submit(self, function, *args, **options):
        sizes.append(len(pickle.dumps((function, args, options))))
        return real(self, function, *args, **options)

    monkeypatch.setattr(index.concurrent.futures.ProcessPoolExecutor, "submit", submit)
    large = Measure(fail_at="x" * 100_000)
    assert_equal(count(source, large, 2, key=1, workers=1), count(source, Measure(), 2, key=1))
    assert len(sizes) == 6 and max(sizes) < 1000
