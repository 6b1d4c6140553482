"""Weight-normalised convolutions (Salimans and Kingma 2016, arXiv 1602.07868).

The kernel is kernel_g * kernel_v / |kernel_v|. Both factors are parameters, as in PyTorch:
checkpoints round-trip bit for bit, and training updates the same quantities. Channels are last.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ba_jax.models.layers import Dtype, Layer, overlap_add_taps
from ba_jax.sharding import constrain_rows

# Lower bound of the squared norm: a kernel_v of zeros then gives a kernel of zeros and finite
# gradients; others are unaffected.
_TINY = 1e-37


def kernel_init(fan_in: float) -> nn.initializers.Initializer:
    """Uniform in +-1/sqrt(fan_in), PyTorch's default for convolutions."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def kernel_norm(kernel_v: jax.Array, axis: int) -> jax.Array:
    """Euclidean norm over all axes but `axis`, kept as axes of size 1; float32."""
    others = tuple(i for i in range(kernel_v.ndim) if i != axis % kernel_v.ndim)
    squares = jnp.sum(jnp.square(kernel_v.astype(jnp.float32)), axis=others, keepdims=True)
    return jnp.sqrt(jnp.maximum(squares, _TINY))


def _kernel(
    module: nn.Module, shape: tuple[int, ...], axis: int, fan_in: float, param_dtype: Dtype
) -> jax.Array:
    """Declare kernel_v and kernel_g (size 1 on all axes but `axis`); the kernel in float32."""
    kernel_v = module.param("kernel_v", kernel_init(fan_in), shape, param_dtype)
    # At initialisation kernel_g is the norm, so that the kernel starts as kernel_v.
    kernel_g = module.param("kernel_g", lambda _: kernel_norm(kernel_v, axis).astype(param_dtype))
    scale = kernel_g.astype(jnp.float32) / kernel_norm(kernel_v, axis)
    return kernel_v.astype(jnp.float32) * jnp.broadcast_to(scale, shape)


NARROW = 8
"""Most channels of an output of `narrow_conv`."""
_COLUMNS = 8  # of an output, for each product


def narrow_conv(
    x_BHWC: jax.Array,
    kernel_HWCD: jax.Array,
    stride: int,
    padding: tuple[int, int],
    precision: Any = None,
) -> jax.Array:
    """Convolution of few channels over rows and columns; `stride` is that of the columns.

    A product has 8 columns of the output, with all their channels, from the columns of the input
    that they depend on; the kernel becomes a matrix with zeros. That is more to multiply, but a
    convolution of 4 channels uses a tenth of a CPU's vectors.
    """
    rows, taps, channels, features = kernel_HWCD.shape
    batch, height, width, _ = x_BHWC.shape
    height += 2 * padding[0] + 1 - rows
    width = (width + 2 * padding[1] - taps) // stride + 1
    groups, step = -(-width // _COLUMNS), _COLUMNS * stride
    span = (_COLUMNS - 1) * stride + taps  # columns of the input for those of a product
    blocks = -(-span // step)
    end = (groups + blocks - 1) * step - x_BHWC.shape[2] - padding[1]
    fill = ((0, 0, 0), (padding[0], padding[0], 0), (padding[1], end, 0), (0, 0, 0))
    x = jax.lax.pad(x_BHWC, jnp.zeros((), x_BHWC.dtype), fill)
    x = x.reshape(batch, x.shape[1], -1, step * channels)
    x = jnp.concatenate([x[:, :, i : i + groups] for i in range(blocks)], axis=-1)
    tap = np.arange(span)[:, None] - stride * np.arange(_COLUMNS)
    places = (tap[:, :, None] == np.arange(taps)).astype(kernel_HWCD.dtype)
    matrix = jnp.einsum("sok,hkcd->hscod", places, kernel_HWCD, precision=precision)
    matrix = matrix.reshape(rows, span * channels, _COLUMNS * features)
    x = x[..., : span * channels]
    y = sum(jnp.matmul(x[:, i : i + height], matrix[i], precision=precision) for i in range(rows))
    return y.reshape(batch, height, groups * _COLUMNS, features)[:, :, :width]


class WeightNormConv(Layer):
    """Convolution over 1 or 2 spatial axes, (B, T, C) or (B, H, W, C), normalised per output.

    Parameters: kernel_v (K..., in, out), kernel_g (1..., 1, out), bias (out,).

    Attributes:
      features: output channels.
      kernel_size, strides, dilation, padding: one number per spatial axis; `padding` zeros on both
        sides.
      precision: precision of the products (None: JAX's default for the device).
    """

    features: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None
    padding: tuple[int, ...] | None = None
    precision: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        spatial = len(self.kernel_size)
        shape = (*self.kernel_size, x.shape[-1], self.features)
        fan_in = 1
        for size in shape[:-1]:
            fan_in *= size
        kernel = _kernel(self, shape, -1, fan_in, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        strides, padding = self.strides or (1,) * spatial, self.padding or (0,) * spatial
        narrow = spatial == 2 and self.kernel_size[1] > 1 and self.features <= NARROW
        if narrow and strides[0] == 1 and self.dilation is None:
            y = narrow_conv(x, kernel, strides[1], padding, self.precision)
        else:
            axes = "HW"[-spatial:]
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=strides,
                padding=[(p, p) for p in padding],
                rhs_dilation=self.dilation,
                dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
                precision=self.precision,
            )
        return constrain_rows(y + bias.astype(self.dtype).reshape((1,) * (spatial + 1) + (-1,)))


class WeightNormConvTranspose(Layer):
    """Transposed 1-D convolution, (B, T, C) to (B, T * stride, features), normalised per INPUT.

    PyTorch keeps the input channels of a transposed kernel first and normalises along its first
    axis. Parameters: kernel_v (K, in, out), kernel_g (1, in, 1), bias (out,). Equals PyTorch's
    ConvTranspose1d with padding (kernel_size - stride) / 2, which must be a whole number >= 0.

    One matrix product gives all taps of each input frame, and taps of the same output frame are
    added. On CPU this is no slower than a convolution over a zero-stuffed input, and accelerators
    need not multiply by the zeros.
    """

    features: int
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x_BTC: jax.Array) -> jax.Array:
        excess = self.kernel_size - self.stride
        if excess < 0 or excess % 2:
            raise ValueError(
                f"transposed convolution: kernel_size {self.kernel_size}, stride {self.stride};"
                " expected kernel_size - stride even and >= 0"
            )
        _, frames, channels = x_BTC.shape
        shape = (self.kernel_size, channels, self.features)
        # Each output frame sums kernel_size / stride taps.
        fan_in = channels * self.kernel_size / self.stride
        kernel = _kernel(self, shape, 1, fan_in, self.param_dtype).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        kernel = jnp.pad(kernel, ((0, -self.kernel_size % self.stride), (0, 0), (0, 0)))
        taps = jnp.einsum("btc,kcd->btkd", x_BTC.astype(self.dtype), kernel)
        y = overlap_add_taps(taps, self.stride)
        y = jax.lax.slice_in_dim(y, excess // 2, excess // 2 + frames * self.stride, axis=1)
        return constrain_rows(y + bias.astype(self.dtype)[None, None])
