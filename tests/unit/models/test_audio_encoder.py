"""Audio encoder: lengths, buckets, extents."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models.baichuan_audio import BaichuanAudio


def encode(model, mel, lengths, extent=None):
    return model.audio_encoder(mel, lengths, extent)


def features(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, frames, 128)).astype(np.float32)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 31])
def test_result_does_not_depend_on_the_bucket(run, frames):
    mel = features(frames)
    alone, alone_len = run(encode, mel, np.array([frames], np.int32))
    batch = np.full((3, 40, 128), np.nan, np.float32)  # padding is ignored
    batch[0, :frames] = mel[0]
    batch[1, :40] = features(40, 1)[0]
    out, lengths = run(encode, batch, np.array([frames, 40, 0], np.int32))
    assert lengths.tolist() == [alone_len[0], 20, 0]
    assert alone_len[0] == (frames - 1) // 2 + 1
    np.testing.assert_allclose(out[0, : lengths[0]], alone[0], atol=5e-6)
    assert (np.asarray(out[0, lengths[0] :]) == 0).all()
    assert (np.asarray(out[2]) == 0).all()


def test_extent_reproduces_the_reference_batch(run):
    """An odd length: its last frame sees the first convolution's tail up to the extent."""
    mel = np.zeros((1, 12, 128), np.float32)
    mel[:, :7] = features(7)
    alone, _ = run(encode, mel, np.array([7], np.int32))
    batched, _ = run(encode, mel, np.array([7], np.int32), np.array([12], np.int32))
    assert np.abs(np.asarray(alone - batched)[0, :4]).max() > 1e-3


def test_bfloat16_stays_near_float32(run, config):
    mel, lengths = features(30), np.array([30], np.int32)
    want, _ = run(encode, mel, lengths)
    got, _ = run(encode, mel, lengths, model=BaichuanAudio(config, dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    error = np.abs(np.asarray(got, np.float32) - np.asarray(want))
    assert error.max() < 0.05 * np.abs(np.asarray(want)).max()


def test_wrong_bins_and_too_long_clips_are_errors(run):
    with pytest.raises(ValueError, match="expected 128 bins"):
        run(encode, np.zeros((1, 4, 80), np.float32), np.array([4], np.int32))
    with pytest.raises(ValueError, match="1501 frames, but the position table has only 1500"):
        run(encode, np.zeros((1, 3001, 128), np.float32), np.array([3001], np.int32))
