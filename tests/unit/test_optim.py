"""Rules, schedules, clipping, AdamW and EMA, compared with NumPy."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ba_jax import optim
from ba_jax.optim import OptimError, OptimizerSettings

NAMES = ("llm/embedding", "llm/layers/query/kernel", "llm/norm/scale", "audio_head/out/kernel")
ALL = ((".*", 1.0),)


def settings(**changes) -> OptimizerSettings:
    return OptimizerSettings(**{"rules": ALL, "learning_rate": 1e-2, **changes})


def test_first_rule_that_matches_the_whole_name_decides():
    rules = (("llm/embedding", None), (r"llm/.*", 0.5), (r".*kernel", 2.0))
    assert optim.learning_rate_multipliers(NAMES, rules) == {
        "llm/embedding": None,
        "llm/layers/query/kernel": 0.5,
        "llm/norm/scale": 0.5,
        "audio_head/out/kernel": 2.0,
    }
    with pytest.raises(OptimError, match="llm/embedding: no rule covers"):
        optim.learning_rate_multipliers(
            NAMES, (("embedding", None), (".*(kernel|scale)", 1.0))
        )  # not a whole name


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("llm/.*", 1.0),), "audio_head/out/kernel: no rule covers it; the rules are"),
        ((*ALL, ("llm/embedding", None)), r"rules \['llm/embedding'\]: decide no parameter"),
        ((("encoder/.*", None), *ALL), r"rules \['encoder/\.\*'\].*there are \['audio_head/\.\.\."),
        (((".*", None),), "freeze all 4 parameters: nothing to train"),
        (((".*", 0.0),), "freeze all 4 parameters"),
        ((), "no rule covers it"),
    ],
)
def test_invalid_rules(rules, message):
    with pytest.raises(OptimError, match=message):
        optim.learning_rate_multipliers(NAMES, rules)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rules": (("llm/(", 1.0),)}, re.escape("rule 'llm/(': not a regular expression")),
        ({"rules": ((".*", -1.0),)}, r"rule '\.\*': multiplier -1.0"),
        ({"rules": ((".*", math.nan),)}, "multiplier nan"),
        ({"schedule": "cosin"}, "schedule 'cosin', expected one of"),
        ({"learning_rate": 0.0}, "learning_rate = 0.0"),
        ({"learning_rate": math.nan}, "learning_rate = nan"),
        ({"learning_rate": 3e38}, r"learning_rate = 3e\+38: expected above 0, at most 1e\+30"),
        ({"learning_rate": 1e30, "rules": ((".*", 2.0),)}, "multiplier 2.0, .* at most 1e"),
        ({"warmup_steps": -1}, "warmup_steps = -1"),
        ({"clip_norm": -0.1}, "clip_norm = -0.1"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0"),
        ({"final_learning_rate_ratio": 1.5}, "final_learning_rate_ratio = 1.5"),
        ({"ema_decay": 2.0}, "ema_decay = 2.0"),
        ({"b2": -0.1}, "b2 = -0.1"),
    ],
)
def test_invalid_settings(changes, message):
    with pytest.raises(OptimError, match=message):
        settings(**changes)


def learning_rates(steps: int, **changes) -> np.ndarray:
    """Compute the learning rate of every step, as a fraction of the peak."""
    at = optim.learning_rate_schedule(settings(**changes), steps)
    return np.asarray(jax.jit(jax.vmap(at))(np.arange(steps)), np.float64) / 1e-2


def test_schedules():
    warmed = learning_rates(9, warmup_steps=4)
    np.testing.assert_allclose(warmed[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    cosine = 0.1 + 0.9 * (1 + np.cos(np.pi * np.arange(5) / 4)) / 2
    np.testing.assert_allclose(warmed[4:], cosine, rtol=1e-6)
    np.testing.assert_allclose(learning_rates(5), cosine, rtol=1e-6)
    np.testing.assert_allclose(learning_rates(5, final_learning_rate_ratio=0.0)[-1], 0.0, atol=1e-6)
    np.testing.assert_allclose(
        learning_rates(5, schedule="linear", final_learning_rate_ratio=0.2),
        [1.0, 0.8, 0.6, 0.4, 0.2],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        learning_rates(4, schedule="constant", warmup_steps=2), [0.5, 1, 1, 1]
    )
    np.testing.assert_allclose(learning_rates(3, warmup_steps=1)[:2], [1, 1])
    # A warm-up longer than the run, and a run of one step.
    np.testing.assert_allclose(learning_rates(2, warmup_steps=4), [0.25, 0.5])
    np.testing.assert_allclose(learning_rates(1), [1.0])


def test_norms_biases_and_embeddings_do_not_decay():
    decayed = {
        "llm/layers/query/kernel": (2, 8, 8),
        "llm/lm_head": (20, 8),
        "llm/layers/lora_up_a": (2, 8, 4),
        "vocoder/conv/kernel_v": (3, 4, 4),
    }
    not_decayed = {
        "llm/layers/norm/scale": (2, 8),
        "llm/layers/query/bias": (2, 8),
        "llm/embedding": (20, 8),
        "audio_embed/embedding_0": (20, 8),
        "vocoder/conv/kernel_g": (1, 4, 1),
        "vocoder/snake/alpha": (4,),
    }
    assert all(optim.is_decayed(name, shape) for name, shape in decayed.items())
    assert not any(optim.is_decayed(name, shape) for name, shape in not_decayed.items())


SHAPES = {"a/kernel": (3, 4), "a/bias": (4,), "b/kernel": (4, 2), "b/embedding": (5, 4)}


def draw(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: (scale * rng.normal(size=s)).astype(np.float32) for n, s in SHAPES.items()}


def test_groups_are_clipped_separately():
    grads = draw(0, 3.0)
    grads["b/kernel"] *= 1e-3
    grads["b/embedding"] *= 1e-3
    groups = {"a/kernel": 0, "a/bias": 0, "b/kernel": 1, "b/embedding": 1}
    clip = jax.jit(optim.clip_by_group(0.5, groups).update)
    clipped, _ = clip(grads, optax.EmptyState())
    norm = np.sqrt((grads["a/kernel"] ** 2).sum() + (grads["a/bias"] ** 2).sum())
    for name, grad in grads.items():
        expected = grad * min(1.0, 0.5 / norm) if name.startswith("a/") else grad
        np.testing.assert_allclose(clipped[name], expected, rtol=1e-6)
    zeros = {n: np.zeros(s, np.float32) for n, s in SHAPES.items()}
    clipped, _ = clip(zeros, optax.EmptyState())
    assert all(np.all(np.asarray(c) == 0) for c in clipped.values())


def adamw(params, gradients, config: OptimizerSettings, multipliers, steps: int):
    """Apply AdamW to all gradients in NumPy; the groups are "a/" and "b/"."""
    params = {n: p.astype(np.float64) for n, p in params.items()}
    m = {n: np.zeros_like(p) for n, p in params.items()}
    v = {n: np.zeros_like(p) for n, p in params.items()}
    schedule = jax.vmap(optim.learning_rate_schedule(config, steps))
    rates = np.asarray(jax.jit(schedule)(np.arange(steps)))
    for t, grads in enumerate(gradients):
        for group in ("a/", "b/"):
            names = [n for n in grads if n.startswith(group)]
            norm = np.sqrt(sum((grads[n].astype(np.float64) ** 2).sum() for n in names))
            for n in names:
                g = grads[n] * min(1.0, config.clip_norm / norm)
                m[n] = config.b1 * m[n] + (1 - config.b1) * g
                v[n] = config.b2 * v[n] + (1 - config.b2) * g**2
                m_hat = m[n] / (1 - config.b1 ** (t + 1))
                v_hat = v[n] / (1 - config.b2 ** (t + 1))
                change = m_hat / (np.sqrt(v_hat) + config.epsilon)
                if n.endswith("/kernel"):
                    change = change + config.weight_decay * params[n]
                params[n] = params[n] - float(rates[t]) * multipliers[n] * change
    return params


def test_adamw_against_numpy():
    config = settings(warmup_steps=2, weight_decay=0.1, clip_norm=0.7, clip_groups=("a/.*",))
    trained = {"a/kernel": 1.0, "a/bias": 0.5, "b/kernel": 2.0, "b/embedding": 0.0}
    params, gradients = draw(1), [draw(seed, 2.0) for seed in range(2, 7)]
    optimizer = optim.make_optimizer(config, trained, SHAPES, steps=5)
    ours, state = params, jax.jit(optimizer.init)(params)

    @jax.jit
    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for grads in gradients:
        ours, state = step(grads, state, ours)
    expected = adamw(params, gradients, config, trained, 5)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], expected[name], rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(ours["b/embedding"], params["b/embedding"])


def test_state_tree_does_not_depend_on_the_settings():
    """A run may be resumed without clipping or decay."""
    trained, params = dict.fromkeys(SHAPES, 1.0), draw(0)
    trees = []
    for changes in (
        {"clip_norm": 0.0},
        {"weight_decay": 0.1},
        {"warmup_steps": 3, "schedule": "constant"},
    ):
        optimizer = optim.make_optimizer(settings(**changes), trained, SHAPES, 5)
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(optimizer.init, params))
        names = [str(path) for path, _ in leaves]
        trees.append(names)
    assert trees[0] == trees[1] == trees[2] and len(trees[0]) == 2 * len(SHAPES) + 2


def test_clip_group_without_parameters():
    with pytest.raises(OptimError, match=r"clip_groups \['discriminators/\.\*'\]"):
        optim.make_optimizer(
            settings(clip_groups=("a/.*", "discriminators/.*")),
            dict.fromkeys(SHAPES, 1.0),
            SHAPES,
            5,
        )


def test_ema():
    ema, update = {"a": np.zeros(3, np.float32)}, jax.jit(optim.update_ema, static_argnums=2)
    expected = np.zeros(3)
    for step in range(30):
        params = {"a": np.full(3, step + 1, np.float32)}
        ema = update(ema, params, 0.6, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
    np.testing.assert_allclose(ema["a"], expected, rtol=1e-6)
    assert ema["a"].dtype == jnp.float32
