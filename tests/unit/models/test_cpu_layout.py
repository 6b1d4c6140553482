"""The layout for generation on one CPU: the same values, the same results."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models import cpu_layout
from ba_jax.models.baichuan_audio import BaichuanAudio


@pytest.fixture(scope="module")
def laid_out(variables):
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    cpu_layout.lay_out(params)
    return {**variables, "params": params}


def test_values_do_not_change(config, variables, laid_out):
    before, after = jax.device_get((variables["params"], laid_out["params"]))
    assert set(after) == set(before)
    stacked = before["llm"]["layers"]
    names = {f"layers_{i}" for i in range(config.llm.layers)}
    assert set(after["llm"]) == set(before["llm"]) - {"layers"} | names
    for i in range(config.llm.layers):
        for name, dense in after["llm"][f"layers_{i}"].items():
            assert set(dense) == {{"kernel": "kernel_OI"}.get(n, n) for n in stacked[name]}
            for leaf in stacked[name]:
                want = stacked[name][leaf][i]
                got = dense["kernel_OI"].T if leaf == "kernel" else dense[leaf]
                np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(
        after["audio_head"]["classifiers_0"]["kernel_OI"].T,
        before["audio_head"]["classifiers_0"]["kernel"],
    )
    for name in set(before) - {"llm", "audio_head"}:
        assert jax.tree.all(jax.tree.map(np.array_equal, after[name], before[name]))


def test_absent_components_are_skipped():
    params = {"audio_embed": {"kernel": jnp.ones((2, 3))}}
    cpu_layout.lay_out(params)
    assert set(params["audio_embed"]) == {"kernel"}


def test_logits_do_not_change(config, variables, laid_out):
    """Text logits of hidden states of any rank, and a frame's codes, teacher-forced and sampled."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, config.llm.width)).astype(np.float32)
    codes = rng.integers(0, 8, (3, config.audio_head.depth)).astype(np.int32)
    model = BaichuanAudio(config)

    def choose(q, logits):
        return jnp.argmax(logits, axis=-1)

    @jax.jit
    def run(variables):
        def apply(method, *args, **static):
            return model.apply(variables, *args, method=method, **static)

        ranks = (hidden, hidden[:, None], hidden[0])
        text = [apply("text_logits", states) for states in ranks]
        audio = apply("audio_logits", hidden, codes)
        return [*text, *audio], apply("generate_frame", hidden, choose=choose)

    (want, want_frame), (got, frame) = run(variables), run(laid_out)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(frame, want_frame)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_equals_linen(dtype):
    x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    options = {"dtype": dtype, "param_dtype": jnp.float32}
    theirs = nn.Dense(6, **options)
    first = jax.jit(theirs.init_with_output)(jax.random.key(0), x)
    want, variables = jax.device_get(first)
    ours = cpu_layout.Dense(6, **options)
    got, initial = jax.jit(ours.init_with_output)(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(np.array_equal, initial, variables))
    assert want.dtype == dtype
    np.testing.assert_array_equal(got, want)
    params = variables["params"]
    turned = {"kernel_OI": params["kernel"].T, "bias": params["bias"]}
    got = jax.jit(ours.apply)({"params": turned}, x)
    assert got.dtype == dtype
    np.testing.assert_allclose(
        np.float32(got), np.float32(want), atol=1e-6 if dtype == jnp.float32 else 2e-2
    )
