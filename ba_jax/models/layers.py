"""Pieces that several components share: masks, resizing, normalisation, transformer stacks.

Two conventions hold in every component.

*Lengths.* A function that takes `lengths_B` reads nothing past them (whatever padding holds, NaN
included) and returns zeros past its own output lengths.

*Extents.* Three places of the reference look past the end of an item: the convolutions after the
log-mel, the GroupNorm of the audio decoder, and nearest-neighbour resizing. There the result
depends on the longest item of the padded batch. `extent_B` says how many frames the reference's
batch would have had; it defaults to the item's own length, so that an item gives what the
reference gives for it alone, in whatever batch or bucket it travels. Pass the longest length of
the batch for every item to reproduce a padded batch of the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Dtype = Any

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass keeps of a layer: `none` everything, `full` only its input, `dots` the
matrix products, `dots_no_batch` those without batch dimensions (not the attention scores)."""


def length_mask(lengths_B: jax.Array, size: int) -> jax.Array:
    """(B, size) booleans, true before each length."""
    return jnp.arange(size)[None, :] < lengths_B[:, None]


def zero_past(x_BTC: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """`x_BTC` with zeros past each length. A `where`, not a product: padding may hold NaN."""
    return jnp.where(length_mask(lengths_B, x_BTC.shape[1])[:, :, None], x_BTC, 0)


def sinusoids(length: int, width: int, max_timescale: float = 10000.0) -> np.ndarray:
    """Whisper's position table (length, width), float32: sines in the first half, then cosines."""
    step = np.log(max_timescale) / (width // 2 - 1)
    angles = np.arange(length)[:, None] * np.exp(-step * np.arange(width // 2))[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def stored_positions(module: nn.Module, length: int, width: int) -> jax.Array:
    """The position table (length, width) that a module's checkpoint stores, in `buffers`."""
    return module.variable(
        "buffers", "positional_embedding", lambda: jnp.asarray(sinusoids(length, width))
    ).value


def position_table(module: nn.Module, length: int, width: int) -> jax.Array:
    """The position table (length, width) that a module computes with.

    Checkpoints store the table, rounded to their dtype. bfloat16 leaves it three digits, and the
    reference computes with the unrounded one: so do we, where the stored table is bfloat16 and no
    further from the sinusoids than rounding explains. Any other table is used as it is stored.
    """
    stored = stored_positions(module, length, width)
    if stored.dtype != jnp.bfloat16:
        return stored
    stored, exact = stored.astype(jnp.float32), jnp.asarray(sinusoids(length, width))
    # Half a unit in the last place below 1 is 2^-9; the rest is float32 at large positions.
    return jnp.where(jnp.max(jnp.abs(stored - exact)) <= 2.0**-8, exact, stored)


def add_positions(x_BTD: jax.Array, table_PD: jax.Array) -> jax.Array:
    """Adds the first T rows of a position table in float32 and returns x's dtype.

    Raises:
      ValueError: if x is longer than the table.
    """
    if x_BTD.shape[1] > table_PD.shape[0]:
        raise ValueError(
            f"{x_BTD.shape[1]} frames, but the position table has only {table_PD.shape[0]}: split"
            " the audio into shorter chunks"
        )
    positions = table_PD[None, : x_BTD.shape[1]].astype(jnp.float32)
    return (x_BTD.astype(jnp.float32) + positions).astype(x_BTD.dtype)


def nearest_resize(
    x_BTC: jax.Array, in_extent_B: jax.Array, out_extent_B: jax.Array, size: int
) -> jax.Array:
    """Nearest-neighbour resize in time of each item from its in_extent to its out_extent frames.

    The source frame is floor(j * in / out) with the ratio rounded to float32, as PyTorch's
    `interpolate(mode="nearest")` computes it: exact integer arithmetic would differ by a frame now
    and then. Output (B, size, C).
    """
    in_B = in_extent_B.astype(jnp.float32)
    out_B = jnp.maximum(out_extent_B, 1).astype(jnp.float32)
    ratio_B = in_B / out_B
    index = jnp.floor(jnp.arange(size, dtype=jnp.float32)[None, :] * ratio_B[:, None])
    index = jnp.clip(index.astype(jnp.int32), 0, jnp.maximum(in_extent_B - 1, 0)[:, None])
    return jnp.take_along_axis(x_BTC, index[:, :, None], axis=1, mode="clip")


def conv(
    name: str,
    features: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    use_bias: bool = True,
    dtype: Dtype,
    param_dtype: Dtype,
) -> nn.Conv:
    """1-D convolution over (B, T, C); `padding` is zero frames before and after."""
    return nn.Conv(
        features,
        (kernel_size,),
        strides=stride,
        padding=(padding,),
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        name=name,
    )


class ConvTranspose(nn.Module):
    """1-D transposed convolution without padding; output length (T - 1) * stride + kernel_size.

    One matrix product gives the K taps of every input frame, then the taps that fall on the same
    output frame are added: no convolution over a zero-stuffed input.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        channels = x_BTC.shape[-1]
        shape = (self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        batch, frames, _ = x_BTC.shape
        taps = jnp.einsum("btc,kcd->btkd", x_BTC.astype(self.dtype), kernel)
        reach = -(-self.kernel_size // self.stride)  # output blocks that one input frame touches
        taps = jnp.pad(taps, ((0, 0), (0, 0), (0, reach * self.stride - self.kernel_size), (0, 0)))
        taps = taps.reshape(batch, frames, reach, self.stride, self.features)
        blocks = sum(
            jnp.pad(taps[:, :, j], ((0, 0), (j, reach - 1 - j), (0, 0), (0, 0)))
            for j in range(reach)
        )
        out = blocks.reshape(batch, -1, self.features)
        return out[:, : (frames - 1) * self.stride + self.kernel_size] + bias[None, None]


class ItemNorm(nn.Module):
    """GroupNorm with one group over (time, channels) of each item, within its extent.

    Statistics in float32 over the frames before `extent_B`; frames past it are normalised alike
    but count for nothing.
    """

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTC: jax.Array, extent_B: jax.Array) -> jax.Array:
        channels = x_BTC.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x = x_BTC.astype(jnp.float32)
        inside = length_mask(extent_B, x.shape[1])[:, :, None]
        count = jnp.maximum(extent_B, 1).astype(jnp.float32)[:, None, None] * channels
        mean = jnp.sum(jnp.where(inside, x, 0), axis=(1, 2), keepdims=True) / count
        centred = x - mean
        variance = jnp.sum(jnp.where(inside, centred**2, 0), axis=(1, 2), keepdims=True) / count
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        y = y * scale[None, None].astype(jnp.float32) + bias[None, None].astype(jnp.float32)
        return y.astype(self.dtype)


def mish(x: jax.Array) -> jax.Array:
    """x * tanh(softplus(x)) (Misra 2019)."""
    return x * jnp.tanh(jax.nn.softplus(x))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, not the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def attention(
    q_BLHD: jax.Array, k_BPKD: jax.Array, v_BPKD: jax.Array, mask_B1LP: jax.Array
) -> jax.Array:
    """Softmax attention with scale 1/sqrt(D), softmax in float32; K divides H (grouped queries).

    `mask_B1LP` is true where a query may look; a query that may look nowhere gets the mean of the
    values, finite, and its row must be dropped by the caller.
    """
    return jax.nn.dot_product_attention(q_BLHD, k_BPKD, v_BPKD, mask=mask_B1LP)


def layer_norm(name: str, dtype: Dtype, param_dtype: Dtype) -> nn.LayerNorm:
    """LayerNorm with epsilon 1e-5; statistics in float32, two passes."""
    return nn.LayerNorm(
        epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, name=name
    )


def rms_norm(name: str, epsilon: float, dtype: Dtype, param_dtype: Dtype) -> nn.RMSNorm:
    """RMSNorm; statistics in float32."""
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, name=name)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer of Whisper's shape: biased q, v, out; k without bias; GELU.

    `norm` is "layer" (encoder, decoder) or "rms" (flow prenet, epsilon 1e-6).
    """

    heads: int
    ffn_width: int
    norm: str = "layer"
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask_B1TT: jax.Array) -> tuple[jax.Array, None]:
        batch, frames, width = x_BTD.shape
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def norm(name: str) -> nn.Module:
            if self.norm == "layer":
                return layer_norm(name, **dtypes)
            return rms_norm(name, 1e-6, **dtypes)

        def project(name: str, x: jax.Array, use_bias: bool = True) -> jax.Array:
            y = nn.Dense(width, use_bias=use_bias, name=name, **dtypes)(x)
            return y.reshape(batch, frames, self.heads, width // self.heads)

        y = norm("attention_norm")(x_BTD)
        q, k, v = project("query", y), project("key", y, use_bias=False), project("value", y)
        y = attention(q, k, v, mask_B1TT).reshape(batch, frames, width)
        x_BTD = x_BTD + nn.Dense(width, name="out", **dtypes)(y)
        y = norm("ffn_norm")(x_BTD)
        y = gelu(nn.Dense(self.ffn_width, name="ffn_in", **dtypes)(y))
        return x_BTD + nn.Dense(width, name="ffn_out", **dtypes)(y), None


def stacked(
    layer: type[nn.Module], length: int, *, in_axes: Any, remat: str = "none", scan: bool = True
) -> Callable[..., nn.Module]:
    """`length` copies of a layer run one after another, their parameters stacked on axis 0.

    The layer maps (carry, *inputs) to (carry, output). With `scan=False` the loop is unrolled at
    compile time; the parameters are laid out the same either way.

    Raises:
      ValueError: for an unknown remat policy.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat policy {remat!r}: expected one of {sorted(REMAT_POLICIES)}")
    if remat != "none":
        layer = nn.remat(layer, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
        unroll=1 if scan else length,
    )


def transformer(
    x_BTD: jax.Array,
    lengths_B: jax.Array,
    *,
    layers: int,
    heads: int,
    ffn_width: int,
    causal: bool,
    norm: str = "layer",
    dtype: Dtype,
    param_dtype: Dtype,
    remat: str,
    scan: bool,
) -> jax.Array:
    """A stack of `TransformerLayer`s, module name `layers`, attending within each item's length.

    Called inside a compact method; the caller zeroes what lies past the lengths.
    """
    frames = x_BTD.shape[1]
    mask = length_mask(lengths_B, frames)[:, None, None, :]
    if causal:
        mask = mask & jnp.tril(jnp.ones((frames, frames), bool))[None, None]
    mask = jnp.broadcast_to(mask, (x_BTD.shape[0], 1, frames, frames))
    stack = stacked(TransformerLayer, layers, in_axes=nn.broadcast, remat=remat, scan=scan)
    module = stack(heads, ffn_width, norm, dtype=dtype, param_dtype=param_dtype, name="layers")
    return module(x_BTD, mask)[0]
