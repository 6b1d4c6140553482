"""Batches of few shapes."""

import numpy as np
import pytest

from ba_jax.sampling.batching import LengthError, batches, pad


def test_batches():
    assert list(batches([5, 1, 9, 3], (4, 10), 2)) == [(4, [1, 3]), (10, [0, 2])]
    with pytest.raises(LengthError, match="mel 1 is 11 long, expected 1 to 10"):
        list(batches([5, 11], (4, 10), 2, "mel"))


def test_pad_repeats_the_first_item():
    stacked, lengths = pad([np.ones((2, 3)), np.ones((4, 3))], 3, 5)
    assert stacked.shape == (3, 5, 3) and lengths.tolist() == [2, 4, 2]
    assert stacked.sum(axis=(1, 2)).tolist() == [6, 12, 6]
