"""The vocoder's losses against HiFi-GAN's formulas, for whole crops and shorter ones."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from ba_jax.audio.mel import MelGeometry, log_mel
from ba_jax.losses import gan

SAMPLES = 60
SHAPES = (((2, 6, 3, 4), (2, 5, 3, 1)), ((2, 8, 1, 2), (2, 4, 2, 1)))  # two discriminators
FULL = np.array([SAMPLES, SAMPLES])


def features(seed: int) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=s).astype(np.float32) for s in maps] for maps in SHAPES]


@jax.jit
def losses(real, fake, samples_B):
    """Losses of the discriminators, the generator and feature matching; an item each."""
    return (
        gan.discriminator_B(real, fake, samples_B, SAMPLES),
        gan.generator_B(fake, samples_B, SAMPLES),
        gan.feature_matching_B(real, fake, samples_B, SAMPLES),
    )


def test_whole_crops_give_the_published_losses():
    real, fake = features(0), features(1)
    pairs = list(zip(real, fake, strict=True))
    want = (
        sum(np.mean((r[-1] - 1) ** 2) + np.mean(f[-1] ** 2) for r, f in pairs),
        sum(np.mean((f[-1] - 1) ** 2) for f in fake),
        sum(np.mean(np.abs(x - y)) for r, f in pairs for x, y in zip(r, f, strict=True)),
    )
    got = [np.mean(loss_B) for loss_B in losses(real, fake, FULL)]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 5, 6, 8, 97])
def test_rows_are_real_up_to_the_end(rows):
    real_rows = jax.jit(gan.real_rows, static_argnums=(1, 2))
    got = np.asarray(real_rows(np.array([0, 31, 44, 60]), SAMPLES, rows))
    middles = (np.arange(rows) + 0.5) * SAMPLES / rows
    np.testing.assert_array_equal(got, middles[None] < np.array([0, 31, 44, 60])[:, None])
    assert got[-1].all() and not got[0].any()


def test_a_shorter_crop_is_judged_by_its_own_rows():
    """Item 1 has half the samples: later rows do not count; an item without samples gives 0."""
    real, fake = features(0), features(1)
    half = np.array([SAMPLES, SAMPLES // 2])
    spoilt = [[m.copy() for m in maps] for maps in fake]
    for maps in spoilt:
        for m in maps:
            m[1, int(np.ceil(m.shape[1] / 2)) :] = 1e3
    want, whole, got = jax.device_get(
        [losses(real, fake, half), losses(real, fake, FULL), losses(real, spoilt, half)]
    )
    for actual, expected, full in zip(got, want, whole, strict=True):
        np.testing.assert_array_equal(actual, expected)
        assert actual[0] == full[0] and actual[1] != full[1]
    # Rows whose middle is in the first half: 2 of 5 (the third one's middle is the end), 2 of 4.
    own_rows = [f[-1][1, :2] for f in fake]
    np.testing.assert_allclose(want[1][1], sum(np.mean((s - 1) ** 2) for s in own_rows), rtol=1e-6)
    assert all(np.asarray(loss)[1] == 0 for loss in losses(real, fake, np.array([SAMPLES, 0])))


def test_multi_mel_is_the_mean_over_scales_of_each_items_own_frames():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(0, 0.1, (2, 2, 2000)).astype(np.float32)
    lengths = np.array([2000, 900])
    for wave in (real, fake):
        wave[1, 900:] = np.nan
    scales = tuple(MelGeometry(24000, n, n // 4, 20, f_max=12000.0) for n in (256, 512))

    @jax.jit
    def run(fake, lengths):
        def total(fake):
            loss_B = gan.multi_mel_B(fake, real, lengths, scales)
            return loss_B.sum(), loss_B

        return jax.grad(total, has_aux=True)(fake)

    gradient, got = jax.device_get(run(fake, lengths))
    for i, n in enumerate(lengths):
        errors = [np.abs(log_mel(fake[i, :n], g) - log_mel(real[i, :n], g)).mean() for g in scales]
        np.testing.assert_allclose(got[i], np.mean(errors), rtol=1e-4)
    assert np.isfinite(gradient).all() and (gradient[1, 900:] == 0).all()
    assert np.asarray(run(fake, np.array([2000, 50]))[1])[1] == 0  # too short for a frame


def test_f0_error_is_in_hertz_over_own_frames():
    f0 = np.array([[100.0, 200.0, np.nan], [50.0, 60.0, 70.0]], np.float32)
    target = np.array([[110.0, 0.0, np.nan], [50.0, 0.0, 0.0]], np.float32)
    error_B = jax.jit(gan.f0_B)(f0, target, np.array([2, 3]))
    np.testing.assert_allclose(error_B, [105.0, 130 / 3], rtol=1e-6)
