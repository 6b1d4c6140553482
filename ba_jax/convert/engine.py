"""Runs conversion tables: plans against a source's headers, then streams tensors either way.

Planning reads names, shapes and dtypes only and reports every problem at once; after a plan exists
the data can be copied without further questions. Every step is a permutation of bytes (or, with
`dtype`, one cast), so an import can be undone bit by bit.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ba_jax.checkpoints import arrays
from ba_jax.convert.rows import Row
from ba_jax.tree import flatten, unflatten

FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class ConversionError(ValueError):
    """A source, table or checkpoint that cannot be converted; the message names file and value."""


def report_problems(label: str, problems: Sequence[str]) -> None:
    """Raises `ConversionError` with all `problems`, if there are any."""
    if len(problems) == 1:
        raise ConversionError(f"{label}: {problems[0]}")
    if problems:
        lines = "\n  ".join(problems)
        raise ConversionError(f"{label}: {len(problems)} problems:\n  {lines}")


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it."""

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
        """Rows `start:stop` along axis 0 (all of a scalar)."""
        ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """A permutation of axes, from a reference tensor to our slice and back.

    Attributes:
      left, right: axis names of the reference tensor and of the slice.
    """

    left: tuple[str, ...]
    right: tuple[str, ...]

    @classmethod
    def parse(cls, pattern: str) -> Layout:
        """Raises `ConversionError` unless `pattern` is like `"o i k -> k i o"`."""
        sides = [tuple(side.split()) for side in pattern.split("->")]
        names = sides[0]
        if (
            len(sides) != 2
            or sorted(names) != sorted(sides[1])
            or len(set(names)) != len(names)
            or not all(name.isidentifier() for name in names)
        ):
            raise ConversionError(
                f"layout {pattern!r}: expected a permutation of named axes, as in 'o i -> i o'"
            )
        return cls(*sides)

    def source_shape(self, target: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the source part whose slice of the target has shape `target`."""
        if len(target) != len(self.right):
            raise ConversionError(f"layout {self} does not fit a target of {target}")
        size = dict(zip(self.right, target, strict=True))
        return tuple(size[name] for name in self.left)

    @property
    def row_axis(self) -> int:
        """Which axis of the slice axis 0 of the source becomes."""
        return self.right.index(self.left[0])

    def apply(self, part: np.ndarray) -> np.ndarray:
        return _transpose(part, [self.left.index(name) for name in self.right])

    def undo(self, piece: np.ndarray) -> np.ndarray:
        return _transpose(piece, [self.right.index(name) for name in self.left])

    def __str__(self) -> str:
        return repr(f"{' '.join(self.left)} -> {' '.join(self.right)}")


def _transpose(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    # NumPy copies its own integers several times faster than the extension type bfloat16.
    bits = array.view(f"u{array.dtype.itemsize}")
    return np.ascontiguousarray(bits.transpose(axes)).view(array.dtype)


@dataclasses.dataclass(frozen=True)
class Placement:
    """One part of one source tensor, and the slice of the target that holds it.

    Attributes:
      source, target: reference name; path of the variable, or empty for a part that is always zero
        and not stored.
      index: index in the target's leading stacked axes.
      axis, start, size: the part is `start:start+size` of the source along `axis`.
      shape: shape of the target slice (stacked axes left out).
      source_shape: shape of the whole source tensor.
      layout: permutation from part to slice, or None.
    """

    source: str
    target: str
    index: tuple[int, ...]
    axis: int
    start: int
    size: int
    shape: tuple[int, ...]
    source_shape: tuple[int, ...]
    layout: Layout | None

    @property
    def row_axis(self) -> int | None:
        """Axis of the slice that the source's axis 0 becomes; None for a scalar."""
        if self.layout is not None:
            return self.layout.row_axis
        return 0 if self.shape else None

    @property
    def rows(self) -> tuple[int, int]:
        """The range of source rows in which the part lies."""
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

    def forward(self, rows: np.ndarray) -> np.ndarray:
        """Source rows (all columns) -> piece of the target slice."""
        if self.axis > 0:
            rows = rows[(slice(None),) * self.axis + (slice(self.start, self.start + self.size),)]
        if self.layout is None:
            return np.ascontiguousarray(rows)
        return self.layout.apply(rows)

    def backward(self, piece: np.ndarray) -> np.ndarray:
        """Piece of the target slice -> source rows, this part's columns only."""
        return piece if self.layout is None else self.layout.undo(piece)


def expand(rows: Iterable[Row], shapes: Mapping[str, Any]) -> dict[str, list[Placement]]:
    """Every source name that `rows` stand for, with the places of its parts.

    Args:
      rows: conversion tables.
      shapes: expected variables: nested dict of anything with `.shape`.

    Raises:
      ConversionError: listing every fault of the tables themselves: a target that is not among
        `shapes`, one that is filled twice or not at all, a source named twice, a split or stack
        that does not fit.

    A target may be the empty path in a row that splits vectors: that part is not stored, it is
    zero (the bias of k in a fused q, k, v of Whisper's, say).
    """
    variables = {p: tuple(leaf.shape) for p, leaf in flatten(shapes).items()}
    filled: dict[str, set[tuple[int, ...]]] = {}
    placed: dict[str, list[Placement]] = {}
    problems: list[str] = []
    for row in rows:
        try:
            layout = Layout.parse(row.layout) if row.layout else None
            problems += _expand_row(row, layout, variables, filled, placed)
        except ConversionError as error:
            problems.append(f"row {row.source}: {error}")
    for path, shape in variables.items():
        if path not in filled:
            problems.append(f"no row fills {path} {shape}")
    report_problems("conversion tables", problems)
    return placed


def _expand_row(row, layout, variables, filled, placed) -> list[str]:
    sizes = row.split[1] if row.split else (None,)
    axis = row.split[0] if row.split else 0
    if len(sizes) != len(row.targets):
        return [f"row {row.source}: {len(row.targets)} targets for {len(sizes)} parts"]
    stack = tuple(n for _, n in row.stack)
    # (path, slice shape, shape of the part) of every part.
    parts = []
    for path, size in zip(row.targets, sizes, strict=True):
        if not path and size is not None and layout is None and axis == 0:
            parts.append((path, (size,), (size,)))
            continue
        if path not in variables:
            return [f"row {row.source}: {path} is not a variable"]
        shape = variables[path]
        if shape[: len(stack)] != stack:
            return [f"row {row.source}: {path} is {shape}, expected leading axes {stack}"]
        shape = shape[len(stack) :]
        parts.append((path, shape, layout.source_shape(shape) if layout else shape))
    source_shape = parts[0][2]
    if row.split:
        got = tuple(part[axis] if axis < len(part) else -1 for *_, part in parts)
        if got != tuple(sizes):
            return [f"row {row.source}: split sizes {tuple(sizes)}, targets have {got}"]
        others = {(*part[:axis], *part[axis + 1 :]) for *_, part in parts}
        if len(others) > 1:
            return [f"row {row.source}: parts differ beyond axis {axis}: {sorted(others)}"]
        source_shape = (*source_shape[:axis], sum(sizes), *source_shape[axis + 1 :])
    problems = []
    for index in itertools.product(*(range(n) for n in stack)):
        fields = {field: i for (field, _), i in zip(row.stack, index, strict=True)}
        try:
            source = row.source.format(**fields)
        except (KeyError, IndexError) as error:
            return [f"row {row.source}: stack {row.stack} does not give the field {error}"]
        if source in placed:
            problems.append(f"duplicate source {source}")
            continue
        placed[source] = []
        start = 0
        for path, shape, part in parts:
            if path and index in filled.setdefault(path, set()):
                problems.append(f"duplicate target {path}{list(index)} (from {source})")
            if path:
                filled[path].add(index)
            size = part[axis] if part else 1
            placed[source].append(
                Placement(source, path, index, axis, start, size, shape, source_shape, layout)
            )
            start += size
    return problems


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked import: what goes where, nothing read yet.

    Attributes:
      source: where tensors are read.
      placements: source name -> its parts.
      targets: path -> its slices, in order of their index.
      dtypes: path -> dtype to be stored.
      shapes: path -> shape.
      left_out: names of the source that are skipped on purpose, with the prefix that says so.
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
    rows: Iterable[Row],
    source: TensorSource,
    shapes: Mapping[str, Any],
    left_out: Sequence[str] = (),
    dtype: Any = None,
) -> Plan:
    """Checks a source against the tables, reading no data.

    Args:
      rows: conversion tables.
      source: names, shapes and dtypes.
      shapes: expected variables: nested dict `{collection: {component: ...}}` of
        `jax.ShapeDtypeStruct`.
      left_out: prefixes of names that are skipped.
      dtype: floating variables of `params` are cast to it. None: all are kept as stored.

    Raises:
      ConversionError: listing all unknown, missing and misshapen tensors, all of a wrong dtype, and
        all variables whose slices come in different dtypes.
    """
    placements = expand(rows, shapes)
    variables = flatten(shapes)
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
    targets: dict[str, list[Placement]] = {}
    for name, parts in placements.items():
        for part in parts:
            if part.target:
                targets.setdefault(part.target, []).append(part)
        expected = parts[0].source_shape
        if name not in source.tensors:
            problems.append(f"missing tensor {name} {expected}")
            continue
        info = source.tensors[name]
        if info.shape != expected:
            problems.append(f"misshapen tensor {name}: expected {expected}, got {info.shape}")
        wanted = np.dtype(next(variables[p.target].dtype for p in parts if p.target))
        allowed = FLOAT_DTYPES if wanted in FLOAT_DTYPES else (wanted,)
        if info.dtype not in allowed:
            names = " or ".join(d.name for d in allowed)
            problems.append(f"wrong dtype of {name}: expected {names}, got {info.dtype.name}")
    if problems:
        report_problems(source.label, problems)

    dtypes = {}
    for path, parts in targets.items():
        parts.sort(key=lambda part: part.index)
        first = parts[0].source
        stored = source.tensors[first].dtype
        if dtype is not None and path.startswith("params/") and stored in FLOAT_DTYPES:
            dtypes[path] = np.dtype(dtype)
            continue
        dtypes[path] = stored
        other = next((p.source for p in parts if source.tensors[p.source].dtype != stored), None)
        if other is not None:
            problems.append(
                f"{first} is {stored.name} but {other} is {source.tensors[other].dtype.name}, and "
                f"both are slices of {path}: choose one with --dtype"
            )
    report_problems(source.label, problems)
    ordered = {path: tuple(targets[path]) for path in variables}
    shape_of = {path: tuple(leaf.shape) for path, leaf in variables.items()}
    return Plan(source, placements, ordered, dtypes, shape_of, skipped)


def _row_step(part: Placement, itemsize: int) -> int:
    """Source rows of the part that make up one chunk of the target.

    The bytes of whole source rows count, all columns: export puts the columns together again.
    """
    first, last = part.rows if part.source_shape else (0, 1)
    rows = last - first
    if part.row_axis is None or rows <= 1:
        return max(1, rows)
    row_bytes = math.prod(part.source_shape[1:]) * itemsize
    chunks = max(1, -(-rows * row_bytes // arrays.MAX_CHUNK_BYTES))
    # Equal chunks where there is a number of them that divides the rows.
    chunks = next((n for n in range(chunks, 2 * chunks) if rows % n == 0), chunks)
    return -(-rows // min(chunks, rows))


def _row_ranges(part: Placement, itemsize: int) -> Iterator[tuple[int, int]]:
    first, last = part.rows if part.source_shape else (0, 1)
    step = _row_step(part, itemsize)
    for start in range(first, last, step):
        yield start, min(start + step, last)


def check_zeros(plan: Plan) -> None:
    """Raises `ConversionError` if a part that is not stored is not zero after all."""
    for parts in plan.placements.values():
        for part in parts:
            if not part.target and plan.source.read(part.source, *part.rows).any():
                raise ConversionError(
                    f"{plan.source.label}: {part.source}[{part.start}:{part.start + part.size}] is "
                    "not zero, and the model has no place for it"
                )


def lazy_variables(plan: Plan, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """The plan's variables as a nested dict of `checkpoint.LazyArray`, for `save_streamed`.

    `progress` is called with the number of source bytes after each piece.
    """

    def lazy_array(path: str) -> arrays.LazyArray:
        parts, dtype, shape = plan.targets[path], plan.dtypes[path], plan.shapes[path]
        lead = len(parts[0].index)

        def pieces():
            for part in parts:
                for start, stop in _row_ranges(part, dtype.itemsize):
                    piece = part.forward(plan.source.read(part.source, start, stop))
                    if progress is not None:
                        progress(piece.nbytes)
                    offsets, size = part.slice_rows(start, stop)
                    piece = piece.astype(dtype, copy=False).reshape((1,) * lead + size)
                    yield (*part.index, *offsets), piece

        def whole():
            array = np.empty(shape, dtype)
            for start, piece in pieces():
                region = zip(start, piece.shape, strict=True)
                array[tuple(slice(o, o + n) for o, n in region)] = piece
            yield (0,) * len(shape), array

        if math.prod(shape) * dtype.itemsize <= arrays.SMALL_BYTES:
            return arrays.LazyArray(shape, dtype, shape, whole)
        _, chunk = parts[0].slice_rows(0, _row_step(parts[0], dtype.itemsize))
        return arrays.LazyArray(shape, dtype, (1,) * lead + chunk, pieces)

    return unflatten({path: lazy_array(path) for path in plan.targets})


def source_rows(
    parts: Sequence[Placement], reader: arrays.Reader, dtype: Any = None
) -> Iterator[np.ndarray]:
    """The reference tensor that `parts` make up, read back from a checkpoint.

    Yields row ranges, first to last, that together are the tensor: for writing it without holding
    it whole. `dtype` casts; None keeps what the checkpoint holds.
    """
    dtype = np.dtype(dtype or stored_dtype(parts, reader))
    whole, axis = parts[0].source_shape, parts[0].axis
    # Parts that lie side by side in a row are read together, those one above the other in turn.
    for group in [[part] for part in parts] if axis == 0 else [list(parts)]:
        for start, stop in _row_ranges(group[0], dtype.itemsize):
            columns = []
            for part in group:
                if not part.target:
                    columns.append(np.zeros((stop - start, *whole[1:]), dtype))
                    continue
                offsets, shape = part.slice_rows(start, stop)
                region = tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
                columns.append(part.backward(reader.read(part.target, (*part.index, *region))))
            rows = columns[0] if len(columns) == 1 else np.concatenate(columns, axis)
            yield np.ascontiguousarray(rows).astype(dtype, copy=False)


def stored_dtype(parts: Sequence[Placement], reader: arrays.Reader) -> np.dtype:
    """The dtype in which a checkpoint holds a reference tensor.

    Raises:
      ConversionError: its parts are stored in different dtypes.
    """
    dtypes = {part.target: reader.dtype(part.target) for part in parts if part.target}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{path} {dtype.name}" for path, dtype in dtypes.items())
        raise ConversionError(
            f"{reader.directory}: the parts of {parts[0].source} differ in dtype ({found}): choose "
            "one with --dtype"
        )
    return next(iter(dtypes.values()))
