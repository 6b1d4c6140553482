"""Band-limited resampling with a Hann-windowed sinc, in NumPy.

Not `scipy.signal.resample_poly` or `upfirdn`: with the same taps they agree within 5e-7 but take 5
to 7 times as long (30 s from 48 to 16 kHz: 0.18 s against 0.03 s, one core), and they need all taps
at once, 46 MB for coprime rates.

The filter is that of the reference's front end (`sinc_interp_hann` of torchaudio with
`lowpass_filter_width=128`, `rolloff=0.99`). With the two rates divided by their greatest common
divisor, output m is

    y[m] = (c / orig) * sum_n x[n] * sinc(t) * cos(pi t / (2 * 128))**2,   |t| < 128,
    t = c * (n / orig - m / new),   c = 0.99 * min(orig, new),

with x zero outside the signal and ceil(new * len / orig) outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

LOWPASS_WIDTH = 128  # zero crossings of the sinc on each side
ROLLOFF = 0.99  # cut-off as a share of the lower Nyquist frequency

# A block computes this many neighbouring outputs of a period with one matrix product. More would
# waste work on taps that are zero, fewer would copy the input more often.
_BLOCK_OUTPUTS = 192
_BLOCK_TAPS = 1 << 19  # bound on the taps of a block, which makes blocks of long filters narrower
_CACHED_TAPS = 1 << 20  # filters up to this size (4 MiB) are kept between calls
# Multiplications of one product. Up to 2^18 OpenBLAS uses one thread, whatever its setting (which
# other threads than the main one cannot always change), and several threads round differently.
_PRODUCT = 1 << 17
_WINDOW_ELEMENTS = 1 << 20  # input windows copied at a time (4 MiB)


def resampled_length(samples, orig_rate: int, new_rate: int):
    """Length of `resample`'s result for `samples` at `orig_rate`: ceil(samples * new / orig)."""
    common = math.gcd(orig_rate, new_rate)
    orig, new = orig_rate // common, new_rate // common
    return -(-samples * new // orig)


def resample(wave: np.ndarray, orig_rate: int, new_rate: int, *, axis: int = -1) -> np.ndarray:
    """Resample along one axis.

    Memory beyond input and output stays below about 20 MB for any pair of rates up to 192 kHz
    (coprime ones included): filter taps are computed in blocks when needed, and only those that a
    signal of this length uses.

    Args:
      wave: floating array; `axis` counts samples at `orig_rate`.
      orig_rate: rate of `wave`, Hz.
      new_rate: rate of the result, Hz.
      axis: the axis of samples.

    Returns:
      float32 array with `resampled_length(...)` samples along `axis`.

    Raises:
      ValueError: a rate that is not a positive integer, or a wave that is not floating point.
    """
    for name, rate in (("orig_rate", orig_rate), ("new_rate", new_rate)):
        if int(rate) != rate or rate < 1:
            raise ValueError(f"{name} = {rate!r}: expected a positive integer (Hz)")
    wave = np.asarray(wave)
    if wave.dtype.kind != "f":
        raise ValueError(f"wave has dtype {wave.dtype}: expected floating point in [-1, 1]")
    orig_rate, new_rate = int(orig_rate), int(new_rate)
    if orig_rate == new_rate:
        return wave.astype(np.float32)
    common = math.gcd(orig_rate, new_rate)
    orig, new = orig_rate // common, new_rate // common
    x_BS = np.moveaxis(wave, axis, -1)
    lead, samples = x_BS.shape[:-1], x_BS.shape[-1]
    y_BS = _resample_rows(x_BS.reshape(math.prod(lead), samples), orig, new)
    return np.moveaxis(y_BS.reshape(*lead, y_BS.shape[-1]), -1, axis)


def _resample_rows(x_BS: np.ndarray, orig: int, new: int) -> np.ndarray:
    """`resample` of rows, rates divided by their greatest common divisor."""
    rows, samples = x_BS.shape
    outputs = -(-samples * new // orig)
    if not rows * outputs:
        return np.zeros((rows, outputs), np.float32)
    # The filter repeats after `new` outputs; short periods are combined to fill a block.
    repeat = max(1, _BLOCK_OUTPUTS // new)
    orig, new = orig * repeat, new * repeat
    periods = -(-outputs // new)
    half = _half_width(orig, new)
    x_padded = np.zeros((rows, half + periods * orig + half + 2), np.float32)
    x_padded[:, half : half + samples] = x_BS
    y = np.empty((rows, periods, new), np.float32)
    for first, start, taps_KP in _filter_blocks(orig, new, min(new, outputs)):
        width, count = taps_KP.shape
        windows = np.lib.stride_tricks.sliding_window_view(x_padded, width, axis=-1)
        windows = windows[:, half + start :: orig][:, :periods]
        step = max(1, min(_WINDOW_ELEMENTS // (width * rows), _PRODUCT // (width * count)))
        for period in range(0, periods, step):
            block = slice(period, period + step)
            y[:, block, first : first + count] = windows[:, block] @ taps_KP
    return y.reshape(rows, periods * new)[:, :outputs]


def _half_width(orig: int, new: int) -> int:
    """Input samples on each side of an output's instant that its taps reach."""
    return math.ceil(LOWPASS_WIDTH * max(orig, new) / (ROLLOFF * new))


def _filter_blocks(orig: int, new: int, outputs: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first output, first input, taps (inputs, outputs)) that cover `outputs` of a period.

    Inputs are numbered from the period's first sample, and negative before it.
    """
    widest = min(_BLOCK_OUTPUTS, max(1, _BLOCK_TAPS // (2 * _half_width(orig, new))))
    blocks = -(-new // widest)
    size = -(-new // blocks)
    inputs = size * orig // new + 2 * _half_width(orig, new)
    if blocks * size * inputs <= _CACHED_TAPS:
        yield from _cached_filter_blocks(orig, new, size)
    else:
        for first in range(0, outputs, size):
            yield _filter_block(orig, new, first, min(size, new - first))


@functools.lru_cache(maxsize=16)
def _cached_filter_blocks(orig: int, new: int, size: int):
    return [_filter_block(orig, new, i, min(size, new - i)) for i in range(0, new, size)]


def _filter_block(orig: int, new: int, first: int, count: int) -> tuple[int, int, np.ndarray]:
    """The item of `_filter_blocks` with outputs `first` to `first + count`."""
    half = _half_width(orig, new)
    start = first * orig // new - half
    stop = (first + count - 1) * orig // new + half + 2
    # n / orig - m / new over the common denominator, exact in integers, so that float32 suffices
    # afterwards: a relative error of 2**-24 in t changes sinc(t) by no more than that.
    n = np.arange(start, stop, dtype=np.int64)[:, None] * new
    m = np.arange(first, first + count, dtype=np.int64) * orig
    t = np.subtract(n, m).astype(np.float32)
    t *= np.float32(ROLLOFF / max(orig, new))
    np.clip(t, -LOWPASS_WIDTH, LOWPASS_WIDTH, out=t)
    taps = np.cos(t * np.float32(math.pi / (2 * LOWPASS_WIDTH)))
    taps *= taps
    t *= np.float32(math.pi)
    sine = np.sin(t)
    taps *= np.divide(sine, t, out=np.ones_like(t), where=t != 0)
    taps *= np.float32(ROLLOFF * min(orig, new) / orig)
    return first, start, taps
