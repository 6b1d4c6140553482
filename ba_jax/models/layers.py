"""Layers that several components share.

  base class   Layer
  product      product, dense
  lengths      length_mask, zero_past, nearest_resize
  positions    sinusoids, stored_positions, position_table, add_positions
  convolution  conv, ConvTranspose, overlap_add_taps
  norms        ItemNorm, layer_norm, rms_norm;  activations: mish, gelu
  embedding    look_up
  attention    attention, attend (with a streaming cache), attention_mask
  transformer  TransformerLayer, stack_layers, transformer_stack; REMAT_POLICIES

Two conventions hold in every component.

*Lengths.* A function that takes `lengths_B` ignores its input past them (padding may hold anything,
NaN included) and returns zeros past its output lengths.

*Extents.* Three operations of the reference look past the end of an item: the convolutions after
the log-mel, the GroupNorm of the audio decoder, and nearest-neighbour resizing. Their result
depends on the longest item of the padded batch. `extent_B` is the number of frames of that batch.
It defaults to the item's length, so that an item has the reference's result for it alone, whatever
its batch or bucket. To reproduce a padded batch of the reference, pass its longest length for every
item.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.packed_attention import RESIDUALS
from ba_jax.models.streaming import (
    SCAN_AXES,
    Blocks,
    Pieces,
    extend_keys_values,
    read_cache,
    write_cache,
)
from ba_jax.sharding import constrain, constrain_rows

Dtype = Any

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names(RESIDUALS),
    "attention_offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[RESIDUALS],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""Values of a layer that are stored for the backward pass: `none` all, `full` only its input,
`dots` matrix products, `dots_no_batch` those without batch dimensions (not the attention scores),
`attention` its input and the residuals of splash attention, which then does not run twice,
`attention_offload` the same with the residuals in the host's memory."""


class Layer(nn.Module, kw_only=True):
    """A module with a compute dtype and the dtype of its initialised parameters."""

    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @property
    def dtypes(self) -> dict[str, Dtype]:
        """Both dtypes, as keyword arguments of a submodule."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}


def product(x_XI: jax.Array, kernel_IO: jax.Array) -> jax.Array:
    """x (..., I) times a kernel (I, O) of the same dtype.

    XLA:CPU transposes the left factor of a kernel's gradient in the loop that computes the factor,
    and writes with strides; that can take longer than the product. JAX has the gradient of the
    result on the left, always; here the narrower factor is.
    """
    last, places = x_XI.ndim - 1, tuple(range(x_XI.ndim - 1))
    positions = ((places, places), ((), ()))

    def multiply(x_XI, kernel_IO):
        return jax.lax.dot_general(x_XI, kernel_IO, (((last,), (0,)), ((), ())))

    def forward(x, kernel):
        # A factor is kept for the gradient of the other, if that is asked for.
        kept = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
        return multiply(x.value, kernel.value), kept

    def backward(kept, g_XO):
        kept_XI, kept_IO = kept
        x_gradient = kernel_gradient = None
        if kept_IO is not None:
            x_gradient = jax.lax.dot_general(g_XO, kept_IO, (((last,), (1,)), ((), ())))
            x_gradient = x_gradient.astype(x_XI.dtype)
        if kept_XI is not None:
            if kernel_IO.shape[0] <= kernel_IO.shape[1]:
                kernel_gradient = jax.lax.dot_general(kept_XI, g_XO, positions)
            else:
                kernel_gradient = jax.lax.dot_general(g_XO, kept_XI, positions).T
            kernel_gradient = kernel_gradient.astype(kernel_IO.dtype)
        return x_gradient, kernel_gradient

    function = jax.custom_vjp(multiply)
    function.defvjp(forward, backward, symbolic_zeros=True)
    return function(x_XI, kernel_IO)


def _dot_general(x_XI: jax.Array, kernel_IO: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`product` with the signature that Linen expects."""
    return product(x_XI, kernel_IO)


dense = functools.partial(nn.Dense, dot_general=_dot_general)
"""Linen's `Dense` by `product`."""


def length_mask(lengths_B: jax.Array, size: int) -> jax.Array:
    """(B, size) booleans, true before each length."""
    return jnp.arange(size)[None, :] < lengths_B[:, None]


def zero_past(x_BTC: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """`x_BTC` with zeros past each length; a `where`, not a product, because padding may be NaN."""
    return jnp.where(length_mask(lengths_B, x_BTC.shape[1])[:, :, None], x_BTC, 0)


def sinusoids(length: int, width: int, max_timescale: float = 10000.0) -> np.ndarray:
    """Whisper's position table (length, width), float32: sines in the first half, then cosines."""
    step = np.log(max_timescale) / (width // 2 - 1)
    angles = np.arange(length)[:, None] * np.exp(-step * np.arange(width // 2))[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def stored_positions(module: nn.Module, length: int, width: int) -> jax.Array:
    """The position table (length, width) of a module's checkpoint, in the collection `buffers`."""
    return module.variable(
        "buffers", "positional_embedding", lambda: jnp.asarray(sinusoids(length, width))
    ).value


def position_table(module: nn.Module, length: int, width: int) -> jax.Array:
    """The position table (length, width) that a module computes with.

    Checkpoints store the table, rounded to their dtype. bfloat16 has only three digits, and the
    reference computes with the unrounded table. So does this function if the stored table is
    bfloat16 and within rounding of the sinusoids; any other table is used as stored.
    """
    stored = stored_positions(module, length, width)
    if stored.dtype != jnp.bfloat16:
        return stored
    stored, exact = stored.astype(jnp.float32), jnp.asarray(sinusoids(length, width))
    # Half a unit in the last place below 1 is 2^-9; the rest is for float32 at large positions.
    return jnp.where(jnp.max(jnp.abs(stored - exact)) <= 2.0**-8, exact, stored)


def add_positions(
    x_BTD: jax.Array, table_PD: jax.Array, start_B: jax.Array | None = None
) -> jax.Array:
    """Add rows of a position table in float32; the result has the dtype of x.

    Args:
      x_BTD: frames.
      table_PD: the table.
      start_B: first row of each item; None: 0. Past the end of the table its last row is used.

    Raises:
      ValueError: x is longer than the table.
    """
    if x_BTD.shape[1] > table_PD.shape[0]:
        raise ValueError(
            f"{x_BTD.shape[1]} frames, but the position table has only {table_PD.shape[0]}: split"
            " the audio into shorter chunks"
        )
    positions = table_PD[None, : x_BTD.shape[1]]
    if start_B is not None:
        rows = start_B[:, None] + jnp.arange(x_BTD.shape[1])[None]
        positions = jnp.take(table_PD, rows, axis=0, mode="clip")
    positions = positions.astype(jnp.float32)
    return (x_BTD.astype(jnp.float32) + positions).astype(x_BTD.dtype)


def nearest_resize(
    x_BTC: jax.Array, in_extent_B: jax.Array, out_extent_B: jax.Array, size: int
) -> jax.Array:
    """Nearest-neighbour resize in time of each item from in_extent to out_extent frames.

    Returns (B, size, C).
    The source frame is floor(j * in / out) with the ratio rounded to float32, as in PyTorch's
    `interpolate(mode="nearest")`: exact integer arithmetic would sometimes differ by a frame.
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


class ConvTranspose(Layer):
    """1-D transposed convolution without padding; output length (T - 1) * stride + kernel_size.

    One matrix product gives the K taps of every input frame, and taps of the same output frame are
    added: no convolution over a zero-stuffed input.
    """

    features: int
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        channels = x_BTC.shape[-1]
        shape = (self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        taps = jnp.einsum("btc,kcd->btkd", x_BTC.astype(self.dtype), kernel)
        y = overlap_add_taps(taps, self.stride)
        return y[:, : (x_BTC.shape[1] - 1) * self.stride + self.kernel_size] + bias[None, None]


def overlap_add_taps(taps_BTKC: jax.Array, stride: int) -> jax.Array:
    """Add the K taps of frames that are `stride` apart: (B, >= (T - 1) * stride + K, C)."""
    blocks = -(-taps_BTKC.shape[2] // stride)  # output blocks of `stride` frames that K taps touch
    missing = blocks * stride - taps_BTKC.shape[2]
    taps_BTKC = jnp.pad(taps_BTKC, ((0, 0), (0, 0), (0, missing), (0, 0)))
    taps = einops.rearrange(taps_BTKC, "b t (j s) c -> b t j s c", s=stride)
    shifted = [
        jnp.pad(taps[:, :, j], ((0, 0), (j, blocks - 1 - j), (0, 0), (0, 0))) for j in range(blocks)
    ]
    return einops.rearrange(sum(shifted), "b t s c -> b (t s) c")


class ItemNorm(Layer):
    """GroupNorm with one group over (time, channels) of each item, within its extent.

    Statistics in float32 over the frames before `extent_B`; frames past it are normalised too but
    do not count. Statistics of whole items are sown as `norms`: [mean, mean square] of each.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x_BTC: jax.Array,
        extent_B: jax.Array,
        last_BT: jax.Array | None = None,
        prior: tuple[float, float, float] | None = None,
        pieces: Pieces | None = None,
    ) -> jax.Array:
        """Normalise frames.

        Args:
          x_BTC, extent_B: frames, and how many count.
          last_BT: frame t is normalised by the statistics of the frames up to `last_BT[t]`, so that
            an item can be normalised while it arrives; None: by those of the whole item.
          prior: with `last_BT`, see `streaming.RunningNorm`.
          pieces: with `last_BT`, frames before these count as well.
        """
        channels = x_BTC.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x = x_BTC.astype(jnp.float32)
        inside = length_mask(extent_B, x.shape[1])[:, :, None]
        if last_BT is None:
            count = jnp.maximum(extent_B, 1).astype(jnp.float32)[:, None, None] * channels
            mean = jnp.sum(jnp.where(inside, x, 0), axis=(1, 2), keepdims=True) / count
            centred = x - mean
            square = jnp.where(inside, centred**2, 0)
            variance = jnp.sum(square, axis=(1, 2), keepdims=True) / count
            if not self.is_initializing():
                self.sow("norms", "sums", jnp.stack([mean, variance + mean**2])[:, :, 0, 0])
        else:
            x = jnp.where(inside, x, 0)
            mean, variance = self._running(x, last_BT, prior, pieces)
            centred = x - mean
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        y = y * scale[None, None].astype(jnp.float32) + bias[None, None].astype(jnp.float32)
        return y.astype(self.dtype)

    def _running(
        self,
        x_BTC: jax.Array,
        last_BT: jax.Array,
        prior: tuple[float, float, float] | None,
        pieces: Pieces | None,
    ) -> tuple[jax.Array, jax.Array]:
        """(mean, variance), (B, T, 1) each, of the frames up to `last_BT`."""
        x = x_BTC
        ones = jnp.ones(x.shape[:2], jnp.float32)
        sums_BT3 = jnp.stack([ones, jnp.mean(x, axis=2), jnp.mean(x**2, axis=2)], axis=2)
        sums_BT3 = jnp.cumsum(sums_BT3, axis=1)
        if pieces is not None:
            shape = (x.shape[0], 1, 3)
            sums_BT3 = sums_BT3 + read_cache(self, "sums", shape, jnp.float32, pieces)
            write_cache(self, "sums", sums_BT3[:, -1:])
        if prior is not None:
            mean, square, count = prior
            added = np.array([count, count * mean, count * square], np.float32)
            sums_BT3 = sums_BT3 + added[None, None]
        sums_BT3 = jnp.take_along_axis(sums_BT3, last_BT[:, :, None], axis=1)
        count, mean, square = jnp.split(sums_BT3, 3, axis=2)
        mean = mean / count
        return mean, jnp.maximum(square / count - mean**2, 0)


def mish(x: jax.Array) -> jax.Array:
    """x * tanh(softplus(x)) (Misra 2019)."""
    return x * jnp.tanh(jax.nn.softplus(x))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, not the tanh approximation."""
    return jax.nn.gelu(x, approximate=False)


def look_up(table_VD: jax.Array, ids: jax.Array, dtype: Dtype) -> jax.Array:
    """Rows of a table: ids (...) to (..., D).

    On a mesh each device looks up its part of the width for all rows of a replica, and the rows are
    exchanged afterwards: the table, which may be large, is not moved.
    """
    places = ("length",) * (ids.ndim > 1) + (None,) * (ids.ndim - 2)
    ids = constrain(ids, "copies", *places)
    rows = table_VD[ids].astype(dtype)
    return constrain(constrain(rows, "copies", *places, "embed"), "batch", *places, None)


def attention(
    q_BLHD: jax.Array, k_BPKD: jax.Array, v_BPKD: jax.Array, mask_B1LP: jax.Array
) -> jax.Array:
    """Softmax attention with scale 1/sqrt(D), softmax in float32; K divides H (grouped queries).

    `mask_B1LP` is true where a query sees a key. A query that sees none gets the mean of the
    values, which is finite; the caller must ignore its row.
    """
    return jax.nn.dot_product_attention(q_BLHD, k_BPKD, v_BPKD, mask=mask_B1LP)


def attend(
    module: nn.Module,
    q_BTHD: jax.Array,
    k_BTHD: jax.Array,
    v_BTHD: jax.Array,
    mask_B1TT: jax.Array,
    pieces: Pieces | None,
) -> jax.Array:
    """`attention`; of pieces, also to the frames before them in the cache of `module`."""
    if pieces is not None:
        k_BTHD, v_BTHD, mask_B1TT = extend_keys_values(module, k_BTHD, v_BTHD, mask_B1TT, pieces)
    return attention(q_BTHD, k_BTHD, v_BTHD, mask_B1TT)


def layer_norm(name: str | None, dtype: Dtype, param_dtype: Dtype) -> nn.LayerNorm:
    """LayerNorm with epsilon 1e-5; statistics in float32, two passes."""
    return nn.LayerNorm(
        epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, name=name
    )


def rms_norm(name: str, epsilon: float, dtype: Dtype, param_dtype: Dtype) -> nn.RMSNorm:
    """RMSNorm; statistics in float32."""
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, param_dtype=param_dtype, name=name)


class TransformerLayer(Layer):
    """Pre-norm transformer layer with a GELU feed-forward, as in Whisper.

    Attributes:
      heads: number of heads of the attention.
      ffn_width: features inside the feed-forward.
      head_dim: features of a head; None: width / heads.
      qv_bias: query and value have a bias; key never has, `out` always.
      norm: "layer", or "rms" with epsilon 1e-6 (flow prenet).
    """

    heads: int
    ffn_width: int
    head_dim: int | None = None
    qv_bias: bool = True
    norm: str = "layer"

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, mask_B1TT: jax.Array, pieces: Pieces | None = None
    ) -> tuple[jax.Array, None]:
        width = x_BTD.shape[-1]
        inner = width if self.head_dim is None else self.heads * self.head_dim

        def norm(name: str) -> nn.Module:
            if self.norm == "layer":
                return layer_norm(name, **self.dtypes)
            return rms_norm(name, 1e-6, **self.dtypes)

        def project(name: str, x: jax.Array, use_bias: bool) -> jax.Array:
            y = dense(inner, use_bias=use_bias, name=name, **self.dtypes)(x)
            return einops.rearrange(y, "b t (h d) -> b t h d", h=self.heads)

        y = norm("attention_norm")(x_BTD)
        q, k = project("query", y, self.qv_bias), project("key", y, False)
        y = attend(self, q, k, project("value", y, self.qv_bias), mask_B1TT, pieces)
        y = einops.rearrange(y, "b t h d -> b t (h d)")
        x_BTD = constrain_rows(x_BTD + dense(width, name="out", **self.dtypes)(y))
        y = norm("ffn_norm")(x_BTD)
        y = gelu(dense(self.ffn_width, name="ffn_in", **self.dtypes)(y))
        y = dense(width, name="ffn_out", **self.dtypes)(constrain(y, "batch", None, "mlp"))
        return constrain_rows(x_BTD + y), None


def stack_layers(
    layer: type[nn.Module], length: int, *, in_axes: Any, remat: str = "none", scan: bool = True
) -> Callable[..., nn.Module]:
    """`length` copies of a layer in sequence, with parameters (and caches) stacked on axis 0.

    The layer maps (carry, *inputs) to (carry, output). With `scan=False` the loop is unrolled at
    compile time; the layout of the parameters is the same.

    Raises:
      ValueError: an unknown remat policy.
    """
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat policy {remat!r}: expected one of {sorted(REMAT_POLICIES)}")
    if remat != "none":
        layer = nn.remat(layer, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    return nn.scan(
        layer,
        variable_axes={"params": 0, **SCAN_AXES},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
        unroll=1 if scan else length,
    )


def transformer_stack(
    layers: int,
    *,
    remat: str = "none",
    scan: bool = True,
    name: str | None = None,
    **options: Any,
) -> nn.Module:
    """A stack of `TransformerLayer(**options)`: (x_BTD, mask, pieces or None) -> (x_BTD, None)."""
    in_axes = (nn.broadcast, nn.broadcast)
    stack = stack_layers(TransformerLayer, layers, in_axes=in_axes, remat=remat, scan=scan)
    return stack(**options, name=name)


def attention_mask(
    lengths_B: jax.Array,
    frames: int,
    *,
    causal: bool,
    blocks: Blocks | None = None,
    pieces: Pieces | None = None,
) -> jax.Array:
    """(B, 1, T, T) booleans: the key is valid, and not past the query where `causal`.

    `blocks` limit what a frame sees of a whole segment; a piece is a block, seen whole.
    """
    if blocks is not None and pieces is None:
        return blocks.mask(lengths_B, frames, causal=causal)
    mask = length_mask(lengths_B, frames)[:, None, None, :]
    if causal:
        mask = mask & jnp.tril(jnp.ones((frames, frames), bool))[None, None]
    return jnp.broadcast_to(mask, (len(lengths_B), 1, frames, frames))
