"""A dataset with codes: the same records, the codes of the model, the same frames as with mels."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest

from ba_jax.audio.lengths import code_length
from ba_jax.checkpoints import arrays as checkpoint
from ba_jax.config import ConfigError
from ba_jax.corpora import tokenize
from ba_jax.corpora.runner import PrepareError
from ba_jax.corpora.sources.base import SourceError
from ba_jax.corpora.sources.tokenized import TokenizedSource
from ba_jax.corpora.tokenize import AudioTokenizer, TokenizeSettings
from ba_jax.data import features
from ba_jax.data.examples import ExampleMaker, NotForTask
from ba_jax.data.features import Bucket
from ba_jax.data.mixture import Selection
from ba_jax.data.packed import PackedBatches, PackedSettings, open_builders
from ba_jax.data.record import (
    Part,
    Record,
    RecordSource,
    Word,
    shard_name,
    write_metadata,
    write_shard,
)
from ba_jax.data.tasks import TASKS
from ba_jax.models.audio_encoder import AudioEncoderConfig
from ba_jax.models.baichuan_audio import BaichuanAudio, BaichuanAudioConfig, init_variables
from ba_jax.models.vq_bridge import VQBridgeConfig
from ba_jax.tree import flatten, unflatten
from tests.processes import PATIENCE
from tests.unit.checkpoints.small_checkpoint import save_variables
from tests.unit.data import small_corpus

CONFIG = BaichuanAudioConfig(
    audio_encoder=AudioEncoderConfig(mel_bins=128, width=16, layers=1, heads=2, ffn_width=32),
    vq_bridge=VQBridgeConfig(width=16, pooling=4, codebook_sizes=small_corpus.CODEBOOK_SIZES),
)
CHUNK = 2.0
SETTINGS = {"bucket_seconds": (1.0,), "batch_seconds": 8.0, "chunk_seconds": CHUNK}
WORDS = (Word("the", 0.0, 0.2), Word("sky", 0.3, 0.6))


def long_record() -> Record:
    """Chunks of 2, 2, 2 and 0.5 s; then parts too short for a frame, and without speech."""
    parts = (
        Part("a", small_corpus.speech(6.5, 90), seconds=6.5, role="user", words=WORDS),
        Part("b", small_corpus.speech(0.05, 91), seconds=0.05, role="assistant", speaker="x"),
        Part("c", role="user", loss=False),
        Part("d", small_corpus.speech(1.0, 92), seconds=1.0, role="assistant", translation="t"),
    )
    return Record("long", "dialogue", "zh", parts, "small")


def bare(record: Record) -> Record:
    """Without codes."""
    parts = (dataclasses.replace(part, codes_NQ=None) for part in record.parts)
    return dataclasses.replace(record, parts=tuple(parts))


def write(directory: pathlib.Path, splits: dict[str, list[Record]]) -> pathlib.Path:
    """A dataset named "small" with files beside its records."""
    directory.mkdir(parents=True)
    made = {
        split: [write_shard(directory / shard_name("small", split, 0, 1), records)]
        for split, records in splits.items()
    }
    write_metadata(directory, "small", made, description="tones", licence="CC0-1.0")
    (directory / "LICENSE").write_text("all yours")
    (directory / "NOTICE").write_text("by us")
    return directory


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
    """Two splits, with a text tokenizer beside them."""
    records = [bare(record) for record in small_corpus.records()]
    splits = {"train": [*records[:20], long_record()], "test": records[20:]}
    directory = write(tmp_path_factory.mktemp("tokenize") / "in", splits)
    small_corpus.write_tokenizer(directory / "tokenizer.model")
    return directory


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[pathlib.Path]:
    """Weights of two tokenizers of the same sizes."""
    folder = tmp_path_factory.mktemp("weights")
    make = jax.jit(lambda key: init_variables(CONFIG, key))
    for seed in (0, 1):
        save_variables(folder / str(seed), make(jax.random.key(seed)))
    return [folder / "0", folder / "1"]


@pytest.fixture(scope="module")
def tokenizer(checkpoints) -> AudioTokenizer:
    return AudioTokenizer(CONFIG, str(checkpoints[0]))


def run(tokenizer, dataset, out, processes=None, **changes):
    """`tokenize` with few records a shard."""
    settings = TokenizeSettings(str(dataset), str(out), **SETTINGS | changes)
    return tokenize.tokenize(tokenizer, settings, **processes or {})


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    """Five records a shard, so that there are several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "ITEMS_PER_SHARD", 5)
        yield


@pytest.fixture(scope="module")
def made(tokenizer, dataset, tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("tokenized") / "out"
    run(tokenizer, dataset, out)
    return out


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# --- records --------------------------------------------------------------------------------------


def test_records_are_the_same_but_for_codes(dataset, made):
    for split in ("train", "test"):
        before, after = RecordSource(dataset, split), RecordSource(made, split)
        assert [bare(record) for record in after] == list(before)
        for record in after:
            for part in record.parts:
                assert (part.codes_NQ is not None) == (part.seconds > 0.06)
    assert len(list(made.glob("small-train.array_record-*-of-00005"))) == 5
    assert (made / "LICENSE").read_text() == "all yours"
    assert (made / "NOTICE").read_text() == "by us"
    assert (made / "tokenizer.model").read_bytes() == (dataset / "tokenizer.model").read_bytes()
    info = json.loads((made / "dataset_info.json").read_text())
    assert info["name"] == "small" and info["description"].startswith("tones")
    assert not (made / ".prepare").exists()


def test_codes_equal_the_models_output(made, checkpoints):
    """Each chunk is encoded alone, without padding."""
    variables = checkpoint.load_variables(checkpoints[0])
    model = BaichuanAudio(CONFIG)
    encode = jax.jit(lambda mel, n: model.apply(variables, mel, n, method="encode"))
    compared, seen = 0, set()
    for split in ("train", "test"):
        for record in RecordSource(made, split):
            for part in record.parts:
                if part.codes_NQ is None:
                    continue
                with features.one_blas_thread():
                    (wave_S,) = features.decode(part.audio, part.seconds, [16_000])
                    chunks = features.chunk_samples(len(wave_S), CHUNK)
                    mels = features.chunk_mels(wave_S, chunks, features.mel_geometry(128))
                codes = []
                for mel_TM in mels:
                    padded = np.pad(mel_TM, ((0, 201 - len(mel_TM)), (0, 0)))[None]
                    codes_BNQ, lengths_B = encode(padded, np.array([len(mel_TM)], np.int32))
                    codes.append(np.asarray(codes_BNQ)[0, : int(lengths_B[0])])
                np.testing.assert_array_equal(part.codes_NQ, np.concatenate(codes))
                compared += len(part.codes_NQ)
                seen |= {tuple(code) for code in part.codes_NQ}
    assert compared > 500 and len(seen) > 30


def test_examples_have_the_same_layout_as_with_mels(dataset, made):
    """Ids, targets and lengths of examples, and the rows of batches that mels do not limit."""
    pair = []
    for audio, folder in (("features", dataset), ("codes", made)):
        mixture = tuple(
            Selection(
                str(folder), ExampleMaker(task, answers="spoken" if task == "sft" else "written")
            )
            for task in TASKS
        )
        pair.append(
            PackedSettings(
                mixture=mixture,
                tokenizer=str(folder),
                row_length=256,
                rows=3,
                audio=audio,
                buckets=(Bucket(CHUNK, 90),),
            )
        )
    records = [list(RecordSource(folder, "train")) for folder in (dataset, made)]
    examples = 0
    for heard, coded in zip(*(open_builders(s, small_corpus.FORMAT) for s in pair), strict=True):
        for with_audio, with_codes in zip(*records, strict=True):
            results = []
            for layout, record in ((heard, with_audio), (coded, with_codes)):
                try:
                    results.append(layout(record)[1])
                except NotForTask:
                    results.append(None)
            if None in results:
                assert results == [None, None]
                continue
            for name in ("ids_L", "text_target_L", "audio_target_L"):
                np.testing.assert_array_equal(*(getattr(sequence, name) for sequence in results))
            examples += 1
    assert examples > 50
    heard, coded = (PackedBatches(settings, small_corpus.FORMAT) for settings in pair)
    for step in range(12):
        rows = [batches.build(step).rows for batches in (heard, coded)]
        for name in rows[0]._fields:
            if name != "codes_BLQ":
                np.testing.assert_array_equal(*(getattr(r, name) for r in rows))
        waiting = rows[0].ids_BL == small_corpus.FORMAT.tokens.audio_pad
        assert not rows[0].codes_BLQ[waiting].any()
        assert not waiting.any() or rows[1].codes_BLQ[waiting].any()


def test_the_report_names_the_tokenizer(tokenizer, made):
    report = json.loads((made / "report.json").read_text())
    assert report["tokenizer"] == tokenizer.fingerprint
    assert report["records"] == 29 and report["splits"]["train"]["records"] == 21
    assert tokenizer.fingerprint in (made / "report.md").read_text()
    assert (
        tokenizer.fingerprint in json.loads((made / "dataset_info.json").read_text())["description"]
    )


def test_audio_can_be_dropped_except_from_parts_without_codes(tokenizer, dataset, made, tmp_path):
    run(tokenizer, dataset, tmp_path / "out", drop_audio=True, splits=("train",))
    kept = list(RecordSource(made, "train"))
    for record, with_audio in zip(RecordSource(tmp_path / "out", "train"), kept, strict=True):
        for part, before in zip(record.parts, with_audio.parts, strict=True):
            assert part.seconds == before.seconds
            if before.codes_NQ is None:
                assert part.audio == before.audio
            else:
                assert part.audio == b"" and np.array_equal(part.codes_NQ, before.codes_NQ)
    splits = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["splits"]
    assert [split["name"] for split in splits] == ["train"]


def test_speed_changes_codes_and_times(tokenizer, dataset, made, tmp_path):
    """Twice as fast: half as many frames."""
    run(tokenizer, dataset, tmp_path / "out", speed=2.0, splits=("test",))
    played = list(RecordSource(tmp_path / "out", "test"))
    kept = list(RecordSource(made, "test"))
    assert len(played) == len(kept)
    frames = 0
    for record, before in zip(played, kept, strict=True):
        for fast, slow in zip(record.parts, before.parts, strict=True):
            assert (fast.text, fast.role, fast.speaker) == (slow.text, slow.role, slow.speaker)
            if fast.codes_NQ is None:
                assert (fast.audio, fast.seconds) == (slow.audio, slow.seconds)
                continue
            assert fast.audio == b"" and fast.seconds == pytest.approx(slow.seconds / 2)
            samples = features.total_samples(slow.seconds, 2.0)
            assert len(fast.codes_NQ) == code_length(samples)
            assert [w.end for w in fast.words] == pytest.approx([w.end / 2 for w in slow.words])
            frames += len(fast.codes_NQ)
    assert frames > 10
    report = (tmp_path / "out" / "report.md").read_text()
    assert "at 2.0 of its speed" in report
    with pytest.raises(ValueError, match="speeds"):
        run(tokenizer, dataset, tmp_path / "other", speed=3.0)


def test_batches_change_nothing(tokenizer, dataset, made, tmp_path):
    """Other buckets, other batch sizes, more threads: the same bytes."""
    other = {"bucket_seconds": (0.7, 1.3), "batch_seconds": 5.0, "workers": 5}
    run(tokenizer, dataset, tmp_path / "out", **other)
    assert contents(tmp_path / "out") == contents(made)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [1, 4])
def test_buckets_hold_some_seconds_for_each_device(devices):
    buckets = TokenizeSettings("d", "o").buckets(devices)
    assert [bucket.seconds for bucket in buckets] == [2.0, 3.0, 5.0, 10.0, 20.0, 30.0]
    assert all(bucket.count % devices == 0 for bucket in buckets)
    assert [bucket.count // devices for bucket in buckets] == [16, 11, 6, 3, 2, 1]
    short = TokenizeSettings("d", "o", chunk_seconds=3.0)
    assert [bucket.seconds for bucket in short.buckets(1)] == [2.0, 3.0]
    small = TokenizeSettings("d", "o", batch_seconds=1.0)
    assert [bucket.count for bucket in small.buckets(4)] == [4] * 6


# --- resuming -------------------------------------------------------------------------------------


class Failing:
    """A tokenizer that breaks after some batches."""

    def __init__(self, tokenizer: AudioTokenizer, batches: int):
        self._tokenizer, self._batches = tokenizer, batches
        for name in ("config", "devices", "fingerprint"):
            setattr(self, name, getattr(tokenizer, name))

    def __call__(self, *arrays):
        self._batches -= 1
        if self._batches < 0:
            raise KeyboardInterrupt
        return self._tokenizer(*arrays)


def test_an_interrupted_run_resumes(tokenizer, dataset, made, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(Failing(tokenizer, 8), dataset, out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record-*")}
    assert 1 <= len(kept) < 7 and not (out / "dataset_info.json").exists()
    run(tokenizer, dataset, out)
    assert contents(out) == contents(made)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_complete_dataset_is_left_alone(tokenizer, dataset, made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    report = run(Failing(tokenizer, 0), dataset, made)
    assert report == json.loads((made / "report.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_codes_of_another_tokenizer_are_not_mixed(tokenizer, checkpoints, dataset, made, tmp_path):
    other = AudioTokenizer(CONFIG, str(checkpoints[1]))
    assert other.fingerprint != tokenizer.fingerprint
    again = AudioTokenizer(CONFIG, str(checkpoints[0]))
    assert again.fingerprint == tokenizer.fingerprint
    out = tmp_path / "out"
    shutil.copytree(made, out)
    change = f"source.weights was '{tokenizer.fingerprint}', is '{other.fingerprint}'"
    with pytest.raises(PrepareError, match=f"out: was made with .*{change}.*--overwrite"):
        run(other, dataset, out)
    assert contents(out) == contents(made)
    run(other, dataset, out, overwrite=True)
    (first, *_), (second, *_) = RecordSource(out, "train"), RecordSource(made, "train")
    assert bare(first) == bare(second)
    assert not np.array_equal(first.parts[0].codes_NQ, second.parts[0].codes_NQ)


def test_the_fingerprint_covers_everything_that_decides_the_codes(checkpoints):
    variables = flatten(checkpoint.load_variables(checkpoints[0]))
    first = tokenize.fingerprint(CONFIG, unflatten(variables))

    def changed(path: str) -> bool:
        other = unflatten(variables | {path: variables[path] + 1})
        return tokenize.fingerprint(CONFIG, other) != first

    assert [path for path in variables if not changed(path)] == [
        path
        for path in variables
        if "decoder_proj" in path or "embed_avg" in path or "cluster_size" in path
    ]
    encoder = dataclasses.replace(CONFIG.audio_encoder, heads=4)
    other = dataclasses.replace(CONFIG, audio_encoder=encoder)
    assert tokenize.fingerprint(other, unflatten(variables)) != first


def test_a_workdir_stands_for_its_latest_checkpoint(tokenizer, checkpoints, tmp_path):
    for step, weights in ((5, checkpoints[1]), (10, checkpoints[0])):
        shutil.copytree(weights, tmp_path / "checkpoints" / str(step) / "weights")
    assert AudioTokenizer(CONFIG, str(tmp_path)).fingerprint == tokenizer.fingerprint


def test_processes_share_the_shards(tokenizer, dataset, made, tmp_path):
    """Each makes its own shards; a single process makes the same."""
    out, meeting = tmp_path / "out", threading.Barrier(2, timeout=PATIENCE)
    calls, reports, errors = [[], []], [None, None], []

    def work(host: int) -> None:
        counting = Failing(tokenizer, 10**6)
        try:
            reports[host] = run(
                counting,
                dataset,
                out,
                {
                    "host": host,
                    "hosts": 2,
                    "barrier": lambda place: (calls[host].append(place), meeting.wait()),
                },
            )
            calls[host].append(10**6 - counting._batches)
        except BaseException as error:  # asserted below
            errors.append(error)
            meeting.abort()

    for _ in range(2):  # the second time it is complete
        threads = [threading.Thread(target=work, args=(host,)) for host in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert contents(out) == contents(made) and reports[0] == reports[1]
    for results in calls:
        assert results[:3] == ["begun", "made", "finished"] == results[4:7]
        assert results[3] >= 5 and results[7] == 0


# --- errors --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> pathlib.Path:
    """Records 1 (cut short) and 3 (codes alone) of six cannot be encoded."""
    good = small_corpus.speech(1.0)
    parts = [Part("the sky", good, seconds=1.0)] * 6
    parts[1] = dataclasses.replace(parts[1], audio=good[: len(good) // 2])
    parts[3] = dataclasses.replace(parts[3], audio=b"", codes_NQ=small_corpus.codes(1.0))
    records = [Record(f"r{i}", "speech", "en", (part,), "x") for i, part in enumerate(parts)]
    return write(tmp_path_factory.mktemp("damaged") / "bad", {"train": records})


def test_damaged_records_are_errors_that_name_them(tokenizer, damaged, tmp_path):
    match = "bad: split 'train', record 3: codes without audio: r3; --on-error=skip"
    with pytest.raises(PrepareError, match=match):
        run(tokenizer, damaged, tmp_path / "out")
    records = list(RecordSource(damaged, "train"))
    whole = write(tmp_path / "bad", {"train": [r for r in records if r.id != "r3"]})
    match = r"bad: split 'train', record 1 \(r1\): unusable audio: part 0: .*cut short.*on-error"
    with pytest.raises(PrepareError, match=match):
        run(tokenizer, whole, tmp_path / "out2")
    assert not (tmp_path / "out2" / "dataset_info.json").exists()


def test_damaged_records_are_left_out_and_listed(tokenizer, damaged, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(PrepareError):
        run(tokenizer, damaged, out)
    # The same folder: `on_error` is no part of the fingerprint.
    report = run(tokenizer, damaged, out, on_error="skip")
    assert report["records"] == 4
    assert {reason: row["records"] for reason, row in report["reasons"].items()} == {
        "codes without audio": 1,
        "unusable audio": 1,
    }
    assert [record.id for record in RecordSource(out, "train")] == ["r0", "r2", "r4", "r5"]
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [line["where"].rpartition(" ")[2] for line in lines] == ["3", "1"]
    assert "record r1: part 0: " in lines[1]["detail"] and "cut short" in lines[1]["detail"]


def test_a_wrong_number_of_frames_is_an_error(tokenizer, dataset, tmp_path):
    class Short(Failing):
        def __call__(self, *arrays):
            codes_BNQ, lengths_B = self._tokenizer(*arrays)
            return codes_BNQ, lengths_B - 1

    with pytest.raises(PrepareError, match=r"record \d+: part \d: \d+ frames of codes, expected"):
        run(Short(tokenizer, 1), dataset, tmp_path / "out")


def test_folders_that_cannot_be_used(tokenizer, dataset, tmp_path):
    before = contents(dataset)
    with pytest.raises(SourceError, match="in: is the dataset itself"):
        run(tokenizer, dataset, dataset / ".." / "in", overwrite=True)
    assert contents(dataset) == before
    with pytest.raises(SourceError, match="nowhere/dataset_info.json: .*expected a dataset's"):
        run(tokenizer, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SourceError, match=": split 'dev', expected one of"):
        run(tokenizer, dataset, tmp_path / "out", splits=("dev",))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(PrepareError, match="mine: holds something, but no prepare.json"):
        run(tokenizer, dataset, tmp_path / "mine", overwrite=True)


def test_bad_models_and_settings_are_refused(checkpoints):
    with pytest.raises(ConfigError, match=r"no \['vq_bridge'\], expected an audio tokenizer"):
        AudioTokenizer(CONFIG.only("audio_encoder"), str(checkpoints[0]))
    wider = dataclasses.replace(
        CONFIG, vq_bridge=VQBridgeConfig(width=16, pooling=4, codebook_sizes=(8,) * 8)
    )
    with pytest.raises(checkpoint.CheckpointError, match="misshapen codebook/vq_bridge/embed_0"):
        AudioTokenizer(wider, str(checkpoints[0]))
    with pytest.raises(checkpoint.CheckpointError, match="nowhere: no such folder"):
        AudioTokenizer(CONFIG, "nowhere")
    with pytest.raises(ValueError, match="on_error = 'hide'"):
        TokenizeSettings("d", "o", on_error="hide")
    with pytest.raises(ValueError, match="workers = 0, expected at least 1"):
        TokenizeSettings("d", "o", workers=0)
    with pytest.raises(ValueError, match="expected 0.1 to 30 seconds"):
        TokenizedSource("d", "w", chunk_seconds=31.0)
