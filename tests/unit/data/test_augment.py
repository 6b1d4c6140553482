"""Augmentation: off by default, as strong as asked, and a pure function of the generator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.data.augment import Augmentation
from ba_jax.data.features import speed_of
from ba_jax.data.record import Record


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def wave(samples: int = 32_000) -> np.ndarray:
    return (0.2 * np.sin(np.arange(samples) / 9)).astype(np.float32)


def mel(frames: int = 300, bins: int = 128) -> np.ndarray:
    return generator(1).standard_normal((frames, bins)).astype(np.float32)


def test_nothing_is_changed_by_default():
    augmentation, rng = Augmentation(), generator()
    before = rng.bit_generator.state
    wave_S, mel_TM = wave(), mel()
    assert augmentation.wave(wave_S, rng) is wave_S
    assert augmentation.mel(mel_TM, rng) is mel_TM
    assert rng.bit_generator.state == before


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 35.0])
def test_noise_has_the_wanted_ratio(snr_db):
    noisy = Augmentation(noise_probability=1, noise_snr_db=(snr_db, snr_db))
    clean_S = wave()
    noisy_S = noisy.wave(clean_S, generator())
    assert noisy_S.dtype == np.float32
    ratio = np.square(clean_S).sum() / np.square(noisy_S - clean_S).sum()
    assert 10 * np.log10(ratio) == pytest.approx(snr_db, abs=0.2)
    np.testing.assert_array_equal(clean_S, wave())  # not in place


def test_noise_is_drawn_over_the_range_with_its_probability():
    augmentation = Augmentation(noise_probability=0.25, noise_snr_db=(10, 30))
    clean_S, rng = wave(4000), generator()
    result = []
    for _ in range(400):
        noisy_S = augmentation.wave(clean_S, rng)
        if noisy_S is not clean_S:
            ratio = np.square(clean_S).sum() / np.square(noisy_S - clean_S).sum()
            result.append(10 * np.log10(ratio))
    assert 70 < len(result) < 130
    assert 9.5 < min(result) < 13 and 27 < max(result) < 30.5
    assert np.mean(result) == pytest.approx(20, abs=2)


def test_silence_stays_silent():
    silence_S = np.zeros(1000, np.float32)
    noisy_S = Augmentation(noise_probability=1).wave(silence_S, generator())
    np.testing.assert_array_equal(noisy_S, silence_S)


@given(st.integers(1, 400), st.integers(0, 3), st.integers(0, 3), st.integers(0, 1000))
def test_masks_hold_the_mean_and_keep_to_their_maximum(frames, time_masks, mel_masks, seed):
    augmentation = Augmentation(
        time_masks=time_masks, max_time_mask=30, mel_masks=mel_masks, max_mel_mask=10
    )
    mel_TM = mel(frames)
    masked_TM = augmentation.mel(mel_TM, generator(seed))
    np.testing.assert_array_equal(mel_TM, mel(frames))
    assert masked_TM.dtype == np.float32
    changed = masked_TM != mel_TM
    np.testing.assert_array_equal(masked_TM[changed], mel_TM.mean())
    in_time, in_mel = changed.all(axis=1), changed.all(axis=0)
    assert in_time.sum() <= time_masks * min(30, frames // 5)
    # With few frames, time masks alone never cover a whole bin: they leave most frames.
    assert in_mel.sum() <= mel_masks * 10
    np.testing.assert_array_equal(changed, in_time[:, None] | in_mel[None, :])


def test_masks_are_drawn_everywhere_and_up_to_the_longest():
    augmentation = Augmentation(time_masks=1, max_time_mask=40)
    rng, widths, covered = generator(), set(), np.zeros(300, bool)
    for _ in range(600):
        masked = (augmentation.mel(mel(), rng) != mel()).all(axis=1)
        widths.add(int(masked.sum()))
        covered |= masked
    assert widths == set(range(41))
    assert covered.all()


def test_the_same_generator_gives_the_same_result():
    augmentation = Augmentation((0.9, 1.0, 1.1), 0.5, (5, 20), time_masks=2, mel_masks=2)
    for seed in range(5):
        first, second = generator(seed), generator(seed)
        np.testing.assert_array_equal(
            augmentation.wave(wave(), first), augmentation.wave(wave(), second)
        )
        np.testing.assert_array_equal(
            augmentation.mel(mel(), first), augmentation.mel(mel(), second)
        )
    records = [Record(str(number), "text", "en", ()) for number in range(30)]
    assert {speed_of(record, augmentation) for record in records} == {0.9, 1.0, 1.1}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"speeds": ()}, r"speeds \(\), expected one or more from 0.5 to 2"),
        ({"speeds": (1.0, 3.0)}, "speeds"),
        ({"noise_probability": 1.5}, "noise_probability 1.5, expected 0 to 1"),
        ({"noise_snr_db": (30.0, 10.0)}, "noise_snr_db"),
        ({"time_masks": -1}, "masks"),
    ],
)
def test_invalid_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)
