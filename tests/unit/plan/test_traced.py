"""FLOPs and kept bytes of traced programs against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from ba_jax.metrics.chips import CHIPS
from ba_jax.plan import traced


def flops(function, *shapes) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return traced.count_flops(jax.make_jaxpr(function)(*arguments)).total


def test_products_convolutions_and_loops():
    assert flops(lambda a, b: a @ b, (4, 8), (8, 16)) == 2 * 4 * 8 * 16
    assert flops(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 4, 8), (3, 8, 2)) == 2 * 3 * 64

    def loop(x, w):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, w)[0]

    assert flops(loop, (4, 8), (5, 8, 8)) == 5 * 2 * 4 * 8 * 8
    # A backward pass has a product for the weights and one for the inputs.
    assert flops(jax.grad(lambda x, w: loop(x, w).sum(), (0, 1)), (4, 8), (5, 8, 8)) == 3 * 2560

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )

    assert flops(convolve, (2, 10, 3), (3, 3, 7)) == 2 * 2 * 8 * 7 * 3 * 3

    def choose(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x)

    assert flops(choose, (8, 8), (8, 8)) == 2 * 8**3


def test_products_of_some_types_alone():
    def product(x, w):
        narrow = [a.astype(jnp.int8) for a in (x, w)]
        both = jax.lax.dot(*narrow, preferred_element_type=jnp.int32) + x @ w
        return jax.lax.scan(lambda c, _: (c + both, None), both * 0.0, None, length=3)[0]

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 8), (8, 16))]
    jaxpr = jax.make_jaxpr(product)(*shapes)
    assert traced.count_flops(jaxpr, CHIPS["v6e"].doubles).total == 2 * 4 * 8 * 16
    assert traced.count_flops(jaxpr, CHIPS["v5p"].doubles).total == 0


def test_remat_is_counted_again():
    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w)

    def loss(function):
        return jax.grad(lambda x, w: function(x, w).sum(), (0, 1))

    once = flops(loss(layer), (8, 8), (8, 8))
    again = flops(loss(jax.checkpoint(layer)), (8, 8), (8, 8))
    assert once == 6 * 2 * 8**3
    assert once < again <= 8 * 2 * 8**3


def test_bytes_that_scans_keep_for_the_backward_pass():
    def loss(x, w):
        return jax.lax.scan(lambda c, w: (jnp.sin(c @ w), None), x, w)[0].sum()

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((6, 8), (5, 8, 8))]
    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*shapes)
    kept = traced.count_kept_bytes(jaxpr, rows=6)
    # The input and the derivative of the sine, not the gradient of the weights.
    assert kept in (5 * 6 * 8 * 4, 2 * 5 * 6 * 8 * 4)


BLOCK, BLOCKS, HEADS, WIDTH = 128, 4, 2, 128
PRODUCT = 2 * BLOCK * BLOCK * WIDTH
WHOLE, CAUSAL, LOCAL = BLOCKS**2, BLOCKS * (BLOCKS + 1) // 2, 2 * BLOCKS - 1
LENGTH = BLOCK * BLOCKS
MASKS = {
    WHOLE: splash.FullMask((LENGTH, LENGTH)),
    CAUSAL: splash.CausalMask((LENGTH, LENGTH)),
    LOCAL: splash.LocalMask((LENGTH, LENGTH), (BLOCK, 0), 0),
}


def attention(blocks: int, fused: bool):
    sizes = dict.fromkeys(
        ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv"), BLOCK
    )
    sizes |= {"block_kv_dkv_compute": BLOCK}
    if not fused:
        sizes |= {"block_q_dq": BLOCK, "block_kv_dq": BLOCK}
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([MASKS[blocks]] * HEADS),
        block_sizes=splash.BlockSizes(**sizes, use_fused_bwd_kernel=fused),
        head_shards=1,
        q_seq_shards=1,
        interpret=True,
    )
    return jax.vmap(kernel)


@pytest.mark.parametrize("blocks", [WHOLE, CAUSAL, LOCAL])
@pytest.mark.parametrize(("fused", "backward"), [(False, 7), (True, 5)])
def test_splash_attention_skips_the_blocks_that_its_mask_has_whole(blocks, fused, backward):
    """Two products forward; in the backward pass 4 and 3 in two kernels, or 5 in one."""
    shape = jax.ShapeDtypeStruct((3, HEADS, LENGTH, WIDTH), jnp.bfloat16)
    rows = jax.ShapeDtypeStruct((5, 3, HEADS, LENGTH, WIDTH), jnp.bfloat16)

    def loss(q, kv):
        def layer(q, kv):  # in a loop, under remat: the mask is a constant of an outer program
            return jax.checkpoint(attention(blocks, fused))(q, kv, kv), None

        return jax.lax.scan(layer, q, kv)[0].astype(jnp.float32).sum()

    counted = traced.count_flops(jax.make_jaxpr(jax.grad(loss, (0, 1)))(shape, rows))
    in_kernels = 5 * 3 * HEADS * blocks * (2 + 2 + backward) * PRODUCT  # 5 layers, 3 rows
    outside = 5 * 3 * HEADS * 2 * LENGTH * WIDTH  # the output times its gradient
    assert counted.total == in_kernels + outside
    assert sum(counted.kernels.values()) == 3 * HEADS * blocks * (2 + backward) * PRODUCT
    assert len(counted.kernels) == (2 if fused else 3)
