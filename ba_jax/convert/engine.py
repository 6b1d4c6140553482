"""Conversion tables run both ways: check a source's headers, then stream its tensors.

Planning reads names, shapes and dtypes only and reports every problem at once; copying the data of
a checked plan cannot fail for a reason that the headers show. Every step is a permutation of bytes
(or, with `dtype`, a cast), so an import can be undone bit by bit.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import einops
import ml_dtypes
import numpy as np

from ba_jax.checkpoints import arrays
from ba_jax.tree import flatten, unflatten

FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


MAX_PROBLEMS = 20


class ConversionError(ValueError):
    """A source, table or checkpoint cannot be converted; the message names file and value."""


def report_problems(label: str, problems: Sequence[str]) -> None:
    """Raise `ConversionError` with the number of problems and the first of them, if any."""
    if len(problems) == 1:
        raise ConversionError(f"{label}: {problems[0]}")
    if problems:
        more = ["..."] if len(problems) > MAX_PROBLEMS else []
        lines = "\n  ".join([*problems[:MAX_PROBLEMS], *more])
        raise ConversionError(f"{label}: {len(problems)} problems:\n  {lines}")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorSource(Protocol):
    """A file or folder of named tensors.

    Attributes:
      label: the path, for messages.
      tensors: name -> `TensorInfo`, in file order.
    """

    label: str
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows `start:stop` along axis 0 (all of a scalar)."""
        ...


@dataclasses.dataclass(frozen=True)
class WeightRow:
    """A row of the conversion tables: one kind of reference weight and its place in our variables.

    Tables are data that run in both directions, so every row can be inverted.

    Attributes:
      source: reference name. Fields in braces (`model.layers.{layer}.norm.weight`) are filled with
        0..n-1 as `stack` says.
      targets: path `collection/component/...` of the variable; with `split`, one path per part, in
        order. An empty path stands for a part that is always zero and not stored.
      layout: einops pattern from the reference tensor (or one part of it) to the target slice, a
        pure permutation of axes such as `"o i -> i o"`; empty if both are laid out alike.
      split: `(axis, sizes)`: the reference tensor is cut along `axis` into parts of these sizes.
      stack: `((field, n), ...)`: each field becomes a leading axis of size n of every target, in
        this order. Empty: the row names a single tensor.
    """

    source: str
    targets: tuple[str, ...]
    layout: str = ""
    split: tuple[int, tuple[int, ...]] | None = None
    stack: tuple[tuple[str, int], ...] = ()


def row(source: str, target: str, layout: str = "", **kwargs) -> WeightRow:
    """Make a `WeightRow` with a single target."""
    return WeightRow(source, (target,), layout, **kwargs)


def split_layout(layout: str) -> tuple[list[str], list[str]]:
    """Return the axis names of both sides of a layout.

    Raises:
      ConversionError: `layout` is not a pure permutation such as `"o i k -> k i o"`.
    """
    sides = [side.split() for side in layout.split("->")]
    names = sides[0]
    if (
        len(sides) != 2
        or sorted(names) != sorted(sides[1])
        or len(set(names)) != len(names)
        or not all(name.isidentifier() for name in names)
    ):
        raise ConversionError(
            f"layout {layout!r}: expected a permutation of named axes, as in 'o i -> i o'"
        )
    return sides[0], sides[1]


def permute(array: np.ndarray, layout: str) -> np.ndarray:
    """Permute axes by an einops pattern into contiguous memory; an empty pattern keeps them."""
    if not layout:
        return np.ascontiguousarray(array)
    # NumPy copies its own integers several times faster than the extension type bfloat16.
    bits = array.view(f"u{array.dtype.itemsize}")
    return np.ascontiguousarray(einops.rearrange(bits, layout)).view(array.dtype)


@dataclasses.dataclass(frozen=True)
class Placement:
    """One part of a source tensor and the slice of the target variable that holds it.

    Attributes:
      source, target: reference name; path of the variable, or empty for a part that is always zero
        and not stored.
      index: index in the target's leading stacked axes.
      axis, start, size: the part is `start:start+size` of the source along `axis`.
      shape: shape of the target slice, without stacked axes.
      source_shape: shape of the whole source tensor.
      layout: permutation from part to slice, or empty.
    """

    source: str
    target: str
    index: tuple[int, ...]
    axis: int
    start: int
    size: int
    shape: tuple[int, ...]
    source_shape: tuple[int, ...]
    layout: str

    @property
    def row_axis(self) -> int | None:
        """Axis of the slice that the source's axis 0 becomes; None for a scalar."""
        if self.layout:
            left, right = split_layout(self.layout)
            return right.index(left[0])
        return 0 if self.shape else None

    @property
    def rows(self) -> tuple[int, int]:
        """Range of source rows that hold the part; (0, 1) for a scalar."""
        if not self.source_shape:
            return 0, 1
        if self.axis == 0:
            return self.start, self.start + self.size
        return 0, self.source_shape[0]

    def slice_rows(self, start: int, stop: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offsets and shape, in the slice, of source rows `start:stop` (both within `rows`)."""
        offsets, shape = [0] * len(self.shape), list(self.shape)
        if self.row_axis is not None:
            offsets[self.row_axis] = start - self.rows[0]
            shape[self.row_axis] = stop - start
        return tuple(offsets), tuple(shape)

    def to_slice(self, rows: np.ndarray) -> np.ndarray:
        """Turn source rows (all columns) into a piece of the target slice."""
        if self.axis > 0:
            rows = rows[(slice(None),) * self.axis + (slice(self.start, self.start + self.size),)]
        return permute(rows, self.layout)

    def to_source(self, piece: np.ndarray) -> np.ndarray:
        """Turn a piece of the target slice into source rows, with this part's columns only."""
        return permute(piece, " -> ".join(reversed(self.layout.split("->"))))

    def row_step(self, itemsize: int) -> int:
        """Number of source rows of the part that make up one chunk of the target.

        The size of whole source rows, all columns, is bounded: export joins the columns again.
        """
        rows = self.rows[1] - self.rows[0]
        if self.row_axis is None or rows <= 1:
            return max(1, rows)
        row_bytes = math.prod(self.source_shape[1:]) * itemsize
        chunks = max(1, -(-rows * row_bytes // arrays.MAX_CHUNK_BYTES))
        # Prefer a number of chunks that divides the rows, so that all chunks are equal.
        chunks = next((n for n in range(chunks, 2 * chunks) if rows % n == 0), chunks)
        return -(-rows // min(chunks, rows))

    def row_ranges(self, itemsize: int) -> Iterator[tuple[int, int]]:
        """Yield consecutive ranges of source rows, one per chunk."""
        first, last = self.rows
        step = self.row_step(itemsize)
        for start in range(first, last, step):
            yield start, min(start + step, last)


def source_names(rows: Iterable[WeightRow]) -> set[str]:
    """Return the reference's names of tables."""
    return {name for row in rows for name, _ in _indexed_names(row)}


def expand(rows: Iterable[WeightRow], shapes: Mapping[str, Any]) -> dict[str, list[Placement]]:
    """Expand tables to one entry per source tensor, with the placement of each of its parts.

    Args:
      rows: conversion tables.
      shapes: expected variables: nested dict of anything with `.shape`.

    Raises:
      ConversionError: listing every fault of the tables themselves: a target that is not among
        `shapes`, is filled twice or not at all, a source named twice, a split or stack that does
        not fit.
    """
    variables = {p: tuple(leaf.shape) for p, leaf in flatten(shapes).items()}
    placements: dict[str, list[Placement]] = {}
    problems: list[str] = []
    for row in rows:
        try:
            for placement in _expand_row(row, variables):
                if placement.source in placements and placement.start == 0:
                    problems.append(f"duplicate source {placement.source}")
                placements.setdefault(placement.source, []).append(placement)
        except ConversionError as error:
            problems.append(f"row {row.source}: {error}")
    filled: set[tuple[str, tuple[int, ...]]] = set()
    for part in itertools.chain.from_iterable(placements.values()):
        slot = part.target, part.index
        if part.target and slot in filled:
            problems.append(
                f"duplicate target {part.target}{list(part.index)} (from {part.source})"
            )
        filled.add(slot)
    paths = {path for path, _ in filled}
    problems += [f"no row fills {p} {shape}" for p, shape in variables.items() if p not in paths]
    report_problems("conversion tables", problems)
    return placements


def _expand_row(row: WeightRow, variables: Mapping[str, tuple[int, ...]]) -> list[Placement]:
    axis, sizes = row.split or (0, (None,))
    if len(sizes) != len(row.targets):
        raise ConversionError(f"{len(row.targets)} targets for {len(sizes)} parts")
    stack = tuple(n for _, n in row.stack)
    slices: list[tuple[int, ...]] = []  # shapes of the parts in the target
    parts: list[tuple[int, ...]] = []  # shapes of the same parts in the source
    for path, size in zip(row.targets, sizes, strict=True):
        if not path and size is not None and not row.layout and axis == 0:
            shape = (size,)
        else:
            shape = _slice_shape(path, stack, variables)
        slices.append(shape)
        parts.append(_source_shape(row.layout, shape))
    source_shape = parts[0]
    if row.split:
        got = tuple(part[axis] if axis < len(part) else -1 for part in parts)
        if got != tuple(sizes):
            raise ConversionError(f"split sizes {tuple(sizes)}, targets have {got}")
        others = {(*part[:axis], *part[axis + 1 :]) for part in parts}
        if len(others) > 1:
            raise ConversionError(f"parts differ beyond axis {axis}: {sorted(others)}")
        source_shape = (*source_shape[:axis], sum(sizes), *source_shape[axis + 1 :])
    lengths = [part[axis] if part else 1 for part in parts]
    starts = [0, *itertools.accumulate(lengths)]
    placements = []
    for source, index in _indexed_names(row):
        for path, shape, start, length in zip(row.targets, slices, starts, lengths, strict=False):
            placements.append(
                Placement(source, path, index, axis, start, length, shape, source_shape, row.layout)
            )
    return placements


def _indexed_names(row: WeightRow) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each name of a row and its index in the stacked axes."""
    for index in itertools.product(*(range(n) for _, n in row.stack)):
        fields = {field: i for (field, _), i in zip(row.stack, index, strict=True)}
        try:
            yield row.source.format(**fields), index
        except (KeyError, IndexError) as error:
            raise ConversionError(f"stack {row.stack} does not give the field {error}") from error


def _slice_shape(path: str, stack: tuple[int, ...], variables) -> tuple[int, ...]:
    """Shape of a variable without its stacked axes."""
    if path not in variables:
        raise ConversionError(f"{path} is not a variable")
    shape = variables[path]
    if shape[: len(stack)] != stack:
        raise ConversionError(f"{path} is {shape}, expected leading axes {stack}")
    return shape[len(stack) :]


def _source_shape(layout: str, target: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the source part whose slice of the target has shape `target`."""
    if not layout:
        return target
    left, right = split_layout(layout)
    if len(target) != len(right):
        raise ConversionError(f"layout {layout!r} does not fit a target of {target}")
    sizes = dict(zip(right, target, strict=True))
    return tuple(sizes[name] for name in left)


@dataclasses.dataclass(frozen=True)
class ImportPlan:
    """A checked import: which tensor goes where. No data has been read.

    Attributes:
      source: the reference tensors.
      placements: source name -> its parts.
      targets: path -> its slices, in order of their index.
      dtypes: path -> dtype to be stored.
      shapes: path -> shape.
      left_out: source names that are skipped on purpose -> the prefix that matched.
    """

    source: TensorSource
    placements: Mapping[str, Sequence[Placement]]
    targets: Mapping[str, Sequence[Placement]]
    dtypes: Mapping[str, np.dtype]
    shapes: Mapping[str, tuple[int, ...]]
    left_out: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes that will be read from the source."""
        return sum(self.source.tensors[name].nbytes for name in self.placements)


def make_plan(
    rows: Iterable[WeightRow],
    source: TensorSource,
    shapes: Mapping[str, Any],
    left_out: Sequence[str] = (),
    dtype: Any = None,
) -> ImportPlan:
    """Check a source against the tables, reading no data.

    Args:
      rows: conversion tables.
      source: names, shapes and dtypes.
      shapes: expected variables: nested dict `{collection: {component: ...}}` of
        `jax.ShapeDtypeStruct`.
      left_out: prefixes of names that are skipped.
      dtype: cast floating variables of `params` to it; None keeps all dtypes as stored.

    Raises:
      ConversionError: listing all unknown, missing and misshapen tensors, all of a wrong dtype, and
        all variables whose slices come in different dtypes.
    """
    placements = expand(rows, shapes)
    variables = flatten(shapes)
    if source.tensors and not placements.keys() & source.tensors.keys():
        raise ConversionError(
            f"{source.label}: holds none of the model's tensors: {next(iter(source.tensors))} and "
            f"others, expected {next(iter(placements))} and others"
        )
    skipped = {
        name: prefix
        for name in source.tensors
        for prefix in left_out
        if name not in placements and name.startswith(prefix)
    }
    problems = [
        f"unknown tensor {name} {info.shape}"
        for name, info in source.tensors.items()
        if name not in placements and name not in skipped
    ]
    for name, parts in placements.items():
        wanted = np.dtype(next(variables[p.target].dtype for p in parts if p.target))
        problems += _check_tensor(source, name, parts[0].source_shape, wanted)
    report_problems(source.label, problems)

    targets: dict[str, list[Placement]] = {path: [] for path in variables}
    for part in itertools.chain.from_iterable(placements.values()):
        if part.target:
            targets[part.target].append(part)
    dtypes = {}
    for path, parts in targets.items():
        parts.sort(key=lambda part: part.index)
        stored = source.tensors[parts[0].source].dtype
        if dtype is not None and path.startswith("params/") and stored in FLOAT_DTYPES:
            dtypes[path] = np.dtype(dtype)
            continue
        dtypes[path] = stored
        other = next((p.source for p in parts if source.tensors[p.source].dtype != stored), None)
        if other is not None:
            problems.append(
                f"{parts[0].source} is {stored.name} but {other} is "
                f"{source.tensors[other].dtype.name}, and both are slices of {path}: choose one "
                "with --dtype"
            )
    report_problems(source.label, problems)
    shape_of = {path: tuple(leaf.shape) for path, leaf in variables.items()}
    return ImportPlan(source, placements, targets, dtypes, shape_of, skipped)


def _check_tensor(
    source: TensorSource, name: str, shape: tuple[int, ...], dtype: np.dtype
) -> list[str]:
    info = source.tensors.get(name)
    if info is None:
        return [f"missing tensor {name} {shape}"]
    problems = []
    if info.shape != shape:
        problems.append(f"misshapen tensor {name}: expected {shape}, got {info.shape}")
    allowed = FLOAT_DTYPES if dtype in FLOAT_DTYPES else (dtype,)
    if info.dtype not in allowed:
        names = " or ".join(d.name for d in allowed)
        problems.append(f"wrong dtype of {name}: expected {names}, got {info.dtype.name}")
    return problems


def check_zeros(plan: ImportPlan) -> None:
    """Raise `ConversionError` if a part that is not stored is not zero."""
    for part in itertools.chain.from_iterable(plan.placements.values()):
        if not part.target and plan.source.read(part.source, *part.rows).any():
            raise ConversionError(
                f"{plan.source.label}: {part.source}[{part.start}:{part.start + part.size}] is "
                "not zero, and the model has no place for it"
            )


def check_copy(source: TensorSource, name: str, original: str) -> None:
    """Raise `ConversionError` unless two matrices are equal bit by bit."""
    info = source.tensors[name]
    equal = info == source.tensors[original]
    step = max(1, arrays.MAX_CHUNK_BYTES * info.shape[0] // max(1, info.nbytes)) if equal else 1
    for start in range(0, info.shape[0] if equal else 0, step):
        rows = (source.read(n, start, start + step).tobytes() for n in (name, original))
        equal = equal and len(set(rows)) == 1
    if not equal:
        raise ConversionError(
            f"{source.label}: {name} is not equal to {original}, and the model's config.json says "
            "tie_word_embeddings: expected a copy, or tie_word_embeddings: false"
        )


def lazy_variables(
    plan: ImportPlan, progress: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Return the plan's variables as a nested dict of `LazyArray`, for `save_streamed`.

    `progress` is called with the number of source bytes after each piece.
    """

    def lazy_array(path: str) -> arrays.LazyArray:
        parts, dtype, shape = plan.targets[path], plan.dtypes[path], plan.shapes[path]
        stacked = (1,) * len(parts[0].index)

        def pieces():
            for part in parts:
                for start, stop in part.row_ranges(dtype.itemsize):
                    piece = part.to_slice(plan.source.read(part.source, start, stop))
                    progress(piece.nbytes)
                    offsets, size = part.slice_rows(start, stop)
                    piece = piece.astype(dtype, copy=False).reshape(stacked + size)
                    yield (*part.index, *offsets), piece

        def whole():
            array = np.empty(shape, dtype)
            for start, piece in pieces():
                region = zip(start, piece.shape, strict=True)
                array[tuple(slice(o, o + n) for o, n in region)] = piece
            yield (0,) * len(shape), array

        if math.prod(shape) * dtype.itemsize <= arrays.SMALL_BYTES:
            return arrays.LazyArray(shape, dtype, shape, whole)
        _, chunk = parts[0].slice_rows(0, parts[0].row_step(dtype.itemsize))
        return arrays.LazyArray(shape, dtype, stacked + chunk, pieces)

    return unflatten({path: lazy_array(path) for path in plan.targets})


def source_rows(
    parts: Sequence[Placement], reader: arrays.Reader, dtype: Any = None
) -> Iterator[np.ndarray]:
    """Read a reference tensor back from a checkpoint, a range of rows at a time.

    Args:
      parts: all parts of the tensor.
      reader: the checkpoint.
      dtype: cast to it; None keeps the stored dtype.

    Yields:
      Consecutive rows of the tensor in C order.
    """
    dtype = np.dtype(dtype or stored_dtype(parts, reader))
    whole, axis = parts[0].source_shape, parts[0].axis
    # Parts that share rows are read together; parts that follow each other along axis 0, in turn.
    for group in [[part] for part in parts] if axis == 0 else [list(parts)]:
        for start, stop in group[0].row_ranges(dtype.itemsize):
            columns = []
            for part in group:
                if not part.target:
                    columns.append(np.zeros((stop - start, *whole[1:]), dtype))
                    continue
                offsets, shape = part.slice_rows(start, stop)
                region = tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
                columns.append(part.to_source(reader.read(part.target, (*part.index, *region))))
            rows = columns[0] if len(columns) == 1 else np.concatenate(columns, axis)
            yield np.ascontiguousarray(rows).astype(dtype, copy=False)


def stored_dtype(parts: Sequence[Placement], reader: arrays.Reader) -> np.dtype:
    """Return the dtype in which a checkpoint holds a reference tensor.

    Raises:
      ConversionError: its parts are stored in different dtypes.
    """
    dtypes = {part.target: reader.dtype(part.target) for part in parts if part.target}
    if len(set(dtypes.values())) > 1:
        listing = ", ".join(f"{path} {dtype.name}" for path, dtype in dtypes.items())
        raise ConversionError(
            f"{reader.directory}: the parts of {parts[0].source} differ in dtype ({listing}): "
            "choose one with --dtype"
        )
    return next(iter(dtypes.values()))
