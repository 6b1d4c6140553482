"""Batches of audio alone: a pure function of the step, clips that are the recordings, damage."""

from __future__ import annotations

import collections
import dataclasses
import io
import pickle
import time

import numpy as np
import pytest

from ba_jax.audio import write_audio
from ba_jax.audio.mel import FLOW_MEL, HIFIGAN_MEL, log_mel, whisper_log_mel
from ba_jax.data import features
from ba_jax.data.audio_batches import FEATURES, WAVE_RATE, AudioBatches, AudioSettings
from ba_jax.data.augment import Augmentation
from ba_jax.data.examples import ExampleMaker
from ba_jax.data.features import Bucket
from ba_jax.data.mixture import Selection
from ba_jax.data.record import Part, Record, RecordError, RecordSource
from tests.unit.data import small_corpus
from tests.unit.data.small_corpus import FORMAT, arrays, digest, join

AUGMENTATION = Augmentation((0.9, 1.0, 1.1), 0.5, (5.0, 20.0), time_masks=1, mel_masks=1)


def settings(dataset, *buckets: Bucket, **fields) -> AudioSettings:
    """Clips of up to 1 and 2 s of one dataset."""
    fields = {"mixture": (Selection(str(dataset), ExampleMaker("audio")),)} | fields
    return AudioSettings(buckets=buckets or (Bucket(2.0, 4), Bucket(1.0, 6)), **fields)


@pytest.fixture(scope="module", params=["pieces", "crop"])
def opened(request, small_dataset) -> AudioBatches:
    """Batches of pieces, and of random windows, augmented in every way."""
    buckets = (Bucket(0.8, 4),) if request.param == "crop" else ()
    options = settings(
        small_dataset, *buckets, crop=bool(buckets), augmentation=AUGMENTATION, seed=3
    )
    return AudioBatches(options, FORMAT)


@pytest.fixture(scope="module")
def steps(opened) -> list[int]:
    """A step of each bucket."""
    result = {opened.bucket(step): step for step in range(20)}
    assert set(result) == set(opened.buckets)
    return sorted(result.values())


def drawn(dataset, **fields) -> set[str]:
    """ "record/part" of all clips of a selection."""
    mixture = (Selection(str(dataset), ExampleMaker("audio", **fields)),)
    counted = AudioBatches(settings(dataset, mixture=mixture), FORMAT)._counts[0]
    source = RecordSource(dataset, "train")
    return {
        f"{source[int(index)].id}/{part}"
        for index, part in zip(counted.records_N, counted.rows_NK[:, 0], strict=True)
    }


def test_only_the_speech_of_a_role_or_of_speakers(small_dataset):
    parts = {
        f"{record.id}/{number}": part
        for record in RecordSource(small_dataset, "train")
        for number, part in enumerate(record.parts)
        if part.audio
    }
    every = drawn(small_dataset)
    for role in ("user", "assistant"):
        wanted = {name for name in every if parts[name].role == role}
        assert drawn(small_dataset, turn=role) == wanted and 0 < len(wanted) < len(every)
    subset = tuple(sorted({parts[name].speaker for name in every}))[:2]
    wanted = {name for name in every if parts[name].speaker in subset}
    assert drawn(small_dataset, speakers=subset) == wanted and 0 < len(wanted) < len(every)


# --- the batch is a function of the step ----------------------------------------------------------


def test_rows_of_all_hosts_make_the_global_batch(opened, steps):
    for step in steps:
        rows = range(opened.global_rows(step))
        whole = digest(opened.build(step))
        assert digest(join([opened.build(step, [row]) for row in rows])) == whole
        halves = [opened.build(step, rows[:2]), opened.build(step, rows[2:])]
        assert digest(join(halves)) == whole
        assert all(len(array) == 0 for array in arrays(opened.build(step, [])))
        with pytest.raises(IndexError, match="row 9 of step"):
            opened.build(step, [9])


def test_any_step_is_built_at_once_also_after_pickling(opened):
    opened.build(0)
    copy = pickle.loads(pickle.dumps(opened))
    for step in (10**6, 10**9):
        begin = time.process_time()
        result = digest(opened.build(step))
        assert time.process_time() - begin < 0.9
        assert digest(copy.build(step)) == result


def test_a_new_process_builds_the_same(opened):
    result = small_corpus.digest_in_a_new_process((AudioBatches, opened.settings), 7)
    assert result == digest(opened.build(7))


def test_a_bucket_has_one_shape(opened):
    shapes = collections.defaultdict(set)
    for step in (*range(10), 10**6):
        batch = opened.build(step)
        bucket = opened.bucket(step)
        shapes[bucket].add(tuple((array.shape, array.dtype) for array in arrays(batch)))
        assert len(batch.samples_B) == opened.global_rows(step) == bucket.count
        assert batch.wave_BS.shape[1] == bucket.seconds * WAVE_RATE
    assert all(len(result) == 1 for result in shapes.values())


# --- what is in it -------------------------------------------------------------------------------


def ramp(seconds: float, number: int) -> np.ndarray:
    """A wave that tells where it was cut: a sweep, at a level of its own."""
    time_S = np.arange(round(seconds * WAVE_RATE)) / WAVE_RATE
    return (0.1 * (number + 1) * np.sin(200 * np.pi * (time_S + time_S**2))).astype(np.float32)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """(dataset, waves): five recordings without loss of quality."""
    waves = [ramp(seconds, i) for i, seconds in enumerate((0.5, 2.0, 2.03, 4.4, 7.25))]
    records = []
    for i, wave_S in enumerate(waves):
        file = io.BytesIO()
        write_audio(file, wave_S, WAVE_RATE, "flac")
        part = Part(f"{i}", file.getvalue(), seconds=len(wave_S) / WAVE_RATE)
        records.append(Record(f"r{i}", "speech", "en", (part,), "x"))
    return small_corpus.write_dataset(tmp_path_factory.mktemp("sweeps") / "s", records), waves


def test_an_epoch_has_every_clip_once(sweeps):
    dataset, waves = sweeps
    batches = AudioBatches(settings(dataset, Bucket(2.0, 1), Bucket(1.0, 1)), FORMAT)
    pieces = []
    for wave_S in waves:
        cut = [wave_S[i : i + 2 * WAVE_RATE] for i in range(0, len(wave_S), 2 * WAVE_RATE)]
        pieces += [piece_S for piece_S in cut if len(piece_S) >= 0.06 * WAVE_RATE]
    assert len(pieces) == 1 + 1 + 1 + 3 + 4  # the 30 ms after two seconds are left out
    assert (
        sum(result["clips"] for name, result in batches.report().items() if "bucket" in name) == 10
    )
    result = [batches.build(step) for step in range(10)]
    for batch in result:
        wave_S = batch.wave_BS[0, : batch.samples_B[0]]
        match = [
            i
            for i, piece_S in enumerate(pieces)
            if len(piece_S) == len(wave_S) and np.allclose(piece_S, wave_S, atol=1e-3)
        ]
        assert len(match) == 1
        pieces.pop(match[0])
        assert not batch.wave_BS[0, batch.samples_B[0] :].any()
    assert pieces == []


def test_features_are_of_the_clip(sweeps):
    dataset, _ = sweeps
    batches = AudioBatches(settings(dataset, Bucket(2.0, 3), Bucket(1.0, 3)), FORMAT)
    for step in range(4):
        batch = batches.build(step)
        for row in range(3):
            wave_S = batch.wave_BS[row, : batch.samples_B[row]]
            flow_TM = log_mel(wave_S, FLOW_MEL)
            assert batch.flow_lengths_B[row] == len(flow_TM)
            np.testing.assert_array_equal(batch.flow_mel_BTM[row, : len(flow_TM)], flow_TM)
            assert not batch.flow_mel_BTM[row, len(flow_TM) :].any()
            samples16 = batch.samples_B[row] * 2 // 3
            assert batch.whisper_lengths_B[row] == samples16 // 160 + 1
            assert batch.hifigan_lengths_B[row] == samples16 // 256
            for mel_BTM, lengths_B in (
                (batch.whisper_mel_BTM, batch.whisper_lengths_B),
                (batch.hifigan_mel_BTM, batch.hifigan_lengths_B),
            ):
                assert mel_BTM[row, : lengths_B[row]].any(axis=-1).all()
                assert not mel_BTM[row, lengths_B[row] :].any()


def test_features_at_16_khz_come_from_the_recording_itself(tmp_path):
    """Not through 24 kHz and back, if it is stored at 16 kHz."""
    file = small_corpus.speech(0.9, 2, "flac", 16_000)
    record = Record("a", "speech", "en", (Part("x", file, seconds=0.9),), "x")
    dataset = small_corpus.write_dataset(tmp_path / "one", [record])
    batch = AudioBatches(settings(dataset, Bucket(1.0, 1)), FORMAT).build(0)
    (wave_S,) = features.decode(file, 0.9, [16_000])
    for mel_BTM, lengths_B, want_TM in (
        (batch.whisper_mel_BTM, batch.whisper_lengths_B, whisper_log_mel(wave_S)),
        (batch.hifigan_mel_BTM, batch.hifigan_lengths_B, log_mel(wave_S, HIFIGAN_MEL)),
    ):
        np.testing.assert_array_equal(mel_BTM[0, : lengths_B[0]], want_TM)


@pytest.mark.parametrize(
    "wanted", [("wave",), ("whisper_mel", "hifigan_mel"), ("flow_mel", "wave")]
)
def test_unwanted_features_are_none(wanted, small_dataset):
    every = AudioBatches(settings(small_dataset), FORMAT)
    subset = AudioBatches(settings(small_dataset, features=wanted), FORMAT)
    for step in range(2):
        all_of_it, batch = every.build(step)._asdict(), subset.build(step)._asdict()
        for name, array in batch.items():
            feature = name.replace("_lengths_B", "_mel").removesuffix("_BTM").removesuffix("_BS")
            if feature in FEATURES and feature not in wanted:
                assert array is None
            else:
                np.testing.assert_array_equal(array, all_of_it[name])


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Recordings of 0.5 to 3.3 s with codes: codebook 0 counts the frames, 1 is the record."""
    records = []
    for i, seconds in enumerate((0.5, 2.0, 3.3)):
        frames = round(seconds * 16_000) // 1280
        codes_NQ = np.zeros((frames, len(FORMAT.codebook_sizes)), np.int32)
        codes_NQ[:, 0], codes_NQ[:, 1] = np.arange(frames), i
        file = io.BytesIO()
        write_audio(file, ramp(seconds, i), WAVE_RATE, "flac")
        part = Part("x", file.getvalue(), codes_NQ, seconds)
        records.append(Record(f"r{i}", "speech", "en", (part,), "x"))
    return records


@pytest.mark.parametrize("crop", [False, True])
def test_stored_codes_are_those_of_the_clip(crop, coded, tmp_path):
    dataset = small_corpus.write_dataset(tmp_path / "coded", coded)
    names = ("codes", "flow_mel", "wave")
    options = settings(dataset, Bucket(1.6, 3), crop=crop, features=names)
    batches = AudioBatches(options, FORMAT)
    for step in range(4):
        batch = batches.build(step)
        assert batch.whisper_mel_BTM is None
        for row, frames in enumerate(batch.code_lengths_B):
            codes_NQ = batch.codes_BNQ[row]
            assert not codes_NQ[frames:].any() and frames in (1, 5, 6, 20)
            start, number = codes_NQ[0, :2]
            np.testing.assert_array_equal(codes_NQ[:frames, 0], start + np.arange(frames))
            wave_S = batch.wave_BS[row, : 1920 * frames]
            whole_S = ramp((0.5, 2.0, 3.3)[number], number)
            np.testing.assert_allclose(wave_S, whole_S[1920 * start :][: len(wave_S)], atol=2e-3)


def test_missing_or_short_codes_are_named(coded, tmp_path):
    for name, codes_NQ, message in (
        ("none", None, "no codes, expected those of its audio"),
        ("short", coded[0].parts[0].codes_NQ[:4], r"4 frames of .* expected frames 0 to 6"),
        ("wild", coded[0].parts[0].codes_NQ + 60_000, "expected"),
    ):
        part = dataclasses.replace(coded[0].parts[0], codes_NQ=codes_NQ)
        record = dataclasses.replace(coded[0], parts=(part,))
        dataset = small_corpus.write_dataset(tmp_path / name, [record])
        batches = AudioBatches(settings(dataset, Bucket(1.6, 1), features=("codes",)), FORMAT)
        with pytest.raises(RecordError, match=f"{name}/train/audio, record 0: .*{message}"):
            batches.build(0)


def test_ids_name_the_recordings_of_the_clips(sweeps, monkeypatch):
    dataset, waves = sweeps
    batches = AudioBatches(settings(dataset, Bucket(2.0, 3), Bucket(1.0, 2)), FORMAT)
    built = [batches.build(step) for step in range(6)]
    monkeypatch.setattr(features, "decode", None)  # no audio is decoded
    for step, batch in enumerate(built):
        ids = batches.ids(step)
        assert len(ids) == batches.global_rows(step)
        assert batches.ids(step, [1]) == [ids[1]]
        for row, names in enumerate(ids):
            # The level of a recording tells which one it is.
            number = round(float(np.abs(batch.wave_BS[row]).max()) * 10) - 1
            assert names == [f"{dataset}/train/audio:r{number}"]
    with pytest.raises(IndexError, match="row 9 of step"):
        batches.ids(0, [9])


def test_windows_cover_the_recordings(sweeps):
    dataset, waves = sweeps
    options = settings(dataset, Bucket(1.0, 5), crop=True, features=("wave",))
    batches = AudioBatches(options, FORMAT)
    starts = collections.defaultdict(list)
    for step in range(40):
        batch = batches.build(step)
        for row in range(5):
            wave_S = batch.wave_BS[row, : batch.samples_B[row]]
            number = round(float(np.abs(wave_S).max()) * 10) - 1
            whole_S = waves[number]
            assert len(wave_S) == min(len(whole_S), WAVE_RATE)
            windows = np.lib.stride_tricks.sliding_window_view(whole_S, len(wave_S))
            distance = np.abs(windows[:, :200:20] - wave_S[:200:20]).max(axis=1)
            start = int(distance.argmin())
            np.testing.assert_allclose(windows[start], wave_S, atol=2e-3)
            starts[number].append(start / max(1, len(whole_S) - len(wave_S)))
    # Each recording gives one window an epoch.
    assert {number: len(result) for number, result in starts.items()} == dict.fromkeys(range(5), 40)
    for number in (1, 2, 3, 4):
        assert min(starts[number]) < 0.15 and max(starts[number]) > 0.85
        assert len(set(starts[number])) > 30


def test_augmentation_changes_only_the_input_of_the_encoder(small_dataset):
    """The targets stay clean; with speed they change along."""
    clean = AudioBatches(settings(small_dataset), FORMAT).build(1)
    noise = dataclasses.replace(AUGMENTATION, speeds=(1.0,), noise_probability=1.0)
    noisy = AudioBatches(settings(small_dataset, augmentation=noise), FORMAT).build(1)
    for name, array in noisy._asdict().items():
        equal = np.array_equal(array, getattr(clean, name))
        assert equal == (name != "whisper_mel_BTM"), name
    fast = dataclasses.replace(Augmentation(), speeds=(1.25,))
    report = AudioBatches(settings(small_dataset, augmentation=fast), FORMAT).report()
    hours = AudioBatches(settings(small_dataset), FORMAT).report()
    name = f"{small_dataset}/train/audio"
    assert report[name]["hours"] == pytest.approx(hours[name]["hours"] / 1.25, rel=0.02)


@pytest.mark.parametrize("crop", [False, True])
def test_shares_of_the_mixture_are_by_hours(crop, tmp_path):
    """One part of many short recordings and three of a few long ones, within 3 %."""
    mixture, weights = [], {"short": 1.0, "long": 3.0}
    for i, (name, seconds) in enumerate({"short": (0.5,) * 9, "long": (3.0, 4.9, 2.6)}.items()):
        records = []
        for j, length in enumerate(seconds):
            part = Part("x", small_corpus.speech(length, j, "flac", 16_000), seconds=length)
            records.append(Record(f"{i}{j}", "speech", ("en", "zh")[i], (part,), "x"))
        dataset = small_corpus.write_dataset(tmp_path / name, records)
        mixture.append(Selection(str(dataset), ExampleMaker("audio"), weights[name]))
    buckets = (Bucket(1.0, 4),) if crop else (Bucket(0.7, 4), Bucket(1.5, 2))
    options = settings("", *buckets, mixture=tuple(mixture), crop=crop, features=("wave",))
    batches = AudioBatches(options, FORMAT)
    seconds = collections.Counter()
    for step in range(160):
        for samples in batches.build(step).samples_B / WAVE_RATE:
            seconds["short" if samples == 0.5 else "long"] += samples
    assert seconds["short"] / seconds.total() == pytest.approx(0.25, abs=0.03)


def test_report(sweeps):
    dataset, waves = sweeps
    report = AudioBatches(settings(dataset, Bucket(2.0, 1), Bucket(1.0, 1)), FORMAT).report()
    hours = (sum(map(len, waves)) / WAVE_RATE - 0.03) / 3600
    assert report[f"{dataset}/train/audio"] == {
        "clips": 10,
        "hours": pytest.approx(hours),
        "left_out": {},
    }
    assert report["bucket 1 s"] == {"clips": 2, "real_share": pytest.approx((0.5 + 0.4) / 2)}
    crop = AudioBatches(settings(dataset, Bucket(1.0, 1), crop=True), FORMAT).report()
    assert crop["bucket 1 s"] == {"clips": 5, "real_share": pytest.approx(0.9)}


# --- what cannot be used -------------------------------------------------------------------------


GOOD = small_corpus.speech(1.0)


@pytest.mark.parametrize(
    "audio, seconds, message",
    [
        (GOOD[: len(GOOD) // 2], 1.0, "cut short"),
        (GOOD, 1.9, "audio cut short: 1.000 s, expected 1.900 s"),
        (b"nothing", 1.0, "<7 bytes>"),
    ],
)
def test_damaged_audio_is_named_or_skipped_and_counted(audio, seconds, message, tmp_path):
    records = [
        Record(f"r{i}", "speech", "en", (Part("x", GOOD, seconds=1.0),), "x") for i in range(5)
    ]
    records[2] = dataclasses.replace(records[2], parts=(Part("x", audio, seconds=seconds),))
    options = settings(small_corpus.write_dataset(tmp_path / "bad", records), Bucket(2.0, 5))
    with pytest.raises(RecordError, match=f"bad/train/audio, record 2: .*{message}"):
        AudioBatches(options, FORMAT).build(0)
    batch = AudioBatches(dataclasses.replace(options, on_error="skip"), FORMAT).build(0)
    assert batch.skipped_B.sum() == 1
    (place,) = np.flatnonzero(batch.skipped_B)
    assert not any(array[place].any() for array in arrays(batch._replace(skipped_B=None)))
    assert (np.delete(batch.samples_B, place) == WAVE_RATE).all()


def test_records_without_audio_are_left_out_and_counted(small_dataset, tmp_path):
    records = [
        Record("a", "speech", "en", (Part("x", GOOD, seconds=1.0),), "x"),
        Record("b", "speech", "en", (Part("x", GOOD, seconds=0.05),), "x"),
        Record("c", "speech", "en", (Part("x", GOOD, seconds=1.0, loss=False),), "x"),
        Record("d", "text", "en", (Part("x"),), "x"),
        Record("e", "speech", "zh", (Part("x", GOOD, seconds=1.0),), "x"),
    ]
    dataset = small_corpus.write_dataset(tmp_path / "few", records)
    mixture = (Selection(str(dataset), ExampleMaker("audio"), languages=("en",)),)
    batches = AudioBatches(settings("", mixture=mixture), FORMAT)
    report = batches.report()["/".join([str(dataset), "train/audio/en"])]
    assert report["clips"] == 1
    assert report["left_out"] == {"another language": 1, "no audio": 3}
    dataset = small_corpus.write_dataset(tmp_path / "none", records[1:4])
    with pytest.raises(
        RecordError, match=r"none/train/audio: no speech; left out: {'no audio': 3}"
    ):
        AudioBatches(settings(dataset), FORMAT)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"on_error": "hide"}, "on_error = 'hide', expected one of"),
        ({"features": ()}, r"features = \(\), expected names in"),
        ({"features": ("f0",)}, "features = "),
        ({"crop": True}, "2 buckets, expected 1 with crop"),
        ({"mixture": ()}, "an empty mixture"),
        (
            {"mixture": (Selection("d", ExampleMaker("asr")),)},
            "d/train/asr: task 'asr', expected 'audio'",
        ),
        (
            {"mixture": (Selection("d", ExampleMaker("audio", turn="any")),)},
            "turn 'any', expected '' for all",
        ),
        (
            {"features": ("codes",), "buckets": (Bucket(1.0, 1),)},
            "a bucket of 1.0 s with the feature 'codes', expected whole frames of 0.08 s",
        ),
        (
            {
                "features": ("codes",),
                "buckets": (Bucket(1.6, 1),),
                "augmentation": Augmentation(speeds=(0.9, 1.0)),
            },
            r"augmentation.speeds = \(0.9, 1.0\) with the feature 'codes'",
        ),
        ({"seed": -1}, "seed = -1, expected at least 0"),
    ],
)
def test_invalid_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        settings("d", *fields.pop("buckets", ()), **fields)
