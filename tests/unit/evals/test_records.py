"""Selection of a split's records."""

import pytest

from ba_jax.data.record import RecordSource
from ba_jax.evals.items import EvalError
from ba_jax.evals.records import EvalRecords
from tests.unit.evals import small_bench


def test_items_are_held_out_closed_sentences():
    records = EvalRecords(small_bench.settings())
    source = RecordSource("embedded", "test")
    closed = {r.id for r in map(source.__getitem__, range(len(source))) if r.source == "closed"}
    assert {u.id for u in records.statements} | {d.id for d in records.dialogues} <= closed
    assert {u.id for u in records.questions} == {f"{d.id}-question" for d in records.dialogues}


def test_no_record():
    records = EvalRecords(small_bench.settings(sources=("nobody",)))
    with pytest.raises(EvalError, match=r"split test: no record of \('nobody',\)"):
        _ = records.selected
