"""Masks of blocks, and the cache: keys and values in slots modulo the capacity."""

import flax.linen as nn
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from ba_jax.models.streaming import (
    CACHE,
    UPDATE,
    Blocks,
    Pieces,
    empty_cache,
    extend_keys_values,
    read_cache,
    update_cache,
    write_cache,
)


def block_of(sizes, frame):
    """Find (first frame, frame past the end) of a block by counting."""
    start, number = 0, 0
    while start + sizes[min(number, len(sizes) - 1)] <= frame:
        start += sizes[min(number, len(sizes) - 1)]
        number += 1
    return start, start + sizes[min(number, len(sizes) - 1)]


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.lists(st.integers(1, 3).map(lambda n: 4 * n), min_size=1, max_size=3),
    st.sampled_from((1, 6, 27, 40)),  # few sizes: JAX compiles for each
    st.one_of(st.none(), st.integers(12, 20)),
    st.booleans(),
)
def test_masks(sizes, frames, lookback, causal):
    blocks = Blocks(tuple(sizes), lookback)
    starts, ends = blocks.bounds(frames)
    length = max(1, frames - 2)
    mask = np.asarray(blocks.mask(np.array([length]), frames, causal=causal))[0, 0]
    for query in range(frames):
        start, end = block_of(sizes, query)
        assert (starts[query], ends[query]) == (start, end)
        for key in range(frames):
            seen = key < length and (key <= query if causal else key < end)
            seen = seen and (lookback is None or key >= start - lookback)
            assert mask[query, key] == seen


class Attend(nn.Module):
    """Attention's keys, values and mask alone."""

    @nn.compact
    def __call__(self, x_BTHD, mask_B1TT, pieces):
        return extend_keys_values(self, x_BTHD, -x_BTHD, mask_B1TT, pieces)


def pieces_at(start, active=True):
    start = np.array(start)
    return Pieces(start, np.zeros(start.shape, bool), np.broadcast_to(active, start.shape))


def test_keys_and_values_before_a_piece():
    x = np.ones((3, 2, 1, 4), np.float32)
    cache = {"key": np.full((3, 6, 1, 4), 2, "f4"), "value": np.full((3, 6, 1, 4), 3, "f4")}
    mask = np.broadcast_to(np.tri(2, dtype=bool), (3, 1, 2, 2))
    args = x, mask, pieces_at([0, 5, 9])
    attend = jax.jit(lambda *args: Attend().apply(*args, mutable=[UPDATE]))
    (keys, values, seen), changed = jax.device_get(attend({CACHE: cache}, *args))
    assert keys.shape == values.shape == (3, 8, 1, 4)
    assert keys[0, :, 0, 0].tolist() == [2] * 6 + [1] * 2
    assert values[0, :, 0, 0].tolist() == [3] * 6 + [-1] * 2
    assert seen[:, 0, 0, :6].sum(axis=1).tolist() == [0, 5, 6]
    np.testing.assert_array_equal(seen[..., 6:], mask)
    np.testing.assert_array_equal(changed[UPDATE]["value"], -x)
    # without a cache, the piece alone
    (keys, _, seen), _ = attend({}, *args)
    assert keys.shape == x.shape and seen.shape == mask.shape


class Tail(nn.Module):
    """Return the last frame before the piece."""

    @nn.compact
    def __call__(self, x_BTC, pieces):
        before = read_cache(self, "tail", (len(x_BTC), 1, x_BTC.shape[2]), x_BTC.dtype, pieces)
        write_cache(self, "tail", x_BTC[:, -1:])
        return before


def test_a_segment_starts_from_zeros():
    x, pieces = np.ones((2, 3, 5), np.float32), pieces_at([0, 4])
    cache = {"tail": np.full((2, 1, 5), 7, np.float32)}
    tail = jax.jit(lambda *args: Tail().apply(*args, mutable=[UPDATE]))
    before, changed = jax.device_get(tail({CACHE: cache}, x, pieces))
    assert before[:, 0, 0].tolist() == [0, 7]
    np.testing.assert_array_equal(changed[UPDATE]["tail"], x[:, -1:])
    before, _ = tail({}, x, pieces)
    assert not np.asarray(before).any()


def test_update_of_the_cache():
    """Frame t goes to slot t modulo the capacity; rows without a piece keep everything."""

    def cache(fill, frames=6):
        kv = np.full((2, 4, frames, 1, 1), fill, np.float32)  # 2 layers, 2 copies of 2 rows
        return {"key": kv, "value": -kv, "conv_tail": np.full((3, 4, 2, 5), fill, np.float32)}

    update_of = jax.jit(update_cache)
    empty = empty_cache(cache(1, frames=3), capacity=6)
    assert jax.tree.map(np.shape, empty) == jax.tree.map(np.shape, cache(1))
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(empty))
    frames = np.broadcast_to(np.arange(3, dtype=np.float32)[:, None, None], (2, 4, 3, 1, 1))
    update = {**cache(2), "key": 10 + frames, "value": 20 + frames}
    pieces = pieces_at([5, 0], np.array([True, False]))
    after = jax.device_get(update_of(cache(1), update, pieces, np.array([3, 3])))
    for copy in (0, 2):
        assert after["key"][1, copy, :, 0, 0].tolist() == [11, 12, 1, 1, 1, 10]
        assert after["value"][0, copy, :, 0, 0].tolist() == [21, 22, -1, -1, -1, 20]
        assert (after["key"][:, copy + 1] == 1).all()
        assert (after["conv_tail"][:, copy] == 2).all()
        assert (after["conv_tail"][:, copy + 1] == 1).all()
    short = jax.device_get(update_of(cache(1), update, pieces, np.array([1, 1])))
    assert short["key"][1, 0, :, 0, 0].tolist() == [1, 1, 1, 1, 1, 10]


def test_bad_settings():
    for sizes in ((), (6,), (0,)):
        with pytest.raises(ValueError, match="expected multiples of 4"):
            Blocks(sizes)
    with pytest.raises(ValueError, match="look-back of 8 frames: expected at least a block, 16"):
        Blocks((4, 16), 8)
    with pytest.raises(ValueError, match="a lead of 3 code frames: expected 1 to"):
        Blocks((8,), None, 3)
