"""Records: every field comes back, damage is noticed, bytes are the same in every run."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ba_jax.data import record as records_module
from ba_jax.data.record import (
    EMBEDDED,
    KINDS,
    LANGUAGES,
    Part,
    Record,
    RecordError,
    RecordSource,
    Word,
    check_record,
    dataset_directory,
    drop_invisible,
    from_bytes,
    shard_name,
    to_bytes,
    write_metadata,
    write_shard,
)

ROOT = pathlib.Path(__file__).resolve().parents[3]

# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    (
        *("\u200b", "\ufeff", "\u00ad", "\u2060", "\u001a", "\0", "\u202a\u202c", "\u200e\u200f"),
        *("\u2066\u2069", "\u061c", "\u180e", "\u3164", "\u2800", "\ufe0f", "\u034f", "\ue000"),
        *("\U000e0041", "\ufffe", "\x7f", "\u115f\uffa0", "\ufff9\ufffb", "\ufffc"),
    ),
)
def test_invisible_characters(text):
    assert drop_invisible(text) == ""
    assert drop_invisible(f"a{text}b {text}字") == "ab 字"


@pytest.mark.parametrize(
    "text",
    (
        "",
        " a\tb\nc\u3000d\u00a0e\u2028",
        "naïve e\u0301 — “5 €” 😀",
        "\U0002ebf0\U00031350字",
        "\x1c\x85",
    ),
)
def test_visible_characters_and_white_space_stay(text):
    assert drop_invisible(text) == text


# --- making records -----------------------------------------------------------------------------

texts = st.text(max_size=20)
written = texts.filter(str.strip)
# Times are stored as float32.
times = st.floats(0, 1e4, width=32)
codes = st.builds(
    lambda rows, seed: np.random.default_rng(seed).integers(0, 65536, rows, dtype=np.int64),
    st.tuples(st.integers(1, 20), st.integers(1, 8)),
    st.integers(0, 99),
)
words = st.lists(st.builds(Word, texts, times, times), max_size=4).map(tuple)


@st.composite
def parts(draw, spoken: bool, role: str, has_text: bool) -> Part:
    audio, codes_NQ, seconds = b"", None, 0.0
    if spoken:
        codes_NQ = draw(st.none() | codes)
        audio = draw(st.binary(min_size=1 if codes_NQ is None else 0, max_size=50))
        seconds = draw(st.floats(2**-10, 1e4, width=32))
    return Part(
        text=draw(written if has_text or not spoken else texts),
        audio=audio,
        codes_NQ=codes_NQ,
        seconds=seconds,
        translation=draw(texts),
        role=role,
        speaker=draw(texts),
        words=draw(words),
        loss=draw(st.booleans()),
    )


@st.composite
def records(draw) -> Record:
    kind = draw(st.sampled_from(KINDS))
    count = 1 if kind == "speech" else draw(st.integers(2, 4))
    results = []
    for _ in range(count):
        spoken = {"speech": True, "interleaved": True, "text": False}.get(kind)
        spoken = draw(st.booleans()) if spoken is None else spoken
        role = draw(st.sampled_from(("system", "user", "assistant"))) if kind == "dialogue" else ""
        results.append(draw(parts(spoken, role, kind == "interleaved")))
    id = draw(st.text(min_size=1, max_size=20))
    return Record(id, kind, draw(st.sampled_from(LANGUAGES)), tuple(results), draw(texts))


def plain(record: Record) -> dict:
    """Comparable: arrays as lists."""
    fields = dataclasses.asdict(record)
    for part in fields["parts"]:
        if part["codes_NQ"] is not None:
            part["codes_NQ"] = part["codes_NQ"].tolist()
    return fields


def speech(n: int = 0, **fields) -> Record:
    part = Part(**{"text": f"text {n}", "audio": bytes([n % 256]) * 500, "seconds": 1.0, **fields})
    return Record(f"r{n}", "speech", "en", (part,), "test")


def dataset(folder: pathlib.Path, counts: tuple[int, ...] = (3, 2), name: str = "data"):
    """A dataset of one split with so many records in its shards."""
    folder.mkdir(exist_ok=True)
    shards, n = [], 0
    for number, count in enumerate(counts):
        path = folder / shard_name(name, "train", number, len(counts))
        shards.append(write_shard(path, [speech(n + i) for i in range(count)]))
        n += count
    write_metadata(folder, name, {"train": shards}, description="About it.", licence="CC0")
    return folder


# --- one record ---------------------------------------------------------------------------------


@given(records())
@settings(max_examples=150)
def test_round_trip(record):
    data = to_bytes(record)
    got = from_bytes(data)
    assert plain(got) == plain(record)
    assert data == to_bytes(got)
    assert got.seconds == pytest.approx(sum(part.seconds for part in record.parts))


@pytest.mark.parametrize(
    "text", ("你好,世界。", "👩‍👩‍👧 café é", "\x00\r\n\t", "ﷺ\U0010ffff", "<|endoftext|>")
)
def test_unicode_is_kept_as_it_is(text):
    record = speech(text=text, translation=text, words=(Word(text, 0.5, 1.0),), speaker=text)
    assert plain(from_bytes(to_bytes(record))) == plain(record)


def test_codes_keep_their_shape():
    for shape in ((1, 1), (1, 8), (8, 1), (37, 8)):
        codes_NQ = np.arange(np.prod(shape)).reshape(shape)
        got = from_bytes(to_bytes(speech(codes_NQ=codes_NQ))).parts[0].codes_NQ
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, codes_NQ)


def test_bytes_do_not_depend_on_the_process():
    code = (
        "import hashlib; from tests.unit.data.test_record import *\n"
        "record = speech(words=(Word('a', 0.0, 1.0),), speaker='ann', translation='b')\n"
        "print(hashlib.sha256(to_bytes(record)).hexdigest())"
    )
    # Protobuf orders a map by a hash that is seeded anew in each process.
    results = {run_python(code) for _ in range(3)}
    record = speech(words=(Word("a", 0.0, 1.0),), speaker="ann", translation="b")
    assert results == {hashlib.sha256(to_bytes(record)).hexdigest()}


def run_python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@given(st.binary(max_size=60))
def test_bytes_that_are_no_record(data):
    with pytest.raises(RecordError, match=f"{len(data)} bytes that are no record"):
        from_bytes(data)


TEXT = Part(text="a")
SPOKEN = Part(text="a", audio=b"x", seconds=1.0)
USER = dataclasses.replace(TEXT, role="user")


@pytest.mark.parametrize(
    ("change", "words"),
    (
        ({"id": ""}, "an empty id"),
        ({"kind": "song"}, "kind 'song'"),
        ({"language": "French"}, "language 'French', expected a code"),
        ({"parts": ()}, "0 parts, expected 1"),
        ({"parts": (SPOKEN, SPOKEN)}, "2 parts, expected 1"),
        ({"parts": (TEXT,)}, "part 0: no speech"),
        ({"parts": (Part(),)}, "part 0: neither text nor speech"),
        ({"parts": (dataclasses.replace(SPOKEN, seconds=0.0),)}, "0.0 seconds"),
        ({"parts": (dataclasses.replace(SPOKEN, seconds=np.nan),)}, "nan seconds"),
        ({"parts": (dataclasses.replace(SPOKEN, seconds=np.inf),)}, "inf seconds"),
        ({"parts": (dataclasses.replace(SPOKEN, role="user"),)}, "role 'user'"),
        ({"parts": (dataclasses.replace(SPOKEN, text="\ud800"),)}, "surrogate"),
        ({"parts": (dataclasses.replace(SPOKEN, speaker="\udfff"),)}, "surrogate"),
        ({"parts": (dataclasses.replace(SPOKEN, codes_NQ=np.zeros((0, 8), int)),)}, "(0, 8)"),
        ({"parts": (dataclasses.replace(SPOKEN, codes_NQ=np.zeros(8, int)),)}, "(8,)"),
        ({"parts": (dataclasses.replace(SPOKEN, codes_NQ=np.ones((2, 8))),)}, "float64"),
        ({"parts": (dataclasses.replace(SPOKEN, codes_NQ=np.full((1, 1), -1)),)}, "from -1"),
        ({"parts": (dataclasses.replace(SPOKEN, codes_NQ=np.full((1, 1), 65536)),)}, "65536"),
        ({"kind": "text"}, "speech in a record of kind 'text'"),
        ({"kind": "text", "parts": (dataclasses.replace(TEXT, seconds=1.0),)}, "1.0 seconds"),
        ({"kind": "interleaved", "parts": (SPOKEN,)}, "1 parts, expected at least 2"),
        ({"kind": "interleaved", "parts": (SPOKEN, TEXT)}, "part 1: expected both"),
        ({"kind": "dialogue", "parts": (USER, TEXT)}, "part 1: role ''"),
        ({"kind": "dialogue", "parts": (USER, dataclasses.replace(TEXT, role="me"))}, "'me'"),
    ),
)
def test_records_that_are_not_well_formed(change, words):
    good = Record("r", "speech", "en", (SPOKEN,), "corpus")
    assert check_record(good) is good
    record = dataclasses.replace(good, **change)
    with pytest.raises(RecordError) as caught:
        to_bytes(record)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"corpus:{record.id}: ")


# --- files --------------------------------------------------------------------------------------


def test_a_dataset_is_what_tfds_calls_one(tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(dataset(tmp_path))
    assert builder.info.splits["train"].num_examples == 5
    assert builder.info.splits["train"].shard_lengths == [3, 2]
    assert builder.info.description == "About it."
    assert builder.as_data_source("train")[4]["id"] == b"r4"


def test_random_access(tmp_path):
    source = RecordSource(dataset(tmp_path, (3, 0, 2)), "train")
    assert len(source) == 5
    assert [source[i].id for i in (4, 0, 3)] == ["r4", "r0", "r3"]
    assert [record.id for record in source] == [f"r{i}" for i in range(5)]
    for index in (5, -1):
        with pytest.raises(IndexError, match=f"record {index} of 5"):
            source[index]
    assert pickle.loads(pickle.dumps(source))[2].id == "r2"
    assert len(pickle.dumps(source)) < 1000


def test_a_shard_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "shard"

    def failing():
        yield speech(0)
        assert not path.exists()
        raise KeyError("lost")

    with pytest.raises(KeyError):
        write_shard(path, failing())
    assert not path.exists()
    shard = write_shard(path, [speech(0), speech(1)])
    assert (shard.records, shard.size) == (2, sum(len(to_bytes(speech(n))) for n in (0, 1)))
    assert [p.name for p in tmp_path.iterdir()] == ["shard"]


def test_shards_have_the_same_bytes_in_every_run(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, [speech(n) for n in range(50)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_damage_is_noticed(tmp_path):
    """A byte flipped anywhere gives an error or the record as it was, never another."""
    folder = dataset(tmp_path, (5,))
    path = folder / shard_name("data", "train", 0, 1)
    whole = path.read_bytes()
    data = np.frombuffer(whole, np.uint8)
    used = np.flatnonzero(data)
    noticed = 0
    for position in used[:: max(1, len(used) // 40)]:
        broken = bytearray(whole)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        for index in range(5):
            try:
                record = RecordSource(folder, "train")[index]
            except RecordError as error:
                noticed += 1
                assert str(folder) in str(error) and f"record {index}" in str(error)
            else:
                assert plain(record) == plain(speech(index))
    assert noticed > 20


def test_a_shard_of_zeros_is_damaged(tmp_path):
    folder = dataset(tmp_path, (5,))
    path = folder / shard_name("data", "train", 0, 1)
    path.write_bytes(bytes(len(path.read_bytes())))
    with pytest.raises(RecordError, match="train.*damaged|damaged.*train"):
        RecordSource(folder, "train")[0]


def test_no_dataset_no_split_other_fields(tmp_path, monkeypatch):
    with pytest.raises(RecordError, match="no dataset_info.json"):
        RecordSource(tmp_path, "train")
    folder = dataset(tmp_path / "data")
    with pytest.raises(RecordError, match=": split 'test', expected one of .'train'"):
        RecordSource(folder, "test")
    real = records_module.features()
    monkeypatch.setattr(records_module, "features", lambda: {**real, "colour": None})
    with pytest.raises(RecordError, match="expected .*'colour'"):
        RecordSource(folder, "train")


def test_the_embedded_corpus_has_a_name(tmp_path):
    assert dataset_directory(EMBEDDED).parts[-4:] == ("ba_jax", "data", "corpus", "embedded")
    assert dataset_directory(str(tmp_path)) == tmp_path


def test_tensorflow_is_not_needed(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from tests.unit.data.test_record import dataset\n"
        "from ba_jax.data.record import RecordSource\n"
        f"source = RecordSource(dataset(pathlib.Path({str(tmp_path)!r})), 'train')\n"
        "assert source[4].id == 'r4'\n"
        "print([name for name in ('tensorflow', 'jax', 'torch') if name in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_shards_that_are_cut_or_missing_are_damaged(tmp_path):
    folder = dataset(tmp_path, (5,))
    path = folder / shard_name("data", "train", 0, 1)
    whole = path.read_bytes()
    for data in (b"", whole[:1000], whole[: len(whole) // 2], b"garbage" * 20000, None):
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)
        with pytest.raises(RecordError, match=f"{tmp_path}: split 'train', record 0 is damaged"):
            RecordSource(folder, "train")[0]
