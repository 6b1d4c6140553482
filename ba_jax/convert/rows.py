"""The row type of the conversion tables: a weight kind of the reference and its place in ours.

A table is data. The engine (`engine.py`) runs it in both directions, so a row must be invertible:
`split` cuts the reference tensor, `layout` permutes each part, `stack` says which fields of the
name become leading axes of the target.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight kind.

    Attributes:
      source: reference name. Fields in braces (`model.layers.{layer}.norm.weight`) are filled with
        0..n-1 as `stack` says.
      targets: one path `collection/component/...` into the variables, or, if `split` is set, one
        path a part, in order. The empty path stands for a part that is not stored because it is
        always zero.
      layout: einops pattern from the reference tensor (or one part of it) to the target slice,
        a pure permutation of axes such as `"o i -> i o"`; empty if both are laid out alike.
      split: `(axis, sizes)`: the reference tensor is cut along `axis` into parts of these sizes.
      stack: `((field, n), ...)`: each field becomes a leading axis of size n of every target, in
        this order. Empty: the row names one tensor.
    """

    source: str
    targets: tuple[str, ...]
    layout: str = ""
    split: tuple[int, tuple[int, ...]] | None = None
    stack: tuple[tuple[str, int], ...] = ()


def row(source: str, target: str, layout: str = "", **kwargs) -> Row:
    """A `Row` with a single target."""
    return Row(source, (target,), layout, **kwargs)
