"""Flow matching: schedules, sampling, training pairs and preconditioning."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models import flow_matching as fm


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_time_steps_cover_the_cosine_grid():
    times, deltas = fm.time_steps(10, "cosine")
    want = 1 - np.cos(np.pi / 2 * np.arange(11) / 10)
    np.testing.assert_allclose(times, want[:-1], atol=1e-6)
    np.testing.assert_allclose(times + deltas, want[1:], atol=1e-6)
    u = np.linspace(0, 1, 11, dtype=np.float32)
    np.testing.assert_allclose(fm.warp(u, "cosine"), want, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_sampling_integrates_and_guides_in_one_call(steps):
    """v = mu + 1 is constant in time, so that any number of steps is exact."""
    calls = []

    def velocity(x, mu, t, lengths):
        calls.append((x.shape, mu, t.shape, lengths.shape))
        return mu + 1

    mu, z = noise(3, 5, 80), noise(3, 5, 80, seed=1)
    lengths = np.full(3, 5, np.int32)
    got = fm.sample(velocity, mu, lengths, z, steps=steps, guidance=0.7)
    np.testing.assert_allclose(got, z + 1.7 * (mu + 1) - 0.7, atol=1e-5)
    # Traced once inside the scan: one call a step, on a doubled batch.
    assert [c[0] for c in calls] == [(6, 5, 80)]
    assert calls[0][2:] == ((6,), (6,))
    got = fm.sample(velocity, mu, lengths, z, steps=steps, guidance=0.0)
    np.testing.assert_allclose(got, z + mu + 1, atol=1e-5)
    assert calls[1][0] == (3, 5, 80)


def test_invalid_schedules_are_refused():
    with pytest.raises(ValueError, match="steps = 0"):
        fm.time_steps(0, "cosine")
    with pytest.raises(ValueError, match="'quadratic'"):
        fm.time_steps(4, "quadratic")
    with pytest.raises(ValueError, match="'quadratic'"):
        fm.warp(jnp.zeros(1), "quadratic")


def test_noise_depends_on_key_and_position_alone():
    keys = jax.random.split(jax.random.key(0), 2)
    draw = jax.jit(fm.draw_noise, static_argnums=(1, 2))
    whole = np.asarray(draw(keys, 9, 80))
    np.testing.assert_array_equal(np.asarray(draw(keys[1:], 4, 80))[0], whole[1, :4])
    np.testing.assert_array_equal(draw(keys, 5, 80, offset=4), whole[:, 4:])
    assert abs(float(whole.mean())) < 0.1 and abs(float(whole.std()) - 1) < 0.05


def test_training_pair_lies_on_the_path():
    mel, z = noise(2, 3, 4), noise(2, 3, 4, seed=1)
    t = np.array([0.0, 1.0], np.float32)
    point, velocity = fm.training_pair(mel, z, t, 0.0)
    np.testing.assert_allclose(point[0], z[0], atol=1e-6)
    np.testing.assert_allclose(point[1], mel[1], atol=1e-6)
    np.testing.assert_allclose(z + velocity, mel, atol=1e-6)


CONDITIONED = fm.FlowMatchingConfig(residual_std=0.5, mel_mean=-3.0, mel_std=2.0)


def silent(x_BTM, mu_BTM, t_B, lengths_B):
    """An untrained estimator."""
    return jnp.zeros_like(x_BTM)


def test_a_preconditioned_flow_starts_at_mels_around_mu():
    """The flow carries noise to mu + s z, up to the error of Euler's steps."""
    z, mu = noise(2, 5, 80), noise(2, 5, 80, seed=1)
    mu[1, 3] = 0  # a frame without a condition
    velocity = fm.precondition(silent, CONDITIONED)
    lengths = np.array([5, 4], np.int32)
    sample = jax.jit(functools.partial(fm.sample, velocity, steps=400, guidance=0))
    mel = np.asarray(sample(mu, lengths, z))
    np.testing.assert_allclose(mel[0], mu[0] + 0.5 * z[0], atol=0.02)
    np.testing.assert_allclose(mel[1, 3], -3 + 2 * z[1, 3], atol=0.05)
    np.testing.assert_array_equal(mel[1, 4], z[1, 4])  # padding stays


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_estimator_works_at_unit_scale(t):
    """For mels normal around mu, input and ideal output have a standard deviation of 1."""
    mu = np.full((1, 4000, 80), -5, np.float32)
    z, deviation = noise(*mu.shape), noise(*mu.shape, seed=1)
    mel = mu + 0.5 * deviation
    times, lengths = np.array([t], np.float32), np.array([4000], np.int32)

    @jax.jit
    def run(mel, z, times):
        point, target = fm.training_pair(mel, z, times, CONDITIONED.sigma_min)
        seen = {}

        def estimator(x_BTM, mu_BTM, *rest):
            seen.update(x=x_BTM, mu=mu_BTM)
            return jnp.zeros_like(x_BTM)

        remainder = target - fm.precondition(estimator, CONDITIONED)(point, mu, times, lengths)
        ones = fm.precondition(lambda x, *rest: jnp.ones_like(x), CONDITIONED)
        scale = ones(point, mu, times, lengths) - (target - remainder)
        return seen["x"], seen["mu"], remainder, scale

    x, seen_mu, remainder, scale = map(np.asarray, run(mel, z, times))
    assert abs(np.std(x) - 1) < 0.01
    assert abs(np.std(remainder / scale) - 1) < 0.01
    # the mean given the point is out already
    assert abs(np.mean(remainder * x)) < 0.01
    np.testing.assert_allclose(seen_mu, (-5 + 3) / 2, atol=1e-6)


def test_residual_std_0_returns_the_estimator():
    assert fm.precondition(silent, fm.FlowMatchingConfig()) is silent
    with pytest.raises(ValueError, match=r"residual_std = -1, mel_std = 2.3"):
        fm.FlowMatchingConfig(residual_std=-1)


def test_preconditioning_ignores_padding():
    x, mu, lengths = noise(1, 6, 80), noise(1, 6, 80, seed=1), np.array([4], np.int32)
    velocity = jax.jit(fm.precondition(silent, CONDITIONED))
    want = np.asarray(velocity(x, mu, np.array([0.4], np.float32), lengths))
    assert not np.any(want[:, 4:]) and np.all(want[:, :4] != 0)
    x[:, 4:], mu[:, 4:] = np.nan, np.nan
    got = velocity(x, mu, np.array([0.4], np.float32), lengths)
    np.testing.assert_array_equal(got, want)
