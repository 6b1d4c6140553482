"""Packed batches: a pure function of the step, audio where the layout says, damage named."""

from __future__ import annotations

import dataclasses
import functools
import pickle
import time

import numpy as np
import pytest

from ba_jax.audio import lengths
from ba_jax.audio.mel import COARSE_MEL, HIFIGAN_MEL, log_mel, whisper_log_mel
from ba_jax.data import features, index
from ba_jax.data.augment import Augmentation
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.features import Bucket
from ba_jax.data.mixture import Selection
from ba_jax.data.packed import TARGETS, PackedBatches, PackedSettings
from ba_jax.data.record import Part, Record, RecordError
from ba_jax.data.tasks import TASKS
from ba_jax.data.text_tokenizer import TokenizerError, load_text_tokenizer
from tests.unit.data import small_corpus
from tests.unit.data.small_corpus import FORMAT, arrays, digest, join

BUCKETS = (Bucket(4.0, 6), Bucket(1.0, 4))
AUGMENTATION = Augmentation((0.9, 1.0, 1.1), 0.5, (5.0, 20.0), time_masks=1, mel_masks=1)


def settings(dataset, tokenizer, *tasks: str, **fields) -> PackedSettings:
    """All tasks, or those named, with mels."""
    members = tuple(
        Selection(
            str(dataset), ExampleMaker(task, answers="spoken" if task == "sft" else "written")
        )
        for task in tasks or TASKS
    )
    fields = {"row_length": 256, "rows": 4, "buckets": BUCKETS, "mixture": members} | fields
    return PackedSettings(tokenizer=str(tokenizer), **fields)


@pytest.fixture(scope="module", params=["features", "codes"])
def opened(request, small_dataset, small_tokenizer) -> PackedBatches:
    """Batches of all tasks, of each kind; the mels with targets, and augmented in every way."""
    fields = {
        "features": {"augmentation": AUGMENTATION, "targets": ("hifigan_mel",)},
        "codes": {"audio": "codes"},
    }
    options = settings(small_dataset, small_tokenizer, seed=7, **fields[request.param])
    return PackedBatches(options, FORMAT)


@pytest.fixture(scope="module")
def build(opened):
    """The batch of a step, built once for all tests that only read it."""
    return functools.cache(opened.build)


# --- the batch is a function of the step ----------------------------------------------------------


@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2], [3]]])
def test_rows_of_all_hosts_make_the_global_batch(opened, split):
    whole = digest(opened.build(5))
    assert digest(join([opened.build(5, rows) for rows in split])) == whole


def test_rows_come_in_the_requested_order(opened):
    turned = opened.build(3, [2, 0])
    want = join([opened.build(3, [2]), opened.build(3, [0])])
    assert digest(turned) == digest(want)
    none = opened.build(3, [])
    assert [array.shape[1:] for array in arrays(none)] == [
        array.shape[1:] for array in arrays(want)
    ]
    assert all(len(array) == 0 for array in arrays(none))
    with pytest.raises(IndexError, match="row 4 of step 3, expected 0 to 3"):
        opened.build(3, [4])
    assert opened.global_rows(3) == opened.global_rows(10**9) == 4


def test_any_step_is_built_at_once_also_after_pickling(opened):
    opened.build(0)
    copy = pickle.loads(pickle.dumps(opened))
    for step in (10**6, 10**9):
        begin = time.process_time()  # other processes do not count
        result = digest(opened.build(step))
        assert time.process_time() - begin < 0.9  # 0.02 to 0.15 s
        assert digest(copy.build(step)) == result


def test_a_new_process_builds_the_same(opened):
    result = small_corpus.digest_in_a_new_process((PackedBatches, opened.settings), 11)
    assert result == digest(opened.build(11))


def test_counting_processes_and_the_cache_change_nothing(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_RUN", 10)
    few = opened.settings.mixture[:1]
    want = digest(PackedBatches(dataclasses.replace(opened.settings, mixture=few), FORMAT).build(2))
    for workers in (2, 0, 0):
        options = dataclasses.replace(
            opened.settings, mixture=few, index_cache=str(tmp_path), index_workers=workers
        )
        assert digest(PackedBatches(options, FORMAT).build(2)) == want


def test_steps_and_seeds_differ(opened, build):
    batches = [build(step) for step in range(6)]
    assert len({digest(batch.rows.ids_BL) for batch in batches}) >= 4  # few rows: some come again
    other = PackedBatches(dataclasses.replace(opened.settings, seed=8), FORMAT)
    ids = [[digest(of(step).rows.ids_BL) for step in range(2)] for of in (build, other.build)]
    assert ids[0] != ids[1]


def test_shapes_are_the_same_at_every_step(build):
    shapes = {
        tuple((array.shape, array.dtype) for array in arrays(build(step)))
        for step in (*range(8), 10**7)
    }
    assert len(shapes) == 1


# --- what is in it -------------------------------------------------------------------------------


def test_examples_do_not_see_each_other(build):
    for step in range(3):
        rows = build(step).rows
        for row in range(4):
            segments_L, positions_L = rows.segments_BL[row], rows.positions_BL[row]
            used = int((segments_L > 0).sum())
            assert not segments_L[used:].any() and not rows.ids_BL[row, used:].any()
            assert (np.diff(segments_L[:used]) >= 0).all()
            for segment in range(1, segments_L.max() + 1):
                here = segments_L == segment
                np.testing.assert_array_equal(positions_L[here], np.arange(here.sum()))
                for targets in (rows.text_target_BL, rows.audio_target_BL):
                    assert not targets[row, here][0]


def test_chunks_start_at_the_positions_of_their_codes(opened, build):
    """Every audio_pad is covered by one chunk, whose frames follow from its mel alone."""
    if not opened.buckets:
        assert build(0).audio == ()
        return
    chunks = 0
    for step in range(6):
        batch = build(step)
        for row in range(4):
            covered = np.zeros(256, int)
            for bucket, audio in zip(opened.buckets, batch.audio, strict=True):
                assert audio.mel_BCTM.shape[1:] == (bucket.count, bucket.mel_frames, 128)
                for place in range(bucket.count):
                    frames = audio.frames_BC[row, place]
                    mel_frames = audio.mel_lengths_BC[row, place]
                    encoded = lengths.encoder_length(mel_frames)
                    assert frames == (mel_frames > 0) * lengths.bridge_length(encoded)
                    start = audio.starts_BC[row, place]
                    covered[start : start + frames] += 1
                    assert not audio.mel_BCTM[row, place, mel_frames:].any()
                    assert (np.abs(audio.mel_BCTM[row, place, :mel_frames]).max(-1) > 0).all()
                    chunks += frames > 0
            pads = batch.rows.ids_BL[row] == FORMAT.tokens.audio_pad
            np.testing.assert_array_equal(covered, pads)
            assert not batch.rows.codes_BLQ[row, pads].any()
    assert chunks > 40


def test_stored_codes_are_in_the_rows(opened):
    if opened.settings.audio != "codes":
        return
    rows = opened.build(0).rows
    pads = rows.ids_BL == FORMAT.tokens.audio_pad
    assert pads.sum() > 100
    assert rows.codes_BLQ[pads].any(axis=0).all()
    ends = rows.ids_BL == FORMAT.tokens.audiogen_end
    assert (rows.codes_BLQ[ends] == small_corpus.CODEBOOK_SIZES).all()
    assert not rows.codes_BLQ[~pads & ~ends].any()


def test_mels_are_those_of_the_recordings(tmp_path, small_tokenizer):
    """Recordings of different lengths, longer than the longest bucket too, found by their text."""
    seconds = {"what": 0.7, "is": 4.9, "the": 1.0, "sky": 8.06, "blue": 2.2}
    records = [
        Record(word, "speech", "en", (Part(word, small_corpus.speech(s, i), seconds=s),), "x")
        for i, (word, s) in enumerate(seconds.items())
    ]
    dataset = small_corpus.write_dataset(tmp_path / "five", records)
    options = settings(dataset, small_tokenizer, "tts", rows=1, row_length=120)
    batches, tokenizer = PackedBatches(options, FORMAT), load_text_tokenizer(small_tokenizer)
    seen = set()
    for step in range(batches.members[0].rows):
        batch = batches.build(step)
        ids_L, segments_L = batch.rows.ids_BL[0], batch.rows.segments_BL[0]
        by_start = {
            int(audio.starts_BC[0, c]): audio.mel_BCTM[0, c, : audio.mel_lengths_BC[0, c]]
            for audio in batch.audio
            for c in range(audio.frames_BC.shape[1])
            if audio.frames_BC[0, c]
        }
        for segment in range(1, segments_L.max() + 1):
            word = tokenizer.decode(ids_L[segments_L == segment])
            record = records[list(seconds).index(word)]
            with features.one_blas_thread():
                (wave_S,) = features.decode(record.parts[0].audio, seconds[word], [16_000])
            at = int(np.argmax((segments_L == segment) & (ids_L == FORMAT.tokens.audio_pad)))
            for samples in features.chunk_samples(len(wave_S), 4.0):
                piece_S, wave_S = wave_S[:samples], wave_S[samples:]
                np.testing.assert_array_equal(by_start.pop(at), whisper_log_mel(piece_S))
                at += lengths.code_length(samples)
            seen.add(word)
        assert not by_start
    assert seen == set(seconds)


@pytest.mark.parametrize("speed", [1.0, 1.25])
def test_targets_are_of_the_clean_chunks(speed, tmp_path, small_tokenizer):
    """Each place holds the mel and the target of one chunk, told by its start in the row."""
    seconds = {"what": 0.7, "sky": 8.06}
    records = [
        Record(word, "speech", "en", (Part(word, small_corpus.speech(s, i), seconds=s),), "x")
        for i, (word, s) in enumerate(seconds.items())
    ]
    dataset = small_corpus.write_dataset(tmp_path / "two", records)
    noise = Augmentation((speed,), noise_probability=1.0, time_masks=1)
    fields = {"rows": 1, "row_length": 160, "augmentation": noise}
    options = settings(dataset, small_tokenizer, "tts", targets=tuple(TARGETS), **fields)
    batches, tokenizer = PackedBatches(options, FORMAT), load_text_tokenizer(small_tokenizer)
    batch = batches.build(0)
    # The same batch, but for the targets.
    plain = PackedBatches(settings(dataset, small_tokenizer, "tts", **fields), FORMAT).build(0)
    assert digest(plain.rows) == digest(batch.rows)
    for audio, without in zip(batch.audio, plain.audio, strict=True):
        assert without[4:] == (None,) * 4 and digest(audio[:4]) == digest(without[:4])
    result = {}
    for bucket, audio in zip(batches.buckets, batch.audio, strict=True):
        for geometry, mel_BCTM, lengths_BC in (
            (HIFIGAN_MEL, audio.hifigan_mel_BCTM, audio.hifigan_lengths_BC),
            (COARSE_MEL, audio.coarse_mel_BCTM, audio.coarse_lengths_BC),
        ):
            assert mel_BCTM.shape == (1, bucket.count, bucket.samples // geometry.hop, 80)
            assert mel_BCTM.dtype == np.float32
            for place in range(bucket.count):
                count = lengths_BC[0, place]
                assert (count > 0) == (audio.frames_BC[0, place] > 0)
                assert not mel_BCTM[0, place, count:].any()
                if count:
                    at = int(audio.starts_BC[0, place])
                    result[at, geometry] = mel_BCTM[0, place, :count]
    ids_L, segments_L = batch.rows.ids_BL[0], batch.rows.segments_BL[0]
    for segment in (1, 2):
        word = tokenizer.decode(ids_L[segments_L == segment])
        record = records[list(seconds).index(word)]
        with features.one_blas_thread():
            (wave_S,) = features.decode(record.parts[0].audio, seconds[word], [16_000], speed)
            at = int(np.argmax((segments_L == segment) & (ids_L == FORMAT.tokens.audio_pad)))
            for samples in features.chunk_samples(len(wave_S), 4.0):
                piece_S, wave_S = wave_S[:samples], wave_S[samples:]
                for geometry in (HIFIGAN_MEL, COARSE_MEL):
                    want = log_mel(piece_S, geometry)
                    np.testing.assert_array_equal(result.pop((at, geometry)), want)
                at += lengths.code_length(samples)
    assert not result


def test_ids_name_the_examples_of_the_rows(opened, small_dataset, monkeypatch):
    monkeypatch.setattr(features, "decode", None)  # no audio is decoded
    records = {record.id: record for record in small_corpus.records()}
    seen = set()
    for step in (*range(8), 10**9):
        ids = opened.ids(step)
        assert opened.ids(step, [2, 0]) == [ids[2], ids[0]]
        assert len(ids) == 4 and all(ids)
        for names in ids:
            (member,) = {name.rpartition(":")[0] for name in names}
            seen.add(member)
            assert {name.rpartition(":")[2] for name in names} <= set(records)
    assert len(seen) > 3 and seen <= {member.name for member in opened.settings.mixture}
    with pytest.raises(IndexError, match="row 4 of step 3, expected 0 to 3"):
        opened.ids(3, [4])


def test_ids_are_in_the_order_of_the_segments(small_dataset, small_tokenizer):
    options = settings(small_dataset, small_tokenizer, "text", rows=2, row_length=64)
    batches, tokenizer = PackedBatches(options, FORMAT), load_text_tokenizer(small_tokenizer)
    texts = {r.id: "\n".join(part.text for part in r.parts) for r in small_corpus.records()}
    for step in range(4):
        rows, ids = batches.build(step).rows, batches.ids(step)
        for row, names in enumerate(ids):
            result = [
                tokenizer.decode(rows.ids_BL[row][rows.segments_BL[row] == segment])
                for segment in range(1, rows.segments_BL[row].max() + 1)
            ]
            prefix = f"{small_dataset}/train/text:"
            assert result == [texts[name.removeprefix(prefix)] for name in names]


def test_noise_differs_between_draws(tmp_path, small_tokenizer):
    """One row of data, drawn again and again: the same tokens, other noise; by the seed too."""
    record = Record("a", "speech", "en", (small_corpus.spoken("the sky", 1.0, 1),), "x")
    dataset = small_corpus.write_dataset(tmp_path / "one", [record])
    noise = Augmentation(noise_probability=1.0, noise_snr_db=(10.0, 10.0))
    options = settings(dataset, small_tokenizer, "asr", rows=2, augmentation=noise)
    mels = []
    for seed in (0, 1):
        batches = PackedBatches(dataclasses.replace(options, seed=seed), FORMAT)
        for batch in (batches.build(0), batches.build(1)):
            assert (batch.rows.ids_BL == batches.build(0).rows.ids_BL[:1]).all()
            mels += [digest(mel) for mel in batch.audio[0].mel_BCTM]
    assert len(set(mels)) == len(mels) == 8


def test_every_record_is_in_one_row_or_left_out(opened, small_dataset):
    total = len(small_corpus.records())
    for member, selection in zip(opened.members, opened.settings.mixture, strict=True):
        used = member.records_N.tolist()
        assert len(set(used)) == len(used)
        assert len(used) + sum(member.left_out.values()) == total, selection
        assert sum(len(member.row(r)) for r in range(member.rows)) == len(used)
        assert member.tokens == sum(n for r in range(member.rows) for _, n in member.row(r))


def test_over_an_epoch_each_example_is_seen_once(small_dataset, small_tokenizer):
    options = settings(small_dataset, small_tokenizer, "text", rows=1, row_length=64)
    batches, tokenizer = PackedBatches(options, FORMAT), load_text_tokenizer(small_tokenizer)
    wanted = []
    for record in small_corpus.records():
        wanted.append("\n".join(part.text for part in record.parts))
    for epoch in range(2):
        result = []
        for step in range(batches.members[0].rows):
            rows = batches.build(epoch * batches.members[0].rows + step).rows
            for segment in range(1, rows.segments_BL.max() + 1):
                result.append(tokenizer.decode(rows.ids_BL[rows.segments_BL == segment]))
        assert sorted(result) == sorted(wanted)


@pytest.mark.parametrize("unit", ["tokens", "hours"])
def test_shares_follow_the_weights(unit, small_dataset, small_tokenizer):
    """Audio 1, recognition 3: told apart by the token before the audio. Within 2 %."""
    mixture = (
        Selection(str(small_dataset), ExampleMaker("audio"), 1.0),
        Selection(str(small_dataset), ExampleMaker("asr"), 3.0, languages=("en",)),
    )
    options = settings(
        small_dataset, small_tokenizer, mixture=mixture, unit=unit, audio="codes", rows=1
    )
    batches = PackedBatches(options, FORMAT)
    amounts = np.zeros(2)
    for step in range(400):
        rows = batches.build(step).rows
        is_asr = int((rows.ids_BL == FORMAT.tokens.audio_start).any())
        counted = (
            rows.segments_BL > 0 if unit == "tokens" else (rows.ids_BL == FORMAT.tokens.audio_pad)
        )
        amounts[is_asr] += counted.sum()
    assert amounts[1] / amounts.sum() == pytest.approx(0.75, abs=0.02)
    assert batches.report()[mixture[1].name]["share_of_rows"] == pytest.approx(
        sum((batches.build(s).rows.ids_BL == FORMAT.tokens.audio_start).any() for s in range(400))
        / 400,
        abs=0.01,
    )


def test_report(opened):
    report = opened.report()
    assert list(report) == [selection.name for selection in opened.settings.mixture]
    assert sum(result["share_of_rows"] for result in report.values()) == pytest.approx(1)
    for result, member in zip(report.values(), opened.members, strict=True):
        assert result["real_share"] == member.tokens / (member.rows * 256) <= 1
        assert result["examples"] == len(member.records_N)


def test_hours_are_of_the_speech_that_is_used(small_dataset, small_tokenizer):
    tasks = ("aqa", "text", "sft")
    for audio in ("features", "codes"):
        options = settings(small_dataset, small_tokenizer, *tasks, audio=audio)
        aqa, text, sft = (r["hours"] for r in PackedBatches(options, FORMAT).report().values())
        # Eight questions of 1.2 s; with the answers of 1.5 s and, in half of them, a second turn.
        assert aqa * 3600 == pytest.approx(8 * 1.2, rel=0.01)
        assert text == 0
        assert sft * 3600 == pytest.approx(8 * 2.7 + 4 * 2.2, rel=0.05)


def speech_of_real_lengths(count: int):
    """Records of codes alone, log-normal around 6 s, with a text of 3 tokens a second."""
    rng = np.random.default_rng(0)
    for i, seconds in enumerate(np.clip(rng.lognormal(np.log(6), 0.7, count), 0.5, 30)):
        frames = max(1, int(seconds * 12.5))
        codes_NQ = np.full((frames, 8), i % 64)
        text = "the sky is blue " * max(1, int(seconds / 2))
        yield Record(f"r{i}", "speech", "en", (Part(text, codes_NQ=codes_NQ, seconds=seconds),))


def test_over_95_percent_of_positions_are_real_at_4096(tmp_path, small_tokenizer):
    records = list(speech_of_real_lengths(5000))
    dataset = small_corpus.write_dataset(tmp_path / "many", records)
    options = settings(dataset, small_tokenizer, "asr", audio="codes", row_length=4096, rows=2)
    batches = PackedBatches(options, FORMAT)
    (report,) = batches.report().values()
    assert report["examples"] == 5000 and report["left_out"] == {}
    assert report["real_share"] > 0.95  # 0.997
    steps = range(20)
    assert np.mean([batches.build(step).rows.real_share for step in steps]) > 0.95


# --- what cannot be used -------------------------------------------------------------------------


def one_bad(tmp_path, bad: Part, name: str = "bad"):
    """Nine good recordings, and the fourth with something wrong."""
    records = [
        Record(f"r{i}", "speech", "en", (small_corpus.spoken("the sky", 1.0, i),), "x")
        for i in range(9)
    ]
    records[3] = dataclasses.replace(records[3], parts=(bad,))
    return small_corpus.write_dataset(tmp_path / name, records)


GOOD = small_corpus.speech(1.0)
DAMAGED_AUDIO = [
    (Part("the sky", GOOD[: len(GOOD) // 2], seconds=1.0), "cut short"),
    (Part("the sky", GOOD, seconds=2.0), "audio cut short: 1.000 s, expected 2.000 s"),
    (Part("the sky", GOOD, seconds=0.5), "expected at most 0.6 s"),
    (Part("the sky", b"RIFFnothing", seconds=1.0), "<11 bytes>"),
]


@pytest.mark.parametrize("bad, message", DAMAGED_AUDIO)
def test_damaged_audio_is_named_or_skipped_and_counted(bad, message, tmp_path, small_tokenizer):
    dataset = one_bad(tmp_path, bad)
    options = settings(dataset, small_tokenizer, "asr", rows=1, buckets=(Bucket(2.0, 12),))
    batches = PackedBatches(options, FORMAT)
    steps = range(batches.members[0].rows)
    with pytest.raises(RecordError, match=f"bad/train/asr, record 3: .*{message}"):
        for step in steps:
            batches.build(step)
    batches = PackedBatches(dataclasses.replace(options, on_error="skip"), FORMAT)
    built = [batches.build(step) for step in steps]
    assert sum(int(batch.skipped_B.sum()) for batch in built) == 1
    assert sum(int(batch.rows.segments_BL.max()) for batch in built) == 8
    assert len({tuple(a.shape for a in arrays(batch)) for batch in built}) == 1
    for batch in built:
        pads = batch.rows.ids_BL == FORMAT.tokens.audio_pad
        assert batch.audio[0].frames_BC.sum() == pads.sum()


def test_codes_out_of_range_are_damage_found_when_counting(tmp_path, small_tokenizer):
    bad = Part("the sky", codes_NQ=np.full((12, 8), 64), seconds=1.0)
    options = settings(one_bad(tmp_path, bad), small_tokenizer, "asr", audio="codes")
    where = r"bad: split 'train', record 3: x:r3: codes\[0, 3\] is 64, expected 0..63"
    with pytest.raises(RecordError, match=where):
        PackedBatches(options, FORMAT)
    batches = PackedBatches(dataclasses.replace(options, on_error="skip"), FORMAT)
    assert batches.members[0].left_out == {"damaged": 1}
    assert len(batches.members[0].records_N) == 8
    bad = Part("the sky", codes_NQ=np.full((12, 4), 1), seconds=1.0)
    options = settings(one_bad(tmp_path, bad, "few"), small_tokenizer, "asr", audio="codes")
    with pytest.raises(RecordError, match="record 3: .*expected a last axis of 8 codebooks"):
        PackedBatches(options, FORMAT)


@pytest.mark.parametrize(
    "bad, audio, reason",
    [
        (Part("", GOOD, seconds=1.0), "features", "no text"),
        (Part(" \n", GOOD, seconds=1.0), "features", "no text"),
        (Part("the sky", GOOD, seconds=0.05), "features", "audio too short for a frame of codes"),
        (Part("the sky", GOOD, seconds=1.0), "codes", "no codes"),
        (Part("the sky", codes_NQ=small_corpus.codes(1.0), seconds=1.0), "features", "no audio"),
        (Part("the sky " * 100, GOOD, seconds=1.0), "features", "too long for a row"),
        # Seven chunks of 4 s where a row has room for six.
        (Part("the", small_corpus.speech(27.0), seconds=27.0), "features", "too long for a row"),
    ],
)
def test_records_without_example_are_left_out_and_counted(
    bad, audio, reason, tmp_path, small_tokenizer
):
    row_length = 2048 if len(bad.audio) > 2 * len(GOOD) else 256
    options = settings(
        one_bad(tmp_path, bad), small_tokenizer, "asr", audio=audio, row_length=row_length
    )
    batches = PackedBatches(options, FORMAT)
    assert batches.members[0].left_out == {reason: 1}
    assert sorted(batches.members[0].records_N) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert not batches.build(0).skipped_B.any()


def test_damage_inside_a_shard(tmp_path, small_tokenizer):
    """Found when counting; or, if it happens later, when building."""
    dataset = one_bad(tmp_path, Part("the sky", GOOD, seconds=1.0))
    options = settings(dataset, small_tokenizer, "asr", rows=1)
    before = PackedBatches(dataclasses.replace(options, on_error="skip"), FORMAT)
    before_failing = PackedBatches(options, FORMAT)
    (shard,) = dataset.glob("*.array_record*")
    small_corpus.damage_shard(shard)
    with pytest.raises(RecordError, match=r"bad: split 'train', record \d is damaged"):
        PackedBatches(options, FORMAT)
    after = PackedBatches(dataclasses.replace(options, on_error="skip"), FORMAT)
    lost = after.members[0].left_out["damaged"]
    assert 1 <= lost < 9 and len(after.members[0].records_N) == 9 - lost
    # Opened again, as in a worker: the file has changed under it.
    steps = range(before.members[0].rows)
    with pytest.raises(RecordError, match=r"bad/train/asr, record \d: .* is damaged"):
        copy = pickle.loads(pickle.dumps(before_failing))
        for step in steps:
            copy.build(step)
    copy = pickle.loads(pickle.dumps(before))
    assert sum(int(copy.build(step).skipped_B.sum()) for step in steps) == lost
    names = [name.rpartition(":")[2] for step in steps for name in copy.ids(step)[0]]
    assert sum(name.startswith("record ") for name in names) == lost
    assert sum(name.startswith("r") and name[1:].isdigit() for name in names) == 9 - lost


def test_a_dataset_that_changes_after_counting_is_an_error(tmp_path, small_tokenizer):
    options = settings(
        one_bad(tmp_path, Part("the sky", GOOD, seconds=1.0)),
        small_tokenizer,
        "asr",
        rows=1,
        on_error="skip",
    )
    batches = PackedBatches(options, FORMAT)
    for changed, message in (
        (Part("the sky is blue", GOOD, seconds=1.0), r"\d+ positions, expected \d+"),
        (Part("", GOOD, seconds=1.0), "no text"),
    ):
        one_bad(tmp_path, changed)
        copy = pickle.loads(pickle.dumps(batches))
        with pytest.raises(RecordError, match=f"record 3: changed since .*{message}"):
            for step in range(batches.members[0].rows):
                copy.build(step)


def test_members_without_examples(small_dataset, small_tokenizer, tmp_path):
    records = [Record("t", "text", "en", (Part("the sky"),), "x")]
    dataset = small_corpus.write_dataset(tmp_path / "texts", records)
    with pytest.raises(
        RecordError, match=r"texts/train/asr: no example .*'a record of kind text': 1"
    ):
        PackedBatches(settings(dataset, small_tokenizer, "asr"), FORMAT)
    with pytest.raises(RecordError, match="train/text: no speech, expected"):
        PackedBatches(settings(small_dataset, small_tokenizer, "text", unit="hours"), FORMAT)
    with pytest.raises(RecordError, match="nowhere: no dataset_info.json"):
        PackedBatches(settings(tmp_path / "nowhere", small_tokenizer, "asr"), FORMAT)
    mixture = (Selection(str(small_dataset), ExampleMaker("asr"), split="test"),)
    with pytest.raises(RecordError, match=": split 'test', expected one of"):
        PackedBatches(settings(small_dataset, small_tokenizer, mixture=mixture), FORMAT)


def test_another_models_tokenizer(small_dataset, small_tokenizer):
    model = dataclasses.replace(FORMAT, tokens=dataclasses.replace(FORMAT.tokens, audio_pad=99))
    with pytest.raises(TokenizerError, match="expected 99"):
        PackedBatches(settings(small_dataset, small_tokenizer, "asr"), model)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"unit": "rows"}, "unit = 'rows', expected one of"),
        ({"audio": "waves"}, "audio = 'waves'"),
        ({"on_error": "hide"}, "on_error = 'hide'"),
        ({"rows": 0}, "rows = 0"),
        ({"row_length": 0}, "row_length = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"buckets": ()}, "needs buckets"),
        ({"targets": ("flow_mel",)}, r"targets = \('flow_mel',\), expected distinct ones of"),
        ({"targets": ("hifigan_mel",), "audio": "codes"}, "audio = 'codes': expected .features."),
        ({"mixture": ()}, "an empty mixture"),
    ],
)
def test_invalid_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        settings("d", "t", **fields)
