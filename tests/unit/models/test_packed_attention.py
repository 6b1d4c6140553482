"""Kinds of attention: agreement on packed rows, and supported platforms and sizes."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models import layers
from ba_jax.models.llm import LLM, LLMConfig, apply_rope, packed_mask, rope_table
from ba_jax.models.packed_attention import (
    INTERPRETED,
    SPLASH,
    AttentionError,
    on_platform,
    packed_attention,
)

LENGTH, HEADS, KV_HEADS, HEAD_DIM = 256, 2, 1, 128
# Two examples, the second across blocks of 128, and padding at the end of a row.
SEGMENTS_BL = np.repeat([[1, 2, 0], [1, 1, 1]], [100, 120, 36], axis=1).astype(np.int32)
CONFIG = LLMConfig(
    vocab_size=16,
    width=16,
    layers=1,
    heads=HEADS,
    kv_heads=KV_HEADS,
    head_dim=HEAD_DIM,
    ffn_width=16,
)


def draw(heads: int, seed: int) -> np.ndarray:
    shape = (2, LENGTH, heads, HEAD_DIM)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def values_and_gradients(attend):
    """Values and gradients at real positions, under random weights."""
    weights = draw(HEADS, 3) * (SEGMENTS_BL > 0)[:, :, None, None]

    def loss(q, k, v):
        y = attend(q, k, v)
        return jnp.sum(y * weights), y * (weights != 0)

    function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
    (_, y), gradients = function(draw(HEADS, 0), draw(KV_HEADS, 1), draw(KV_HEADS, 2))
    return [y, *gradients]


@pytest.fixture(scope="module")
def plain():
    mask = packed_mask(jnp.asarray(SEGMENTS_BL))
    return values_and_gradients(lambda q, k, v: layers.attention(q, k, v, mask))


@pytest.mark.parametrize("kind", [*SPLASH, "splash:128"])
def test_splash_is_attention(plain, kind):
    kind = on_platform(kind, "cpu", jnp.float32)
    got = values_and_gradients(
        lambda q, k, v: packed_attention(kind, q, k, v, jnp.asarray(SEGMENTS_BL))
    )
    for ours, expected in zip(got, plain, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}])
def test_the_language_model_is_the_same_with_splash(options):
    """Heads are axes of its products there, and a permutation exchanges the halves of RoPE."""
    config = dataclasses.replace(CONFIG, qkv_bias=True, **options)
    x = np.random.default_rng(4).normal(size=(2, LENGTH, 16)).astype(np.float32)
    shapes = jax.eval_shape(LLM(config).init, jax.random.key(0), x)
    rng = np.random.default_rng(5)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape, scale=0.3), shapes)
    positions = np.tile(np.arange(LENGTH), (2, 1))
    real = (SEGMENTS_BL > 0)[:, :, None]

    def loss(variables, kind):
        y = LLM(config, attention=kind).apply(variables, x, positions, SEGMENTS_BL)[0]
        return jnp.sum(jnp.where(real, jnp.square(y), 0)), jnp.where(real, y, 0)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    want, got = (jax.tree.leaves(run(variables, kind)) for kind in ("xla", INTERPRETED))
    for ours, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rope_by_a_product_is_exact(dtype):
    x = jnp.asarray(draw(HEADS, 6), dtype)
    table = rope_table(jnp.arange(LENGTH)[None], HEAD_DIM, 1e6)
    got, want = (np.asarray(apply_rope(x, table, flag), np.float32) for flag in (True, False))
    np.testing.assert_array_equal(got, want)


def test_cudnn_gets_the_same_mask(plain, monkeypatch):
    """With XLA in place of cuDNN."""
    whole = jax.nn.dot_product_attention

    def instead(*args, implementation, **options):
        assert implementation == "cudnn"
        return whole(*args, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    got = values_and_gradients(
        lambda q, k, v: packed_attention("cudnn", q, k, v, jnp.asarray(SEGMENTS_BL))
    )
    for ours, expected in zip(got, plain, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@functools.cache
def jaxpr(remat: str) -> str:
    model = LLM(CONFIG, attention=INTERPRETED, remat=remat)
    x = jnp.ones((1, 128, 16))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return str(jax.make_jaxpr(jax.grad(lambda v: jnp.sum(model.apply(v, x)[0])))(shapes))


def test_the_language_model_uses_the_requested_kind():
    """A remat policy stores the kernel's residuals; the backward pass does not recompute them."""
    assert jaxpr("none").count("pallas_call[") == 3
    policies = ("full", "attention", "attention_offload")
    counts = {remat: jaxpr(remat).count("name[name=attention]") for remat in policies}
    assert counts["attention"] == counts["attention_offload"] == 2 < counts["full"]
    assert "host" in jaxpr("attention_offload") and "host" not in jaxpr("attention")


@pytest.mark.parametrize(
    ("kind", "platform", "dtype", "message"),
    [
        ("flash", "tpu", "float32", "attention 'flash', expected one of"),
        ("xla:256", "tpu", "float32", "attention 'xla:256', expected one of"),
        ("splash:100", "tpu", "float32", "'splash:100': expected a block of a multiple of 128"),
        ("splash:", "tpu", "float32", "'splash:': expected a block of a multiple of 128"),
        ("splash", "gpu", "float32", "'splash' on gpu: expected TPUs"),
        ("cudnn", "tpu", "bfloat16", "'cudnn' on tpu: expected NVIDIA GPUs"),
        ("cudnn", "cpu", "bfloat16", "'cudnn' on cpu: expected NVIDIA GPUs"),
        ("cudnn", "gpu", "float32", "'cudnn' in float32: expected dtype bfloat16"),
    ],
)
def test_unsupported_kinds(kind, platform, dtype, message):
    with pytest.raises(AttentionError, match=message):
        on_platform(kind, platform, jnp.dtype(dtype))


def test_supported_kinds():
    assert on_platform("splash", "tpu", jnp.float32) == "splash"
    assert on_platform("splash", "cpu", jnp.float32) == INTERPRETED
    assert on_platform("splash_fused:256", "tpu", jnp.float32) == "splash_fused:256"
    assert on_platform("splash:128", "cpu", jnp.float32) == f"{INTERPRETED}:128"
    assert on_platform("cudnn", "gpu", jnp.bfloat16) == "cudnn"
    assert on_platform("xla", "gpu", jnp.float32) == "xla"


@pytest.mark.parametrize(
    ("length", "head_dim", "message"),
    [(128, 64, "head_dim 64: expected a multiple of 128"), (192, 128, "on 192 positions a device")],
)
def test_sizes_that_splash_does_not_accept(length, head_dim, message):
    q = jnp.zeros((1, length, 2, head_dim))
    with pytest.raises(AttentionError, match=message):
        packed_attention("splash", q, q, q, jnp.ones((1, length), jnp.int32))
