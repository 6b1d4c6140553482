"""Audio head: the depth cache against the naive algorithm, its cost, causality."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models.audio_head import AudioHead, AudioHeadConfig
from ba_jax.models.baichuan_audio import BaichuanAudio


def choose(q, logits):
    """Greedy, of JAX's arrays and of NumPy's."""
    return (logits if q == 0 else logits[:, :-1]).argmax(axis=-1)


def hidden_of(rows: int, width: int = 128) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


def naive_frame(run, hidden: np.ndarray, depth: int) -> np.ndarray:
    """Compute a frame like the reference: all depths again for each code."""
    codes = np.zeros((len(hidden), depth), np.int32)
    for q in range(depth):
        logits = run("audio_logits", hidden, codes)
        codes[:, q] = choose(q, logits[q])
    return codes


def test_the_cached_head_equals_the_naive_one(run, config):
    hidden = hidden_of(5)
    got = run("generate_frame", hidden, choose=choose)
    np.testing.assert_array_equal(got, naive_frame(run, hidden, config.audio_head.depth))


def test_logits_of_the_cached_head_equal_the_teacher_forced_ones(run, config, variables):
    model = BaichuanAudio(config)
    hidden = hidden_of(4)
    codes = np.random.default_rng(1).integers(0, 8, (4, config.audio_head.depth)).astype(np.int32)
    seen = []

    def forced(q, logits):
        seen.append(logits)
        return codes[:, q]

    def cached_logits(variables):
        model.apply(variables, hidden, choose=forced, method="generate_frame")
        return seen

    cached = jax.jit(cached_logits)(variables)
    for got, want in zip(cached, run("audio_logits", hidden, codes), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_fewer_depths_give_the_same_logits(run, config):
    hidden = hidden_of(4)
    codes = np.random.default_rng(1).integers(0, 8, (4, config.audio_head.depth)).astype(np.int32)
    want = run("audio_logits", hidden, codes)
    for depths in (1, 3):
        got = run("audio_logits", hidden, codes, depths=depths)
        assert len(got) == depths
        for got_q, want_q in zip(got, want, strict=False):
            np.testing.assert_allclose(got_q, want_q, atol=1e-5)


def test_a_frame_costs_one_evaluation_a_depth(config, variables):
    """Each depth's feed-forward runs once, on one position: 4 evaluations, not 16."""
    calls = []

    def count(next_call, args, kwargs, context):
        if context.module.name and context.module.name.startswith("ffn_in_"):
            calls.append((context.module.parent.name, context.module.name, args[0].shape))
        return next_call(*args, **kwargs)

    def generate(variables):
        return BaichuanAudio(config).apply(
            variables, hidden_of(2), choose=choose, method="generate_frame"
        )

    with nn.intercept_methods(count):
        jax.eval_shape(generate, variables)
    head = config.audio_head
    want = [
        (f"layers_{layer}", f"ffn_in_{depth}", (2, 128))
        for depth in range(head.depth)
        for layer in range(head.layers)
    ]
    assert calls == want


def test_a_frame_reads_each_weight_once():
    """Bytes that the compiled frame touches stay near the weights' own, at a width where they
    dominate: nothing is stacked, sliced or copied on the way to a product."""
    config = AudioHeadConfig(width=512, layers=2, codebook_sizes=(64,) * 4)
    head = AudioHead(config)
    hidden = hidden_of(1, 512)
    table = jax.ShapeDtypeStruct((4, 64, 512), jnp.float32)
    params = jax.eval_shape(head.init, jax.random.key(0), hidden, np.zeros((1, 4, 512), "f4"))

    def frame(params, table, hidden):
        def embed(q, code):
            return table[q][code]

        return head.apply(params, hidden, embed, choose, method="generate")

    cost = jax.jit(frame).lower(params, table, hidden).compile().cost_analysis()
    # q, k, v and out are shared by all depths: each depth reads them again.
    per_layer = 4 * 512 * 512 * config.depth + 2 * 512 * 1024 * config.depth
    floor = 4 * (config.layers * per_layer + config.depth * 512 * 65)
    assert floor < cost["bytes accessed"] < 1.15 * floor


def test_causality_by_gradient(config, variables):
    params = {c: v["audio_head"] for c, v in variables.items() if "audio_head" in v}
    depth = config.audio_head.depth
    embeddings = np.random.default_rng(1).normal(size=(1, depth, 128)).astype(np.float32)

    def sums(embeddings):
        logits = AudioHead(config.audio_head).apply(params, hidden_of(1), embeddings)
        return jnp.stack([jnp.sum(x * jnp.arange(x.shape[-1])[None]) for x in logits])

    jacobian = np.abs(np.asarray(jax.jit(jax.jacobian(sums))(embeddings))).sum(axis=(1, 3))
    for i in range(depth):
        assert (jacobian[i, :i] > 0).all(), i
        assert (jacobian[i, i:] == 0).all(), i


def test_bfloat16_stays_near_float32(run, config):
    codes = np.zeros((3, config.audio_head.depth), np.int32)
    want = run("audio_logits", hidden_of(3), codes)
    got = run("audio_logits", hidden_of(3), codes, model=BaichuanAudio(config, dtype=jnp.bfloat16))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        assert np.abs(a - b).max() < 0.06 * np.abs(b).max()


def test_width_must_hold_whole_heads():
    with pytest.raises(ValueError, match="width 200 is not a multiple of head_dim 128"):
        AudioHeadConfig(width=200, layers=1, codebook_sizes=(8,))
