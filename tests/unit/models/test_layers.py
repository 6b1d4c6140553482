"""Shared layers against PyTorch's, and independence from padding."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.models import layers


@pytest.mark.parametrize("kernel, stride", [(3, 4), (3, 2), (4, 2), (7, 3), (1, 1)])
def test_conv_transpose_equals_torch(kernel, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 6)).astype(np.float32)
    module = layers.ConvTranspose(4, kernel, stride)
    weight = rng.normal(size=(kernel, 6, 4)).astype(np.float32)
    params = {"params": {"kernel": weight, "bias": np.arange(4.0, dtype=np.float32)}}
    want = torch.nn.functional.conv_transpose1d(
        torch.tensor(x).transpose(1, 2),
        torch.tensor(weight).permute(1, 2, 0),
        torch.arange(4.0),
        stride=stride,
    ).transpose(1, 2)
    got = jax.jit(module.apply)(params, x)
    assert got.shape == (2, 4 * stride + kernel, 4)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, shapes)


def test_item_norm_equals_group_norm_within_the_extent():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, size=(2, 9, 5)).astype(np.float32)
    extent = np.array([9, 6], np.int32)
    module = layers.ItemNorm()
    got, _ = jax.jit(module.init_with_output)(jax.random.key(0), x, extent)
    got = np.asarray(got)
    for i, n in enumerate(extent):
        want = torch.nn.functional.group_norm(torch.tensor(x[i : i + 1, :n]).transpose(1, 2), 1)
        np.testing.assert_allclose(got[i, :n], want.transpose(1, 2)[0].numpy(), atol=1e-5)


resize_to_400 = jax.jit(lambda *args: layers.nearest_resize(*args, size=400))


@given(st.integers(1, 400), st.integers(1, 400))
def test_nearest_resize_equals_torch(frames, out):
    x = np.full(400, -1, np.float32)  # one shape, so that it compiles once
    x[:frames] = np.arange(frames)
    want = torch.nn.functional.interpolate(torch.tensor(x[:frames])[None, None], size=out)[0, 0]
    got = resize_to_400(x[None, :, None], np.array([frames], np.int32), np.array([out], np.int32))
    np.testing.assert_array_equal(np.asarray(got)[0, :out, 0], want.numpy())


def test_sinusoids_equal_whispers():
    from transformers.models.whisper.modeling_whisper import sinusoids

    np.testing.assert_allclose(layers.sinusoids(1500, 64), sinusoids(1500, 64).numpy(), atol=2e-4)


class Table(nn.Module):
    """A module with a position table."""

    def setup(self):
        self.table = layers.position_table(self, 50, 16)

    def __call__(self):
        return self.table


def test_only_a_rounded_sinusoidal_table_is_replaced_by_the_exact_one():
    exact = layers.sinusoids(50, 16)
    other = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)

    def used(table) -> np.ndarray:
        buffers = {"buffers": {"positional_embedding": jnp.asarray(table)}}
        return np.asarray(jax.jit(Table().apply)(buffers))

    rounded = jnp.asarray(exact, jnp.bfloat16)
    assert np.abs(np.asarray(rounded, np.float32) - exact).max() > 1e-3
    np.testing.assert_array_equal(used(rounded), exact)
    for table in (jnp.asarray(other, jnp.bfloat16), other, exact.astype(np.float16)):
        np.testing.assert_array_equal(used(table), np.asarray(table, np.float32))


def test_too_many_frames_for_the_position_table_is_an_error():
    with pytest.raises(ValueError, match="11 frames, but the position table has only 10"):
        layers.add_positions(jnp.zeros((1, 11, 4)), jnp.zeros((10, 4)))


def test_unknown_remat_policy_is_an_error():
    with pytest.raises(ValueError, match="remat policy 'everything'"):
        layers.stack_layers(layers.TransformerLayer, 2, in_axes=0, remat="everything")


def test_attention_ignores_masked_keys_and_groups_heads():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 3, 6, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, 4, 2, 8)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], bool)[None, None]
    got = jax.jit(layers.attention)(q, k, v, mask)
    want = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(a).transpose(1, 2) for a in (q, k, v)),
        attn_mask=torch.tensor(mask),
        enable_gqa=True,
    ).transpose(1, 2)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


@pytest.mark.parametrize("shape, width", [((2, 3, 4), 6), ((5, 6), 4), ((4,), 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_product_has_the_values_and_gradients_of_matmul(shape, width, dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape, dtype)
    kernel = jax.random.normal(keys[1], (shape[-1], width), dtype)
    weights = jax.random.normal(keys[2], (*shape[:-1], width))

    def of(function):
        def loss(x, kernel):
            return jnp.sum(weights * function(x, kernel))

        return jax.value_and_grad(loss, (0, 1))(x, kernel)

    got, want = of(layers.product), of(jnp.matmul)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=1e-2, atol=1e-5)


def test_products_are_kept_by_the_policy_for_dots():
    module, x = layers.dense(3), jnp.ones((2, 4))
    params = module.init(jax.random.key(0), x)

    @functools.partial(jax.checkpoint, policy=layers.REMAT_POLICIES["dots"])
    def loss(params):
        return jnp.sum(jnp.sin(module.apply(params, x)))

    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert program.count("= dot_general") == 2  # the product and the kernel's gradient
