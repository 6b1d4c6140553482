"""Masks by blocks, and what a piece remembers: frames in slots modulo the capacity."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ba_jax.models.blocks import Blocks, KeyValue, Place, advance, begin, piece_mask


def block_of(sizes, frame):
    """(first frame, frame past the end) by counting."""
    start, number = 0, 0
    while start + sizes[min(number, len(sizes) - 1)] <= frame:
        start += sizes[min(number, len(sizes) - 1)]
        number += 1
    return start, start + sizes[min(number, len(sizes) - 1)]


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.lists(st.integers(1, 3).map(lambda n: 4 * n), min_size=1, max_size=3),
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(12, 20)),
    st.booleans(),
)
def test_masks(sizes, frames, lookback, causal):
    blocks = Blocks(tuple(sizes), lookback)
    starts, ends = blocks.bounds(frames)
    length = max(1, frames - 2)
    mask = np.asarray(blocks.mask(jnp.array([length]), frames, causal=causal))[0, 0]
    for query in range(frames):
        start, end = block_of(sizes, query)
        assert (starts[query], ends[query]) == (start, end)
        for key in range(frames):
            seen = key < length and (key <= query if causal else key < end)
            seen = seen and (lookback is None or key >= start - lookback)
            assert mask[query, key] == seen


def test_a_pieces_mask_shows_the_past_and_itself():
    starts, lengths = jnp.array([0, 5, 9]), jnp.array([3, 2, 3])
    mask = np.asarray(piece_mask(starts, 6, lengths, 3, causal=True))[:, 0]
    assert mask.shape == (3, 3, 9)
    assert mask[:, 0, :6].sum(axis=1).tolist() == [0, 5, 6]
    np.testing.assert_array_equal(mask[0, :, 6:], np.tril(np.ones((3, 3), bool)))
    assert mask[1, 2, 6:].tolist() == [True, True, False]
    whole = np.asarray(piece_mask(starts, 6, lengths, 3, causal=False))[:, 0]
    assert whole[0, :, 6:].all() and whole[1, 0, 6:].tolist() == [True, True, False]


def test_what_is_remembered():
    """Frame t in slot t modulo the capacity; rows without a piece keep everything."""

    def past(fill):
        kv = jnp.full((2, 4, 6, 1, 1), fill)  # 2 layers, 2 copies of 2 rows, 6 slots
        return {"kv": KeyValue(kv, -kv), "tail": jnp.full((3, 4, 2, 5), fill), "sum": jnp.ones(2)}

    own = jnp.arange(3.0).reshape(1, 1, 3, 1, 1) + jnp.zeros((2, 4, 1, 1, 1))
    new = {**past(2.0), "kv": KeyValue(10 + own, 20 + own), "sum": 2 * jnp.ones(2)}
    place = Place(jnp.array([5, 0]), jnp.zeros(2, bool), jnp.array([True, False]))
    after = advance(past(1.0), new, place, jnp.array([3, 3]))
    for copy in (0, 2):
        assert after["kv"].key[1, copy, :, 0, 0].tolist() == [11, 12, 1, 1, 1, 10]
        assert after["kv"].value[0, copy, :, 0, 0].tolist() == [21, 22, -1, -1, -1, 20]
        assert (after["kv"].key[:, copy + 1] == 1).all()
        assert (after["tail"][:, copy] == 2).all() and (after["tail"][:, copy + 1] == 1).all()
    assert after["sum"].tolist() == [2, 1]
    short = advance(past(1.0), new, place, jnp.array([1, 1]))
    assert short["kv"].key[1, 0, :, 0, 0].tolist() == [1, 1, 1, 1, 1, 10]
    begun = begin(after, jnp.array([0, 4]))
    assert begun["sum"].tolist() == [0, 1] and (begun["tail"][:, 0] == 0).all()
    np.testing.assert_array_equal(begun["kv"].key, after["kv"].key)


def test_bad_settings():
    for sizes in ((), (6,), (0,)):
        with pytest.raises(ValueError, match="expected multiples of 4"):
            Blocks(sizes)
    with pytest.raises(ValueError, match="look-back of 8 frames: expected at least a block, 16"):
        Blocks((4, 16), 8)
    with pytest.raises(ValueError, match="led in by 3 frames of codes: expected 1 to"):
        Blocks((8,), None, 3)
