"""Checks on ids and codes that come from outside."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ba_jax.vocab import CODEBOOK_SIZES, CodeError, TokenIdError, check_codes, check_token_ids


@pytest.mark.parametrize("bad", [-1, 600, 2**31])
def test_token_id_out_of_range_names_value_and_place(bad):
    ids = np.zeros((2, 3), np.int64)
    ids[1, 2] = bad
    with pytest.raises(TokenIdError, match=rf"prompt.txt\[1, 2\] is {bad}, expected 0..599"):
        check_token_ids(ids, 600, "prompt.txt")


def test_the_end_class_is_accepted_only_if_allowed():
    codes = np.zeros((4, 8), np.int32)
    codes[3, 1] = CODEBOOK_SIZES[1]
    with pytest.raises(CodeError, match=r"a.npy\[3, 1\] is 4096, expected 0..4095 for codebook 1"):
        check_codes(codes, CODEBOOK_SIZES, name="a.npy")
    np.testing.assert_array_equal(check_codes(codes, CODEBOOK_SIZES, allow_end=True), codes)
    codes[3, 1] += 1
    with pytest.raises(CodeError, match="is 4097, expected 0..4096"):
        check_codes(codes, CODEBOOK_SIZES, allow_end=True)


@pytest.mark.parametrize("codes", [np.zeros((3, 7), int), np.int32(4), np.zeros((0,), int)])
def test_codes_of_the_wrong_shape(codes):
    with pytest.raises(CodeError, match="expected a last axis of 8 codebooks"):
        check_codes(codes, CODEBOOK_SIZES)


def test_floats_are_refused():
    with pytest.raises(TokenIdError, match="expected integers, got dtype float64"):
        check_token_ids([0.5], 10)
    with pytest.raises(CodeError, match="expected integers, got dtype float32"):
        check_codes(np.zeros((2, 8), np.float32), CODEBOOK_SIZES)


@given(st.lists(st.integers(-3, 12), max_size=20))
def test_check_token_ids_accepts_exactly_the_range(ids):
    legal = all(0 <= i < 10 for i in ids)
    if legal:
        assert check_token_ids(np.array(ids, int), 10).tolist() == ids
    else:
        with pytest.raises(TokenIdError):
            check_token_ids(np.array(ids, int), 10)
