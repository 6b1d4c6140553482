"""Language model: caches, packing, padding, causality."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ba_jax.models import cpu_layout
from ba_jax.models.baichuan_audio import BaichuanAudio
from ba_jax.models.llm import LLM, LLMConfig, init_cache


def ids_of(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 570, (batch, length)).astype(np.int32)


def codes_of(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 8, (batch, length, 4)).astype(np.int32)


@pytest.fixture(scope="module")
def step(config, variables):
    """One jitted call into the cache for each model and chunk shape; counts its compilations."""
    functions = {}
    params = variables["params"]
    llm = {"llm": jax.tree.map(jnp.asarray, params["llm"])}
    cpu_layout.lay_out(llm)
    apart = {**variables, "params": {**params, **llm}}

    def call(ids, codes, segments, cache, model=None, fresh=False, layers="stacked"):
        model = model or BaichuanAudio(config)
        key = (model.scan, model.dtype, fresh, layers)
        if key not in functions:
            functions[key] = jax.jit(
                lambda v, *a: model.apply(
                    v, a[0], a[1], None, a[2], a[3], fresh=fresh, method="hidden"
                )
            )
        held = apart if layers == "laid out" else variables
        hidden, cache = functions[key](held, ids, codes, segments, cache)
        return np.asarray(hidden), cache

    call.functions = functions
    return call


@pytest.mark.parametrize("layers", ["scanned", "unrolled", "laid out"])
@pytest.mark.parametrize("fresh", [True, False])
def test_cached_decoding_equals_the_full_pass(run, config, step, layers, fresh):
    """Rows of different lengths, text and audio mixed: prefill, then one token at a time."""
    model = BaichuanAudio(config, scan=layers != "unrolled")
    total, prompts = 12, np.array([7, 3, 5])
    ids, codes = ids_of(3, total), codes_of(3, total)
    ids[:, 2:9:2] = config.tokens.audio_pad
    want, _ = run("hidden", ids, codes)
    cache = init_cache(config.llm, 3, total, jnp.float32)
    segments = (np.arange(7)[None] < prompts[:, None]).astype(np.int32)
    wild = np.where(segments > 0, ids[:, :7], -1)  # padding holds an illegal id
    hidden, cache = step(wild, codes[:, :7], segments, cache, model, fresh, layers)
    assert cache.lengths_B.tolist() == prompts.tolist()
    for row, n in enumerate(prompts):
        np.testing.assert_allclose(hidden[row, :n], want[row, :n], atol=2e-5)
    for _ in range(total - 7):
        at = np.asarray(cache.lengths_B)
        rows = np.arange(3)
        hidden, cache = step(
            ids[rows, at][:, None],
            codes[rows, at][:, None],
            np.ones((3, 1), np.int32),
            cache,
            model,
            layers=layers,
        )
        np.testing.assert_allclose(hidden[:, 0], want[rows, at], atol=2e-5)


def test_rows_that_pause_keep_their_place(config, step, run):
    """A row may take no token in a step (segment 0): its cache does not move."""
    ids, codes = ids_of(2, 6), codes_of(2, 6)
    want, _ = run("hidden", ids, codes)
    cache = init_cache(config.llm, 2, 8, jnp.float32)
    at = np.zeros(2, int)
    for active in ([1, 1], [1, 0], [0, 1], [1, 1], [0, 1]):
        token = ids[np.arange(2), at][:, None]
        code = codes[np.arange(2), at][:, None]
        hidden, cache = step(token, code, np.array(active, np.int32)[:, None], cache)
        for row in range(2):
            if active[row]:
                np.testing.assert_allclose(hidden[row, 0], want[row, at[row]], atol=2e-5)
                at[row] += 1
        assert cache.lengths_B.tolist() == at.tolist()


def test_a_decode_step_compiles_once(config, step):
    cache = init_cache(config.llm, 2, 8, jnp.float32)
    for _ in range(4):
        _, cache = step(ids_of(2, 1), codes_of(2, 1), np.ones((2, 1), np.int32), cache)
    decode = step.functions[True, jnp.float32, False, "stacked"]
    sizes = decode._cache_size()
    _, cache = step(ids_of(2, 1, 5), codes_of(2, 1), np.ones((2, 1), np.int32), cache)
    assert decode._cache_size() == sizes


def test_a_row_that_exceeds_the_cache_loses_only_its_tail(config, step):
    cache = init_cache(config.llm, 2, 4, jnp.float32)
    _, short = step(ids_of(2, 4), codes_of(2, 4), np.ones((2, 4), np.int32), cache, fresh=True)
    _, full = step(ids_of(2, 1), codes_of(2, 1), np.ones((2, 1), np.int32), short)
    assert full.lengths_B.tolist() == [4, 4]
    np.testing.assert_array_equal(full.k_EBKPD, short.k_EBKPD)


def test_left_and_right_padding_agree(run):
    ids = ids_of(1, 5)
    want, _ = run("hidden", ids)
    for offset in (0, 3):
        padded = np.full((1, 8), 10**6, np.int32)
        padded[:, offset : offset + 5] = ids
        segments = np.zeros((1, 8), np.int32)
        segments[:, offset : offset + 5] = 1
        got, _ = run("hidden", padded, None, None, segments)
        np.testing.assert_allclose(got[:, offset : offset + 5], want, atol=2e-5)
        assert (got[segments == 0] == 0).all()


def test_packed_examples_do_not_see_each_other(run):
    first, second = ids_of(1, 4), ids_of(1, 6, 1)
    packed = np.concatenate([first, second], axis=1)
    segments = np.array([[1] * 4 + [2] * 6], np.int32)
    positions = np.array([[*range(4), *range(6)]], np.int32)
    got, _ = run("hidden", packed, None, positions, segments)
    np.testing.assert_allclose(got[:, :4], run("hidden", first)[0], atol=2e-5)
    np.testing.assert_allclose(got[:, 4:], run("hidden", second)[0], atol=2e-5)


def test_causality_by_gradient(config, variables):
    llm = {"params": variables["params"]["llm"]}

    def hidden(x):
        return LLM(config.llm).apply(llm, x)[0][0]

    x = np.random.default_rng(0).normal(size=(1, 6, 128)).astype(np.float32)
    jacobian = np.abs(np.asarray(jax.jit(jax.jacobian(hidden))(x))).sum(axis=(1, 2, 4))
    assert (jacobian[np.triu_indices(6, 1)] == 0).all()
    assert (jacobian[np.tril_indices(6)] > 0).all()


def test_remat_and_unrolling_change_no_gradient(config, variables):
    ids = ids_of(2, 6)

    def gradients(**options):
        model = BaichuanAudio(config, **options)

        def loss(llm):
            params = {"params": {"llm": llm}}
            hidden, _ = model.apply(params, ids, method="hidden")
            return jnp.mean(model.apply(params, hidden, method="text_logits") ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"]["llm"]))

    want = gradients()
    for remat in ("full", "dots", "dots_no_batch"):
        for a, b in zip(gradients(remat=remat, scan=remat != "full"), want, strict=True):
            tolerance = 1e-5 * max(1.0, np.abs(b).max())
            np.testing.assert_allclose(a, b, atol=tolerance, err_msg=remat)


def test_bfloat16_stays_near_float32(run, config):
    want, _ = run("hidden", ids_of(2, 9))
    got, _ = run("hidden", ids_of(2, 9), model=BaichuanAudio(config, dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    assert np.abs(np.asarray(got, np.float32) - want).max() < 0.06 * np.abs(want).max()


def test_illegal_sizes_are_errors():
    sizes = dict(vocab_size=8, width=8, layers=1, ffn_width=8)
    with pytest.raises(ValueError, match="kv_heads = 2 does not divide heads = 3"):
        LLMConfig(heads=3, kv_heads=2, head_dim=4, **sizes)
    with pytest.raises(ValueError, match="head_dim = 5 is odd"):
        LLMConfig(heads=2, kv_heads=2, head_dim=5, **sizes)
