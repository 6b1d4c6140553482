"""Lengths known before decoding are the lengths that decoding gives; the cut is the reference's."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from ba_jax.audio import AudioError, lengths
from ba_jax.audio.mel import whisper_log_mel
from ba_jax.config import ConfigError
from ba_jax.data import features
from ba_jax.data.augment import Augmentation
from ba_jax.data.features import Bucket, ModelFormat
from ba_jax.data.record import Part, Record
from ba_jax.vocab import AudioTokens
from configs.models import get_config
from tests.unit.data.small_corpus import FORMAT, speech

RATE = lengths.SAMPLE_RATE
# Around what has no features, no frame of codes, a frame more, and where chunks end.
BORDERS = (0, 400, 960, 1280, 2240, 16_000, 30 * RATE, 31 * RATE, 60 * RATE, 90 * RATE)
SAMPLES = st.sampled_from(BORDERS).flatmap(lambda n: st.integers(max(0, n - 700), n + 700))


@given(SAMPLES, st.sampled_from((0.1, 1.0, 3.3, 30.0)))
def test_chunks_cover_all_but_a_short_rest(samples, max_seconds):
    chunks = features.chunk_samples(samples, max_seconds)
    longest = int(max_seconds * RATE)
    assert all(chunk == longest for chunk in chunks[:-1])
    assert all(chunk <= longest for chunk in chunks)
    assert 0 <= samples - sum(chunks) < 960
    assert all(lengths.code_length(chunk) > 0 for chunk in chunks)


@given(SAMPLES.filter(lambda n: n <= 30 * RATE))
def test_frames_of_codes_follow_from_the_mel(samples):
    if samples < lengths.N_FFT:
        assert lengths.code_length(samples) == 0
        return
    mel_TM = whisper_log_mel(np.zeros(samples, np.float32))
    # Two convolutions, the second with stride 2, then groups of 4.
    assert lengths.code_length(samples) == (len(mel_TM) + 1) // 2 // 4
    assert lengths.code_length(samples) == pytest.approx(samples / RATE * 12.5, abs=1)


@pytest.mark.parametrize("stored", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_decoding_gives_exactly_the_stated_samples(stored, speed):
    # Not a whole number of samples at some rate; as float32, the way records keep it.
    for seconds in (0.06, 0.5, 1.00005, 2.718):
        exact = round(seconds * stored) / stored
        kept = float(np.float32(exact))
        file = speech(exact, seed=1, rate=stored)
        waves = features.decode(file, kept, (16_000, 24_000), speed)
        assert [len(w) for w in waves] == [
            features.total_samples(kept, speed, rate) for rate in (16_000, 24_000)
        ]
        assert features.total_samples(kept, speed) == pytest.approx(exact * RATE / speed, abs=1)
        assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in waves)


@given(st.floats(0.01, 700), st.sampled_from((0.5, 0.9, 1.0, 1.1, 2.0)))
def test_float32_seconds_keep_the_chunks(seconds, speed):
    """Writing a record rounds its seconds: chunks must not depend on it by more than a sample."""
    samples = features.total_samples(seconds, speed)
    assert abs(features.total_samples(float(np.float32(seconds)), speed) - samples) <= 2


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_speed_changes_length_and_pitch(speed):
    (wave_S,) = features.decode(speech(2.0, seed=4, format="flac"), 2.0, [16_000], speed)
    assert len(wave_S) == round(2.0 * 16_000 / speed)
    spectrum = np.abs(np.fft.rfft(wave_S))
    pitch = spectrum.argmax() * 16_000 / len(wave_S)
    assert pitch == pytest.approx((120 + 20 * 4) * speed, rel=0.01)


def test_a_recordings_speed_depends_on_its_id_alone():
    augmentation = Augmentation(speeds=(0.9, 1.0, 1.1))
    records = [Record(f"r{i}", "speech", "en", (Part("x"),)) for i in range(60)]
    speeds = [features.speed_of(record, augmentation) for record in records]
    assert set(speeds) == {0.9, 1.0, 1.1}
    assert speeds == [features.speed_of(record, augmentation) for record in records]
    assert {features.speed_of(record, Augmentation()) for record in records} == {1.0}


@pytest.mark.parametrize(
    "seconds, message",
    [(1.5, "audio cut short: 1.000 s, expected 1.500 s"), (0.5, "expected at most 0.6 s")],
)
def test_a_recording_of_another_length_than_stated_is_damaged(seconds, message):
    with pytest.raises(AudioError, match=message):
        features.decode(speech(1.0), seconds, [16_000])


@pytest.mark.parametrize("format", ["opus", "flac"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_damaged(format, share):
    whole = speech(2.0, format=format)
    with pytest.raises(AudioError, match="cut short"):
        features.decode(whole[: int(share * len(whole))], 2.0, [16_000])


def test_a_little_padding_of_the_codec_is_no_damage():
    (wave_S,) = features.decode(speech(1.02), 1.0, [16_000])
    assert len(wave_S) == 16_000
    (wave_S,) = features.decode(speech(0.98), 1.0, [16_000])
    assert len(wave_S) == 16_000 and not wave_S[-300:].any()


def test_long_recordings_are_decoded_if_their_length_is_stated():
    file = speech(601.0, format="flac", rate=8000)
    (wave_S,) = features.decode(file, 601.0, [8000])
    assert len(wave_S) == 601 * 8000


def test_mels_of_chunks_are_those_of_the_chunks_alone():
    rng = np.random.default_rng(0)
    wave_S = (0.1 * rng.standard_normal(40_000)).astype(np.float32)
    chunks = features.chunk_samples(40_000, 1.0)
    assert chunks == (16_000, 16_000, 8000)
    mels = features.chunk_mels(wave_S, chunks, features.mel_geometry(80))
    assert [m.shape for m in mels] == [(101, 80), (101, 80), (51, 80)]
    np.testing.assert_array_equal(
        mels[1], whisper_log_mel(wave_S[16_000:32_000], features.mel_geometry(80))
    )
    for same in (Augmentation(), None):
        again = features.chunk_mels(wave_S, chunks, features.mel_geometry(80), same, rng)
        for a, b in zip(mels, again, strict=True):
            np.testing.assert_array_equal(a, b)


def test_buckets_are_ordered_and_hold_their_length():
    buckets = features.check_buckets([Bucket(30, 1), Bucket(2.5, 4)])
    assert [b.seconds for b in buckets] == [2.5, 30]
    assert [b.mel_frames for b in buckets] == [251, 3000]
    assert [features.bucket_of(n, buckets) for n in (1, 40_000, 40_001, 480_000)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="two of one length"):
        features.check_buckets([Bucket(2, 1), Bucket(2.0, 4)])


@pytest.mark.parametrize("seconds, count", [(0.05, 1), (30.5, 1), (float("nan"), 1), (1, 0)])
def test_invalid_buckets(seconds, count):
    with pytest.raises(ValueError, match="expected 0.1 to 30 seconds, count >= 1"):
        Bucket(seconds, count)


def test_the_format_of_a_model():
    assert ModelFormat.of(get_config("nano")) == FORMAT
    released = ModelFormat.of(get_config("7b").to_dict())
    assert released.tokens == AudioTokens() and released.vocab_size == 152064
    with pytest.raises(ConfigError, match="model: vq_bridge, expected a whole model's config"):
        ModelFormat.of(ConfigDict({"llm": {}}))


def test_threads_inside_share_one_limit():
    """The first to leave does not lift it: a batch must not depend on who builds another."""

    def threads() -> set[int]:
        result = threadpoolctl.threadpool_info()
        return {pool["num_threads"] for pool in result if pool["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(2, "blas"):
        first, second = features.one_blas_thread(), features.one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert threads() == {1}
        second.__exit__(None, None, None)
        assert threads() == {2}
