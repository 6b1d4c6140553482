"""Batches of few shapes from items of many lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class LengthError(ValueError):
    """An item that is empty or longer than the largest bucket."""


def batches(
    sizes: Sequence[int], buckets: Sequence[int], rows: int, name: str = "item"
) -> Iterator[tuple[int, list[int]]]:
    """Yield (bucket, indices of at most `rows` items), each item once, shortest first.

    The bucket of a batch is the smallest that holds its longest item.

    Raises:
      LengthError: a size below 1 or over the largest bucket.
    """
    ordered = sorted(buckets)
    for i, size in enumerate(sizes):
        if not 1 <= size <= ordered[-1]:
            raise LengthError(f"{name} {i} is {size} long, expected 1 to {ordered[-1]}")
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    for first in range(0, len(order), rows):
        batch = order[first : first + rows]
        yield next(bucket for bucket in ordered if bucket >= sizes[batch[-1]]), batch


def pad(items: Sequence[np.ndarray], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Items padded with zeros to (rows, length, ...), and their lengths, int32.

    Rows without an item repeat the first item: norms have no statistics over a length of 0.
    """
    first = np.asarray(items[0])
    stacked = np.zeros((rows, length, *first.shape[1:]), first.dtype)
    lengths_B = np.zeros(rows, np.int32)
    for row in range(rows):
        item = items[row] if row < len(items) else first
        stacked[row, : len(item)] = item
        lengths_B[row] = len(item)
    return stacked, lengths_B
