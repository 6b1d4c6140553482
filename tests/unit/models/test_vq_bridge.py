"""Bridge and residual quantiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.models.vq_bridge import nearest_code


def bridge(model, x, lengths):
    return model.vq_bridge(x, lengths)


def quantize(model, z, lengths):
    return model.vq_bridge.quantize(z, lengths)


def dequantize(model, codes, lengths):
    return model.vq_bridge.dequantize(codes, lengths)


def test_nearest_code_is_the_nearest_row():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 50, 16)).astype(np.float32)
    table = rng.normal(size=(300, 16)).astype(np.float32)
    distance = ((x[:, :, None].astype(np.float64) - table) ** 2).sum(-1)
    np.testing.assert_array_equal(jax.jit(nearest_code)(x, table), distance.argmin(-1))


def test_residuals_follow_one_another(run, variables, config):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 6, 128)).astype(np.float32)
    lengths = np.array([6, 4], np.int32)
    out = run(quantize, z, lengths)
    residual = np.where(np.arange(6)[None, :, None] < lengths[:, None, None], z, 0)
    for q in range(len(config.vq_bridge.codebook_sizes)):
        table = np.asarray(variables["codebook"]["vq_bridge"][f"embed_{q}"])
        np.testing.assert_allclose(out.residuals_QBNE[q], residual, atol=1e-5)
        codes = np.asarray(out.codes_BNQ[..., q])
        distance = ((residual[:, :, None].astype(np.float64) - table) ** 2).sum(-1)
        np.testing.assert_array_equal(codes[0], distance.argmin(-1)[0])
        np.testing.assert_array_equal(codes[1, :4], distance.argmin(-1)[1, :4])
        residual = residual - table[distance.argmin(-1)]
    assert (np.asarray(out.codes_BNQ[1, 4:]) == 0).all()
    np.testing.assert_allclose(out.z_BNE, run(dequantize, out.codes_BNQ, lengths), atol=1e-5)


def test_straight_through(config, variables):
    """The quantised features pass gradients to their input unchanged, and none past the length."""
    z = np.random.default_rng(0).normal(size=(1, 5, 128)).astype(np.float32)
    lengths = np.array([3], np.int32)
    weight = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)

    def loss(z):
        quantized = BaichuanAudio(config).apply(variables, z, lengths, method=quantize)
        return jnp.sum(quantized.z_BNE * weight)

    grad = np.asarray(jax.jit(jax.grad(loss))(z))
    np.testing.assert_allclose(grad[:, :3], weight[:, :3], atol=1e-6)
    assert (grad[:, 3:] == 0).all()


def test_nothing_depends_on_padding(run):
    x = np.random.default_rng(0).normal(size=(1, 10, 32)).astype(np.float32)
    out, quantized, lengths = run(bridge, x, np.array([10], np.int32))
    assert lengths.tolist() == [2]  # the incomplete third group is dropped
    padded = np.full((2, 17, 32), np.nan, np.float32)
    padded[0, :10] = x[0]
    out2, quantized2, lengths2 = run(bridge, padded, np.array([10, 0], np.int32))
    assert lengths2.tolist() == [2, 0]
    np.testing.assert_array_equal(quantized2.codes_BNQ[0, :2], quantized.codes_BNQ[0, :2])
    np.testing.assert_allclose(out2[0, :2], out[0, :2], atol=1e-6)
    assert np.isfinite(np.asarray(out2)).all()


def test_codes_past_the_length_may_be_anything(run):
    codes = np.zeros((1, 4, 4), np.int32)
    wild = codes.copy()
    wild[:, 2:] = 10**6
    lengths = np.array([2], np.int32)
    np.testing.assert_array_equal(run(dequantize, wild, lengths), run(dequantize, codes, lengths))
