"""Orbax checkpoints of variables: written slice by slice, read whole, by component or by slice.

The streamed writer is an Orbax `TypeHandler` for `LazyArray` leaves, so the result is an ordinary
Orbax PyTree checkpoint: any process restores it with `ocp.StandardCheckpointer`, with any sharding,
without this module.

Paths are written `collection/component/...`, as in the conversion tables.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import future as ocp_future

from ba_jax.checkpoints import checksums
from ba_jax.checkpoints.layout import METADATA_FILE, CheckpointError, orbax_folder
from ba_jax.files import first_line
from ba_jax.tree import flatten, unflatten

# Bytes handed to TensorStore and not yet on disk. Two 64 MiB chunks in flight keep the disk busy
# while the next one is prepared.
MAX_PENDING_BYTES = 128 << 20
# Chunks of a streamed array are at most this large, so that a host which restores a shard of an
# array does not read much more than that shard.
MAX_CHUNK_BYTES = 64 << 20
# Arrays up to this size are written many at once.
SMALL_BYTES = 1 << 20
MAX_SMALL_WRITES = 32


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is produced in pieces while it is written.

    Attributes:
      shape: global shape.
      dtype: stored dtype.
      chunk_shape: shape of the stored chunks, one size an axis (0 is taken as 1). A piece should
        cover whole chunks, or TensorStore has to read a chunk back to complete it.
      pieces: called once; yields `(start, array)` where `start` is the offset of the piece in
        every axis. The pieces must tile the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_shape: tuple[int, ...]
    pieces: Callable[[], Iterable[tuple[tuple[int, ...], np.ndarray]]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class _LazyArrayHandler(ocp.type_handlers.NumpyHandler):
    """Write `LazyArray` leaves; Orbax records and restores them as NumPy arrays.

    Orbax commits in a separate thread, which outlives an exception in the caller: `stop` ends it.
    """

    def __init__(self):
        super().__init__()
        self._stopped = threading.Event()
        self._writing = threading.Lock()

    def stop(self) -> None:
        """Stop the writer at its next piece and wait for it."""
        self._stopped.set()
        with self._writing:
            pass

    async def serialize(self, values, infos, args=None):
        return [
            ocp_future.CommitFutureAwaitingContractedSignals(
                self._write_all(values, infos), name="lazy_array_handler"
            )
        ]

    async def _write_all(self, values, infos):
        with self._writing:
            await self._write_in_order(values, infos)

    async def _write_in_order(self, values, infos):
        # Small arrays mostly wait for the file system: many at once. Large ones one by one.
        small: collections.deque[asyncio.Task] = collections.deque()
        try:
            for value, info in zip(values, infos, strict=True):
                if value.nbytes > SMALL_BYTES:
                    await self._write(value, info)
                    continue
                if len(small) == MAX_SMALL_WRITES:
                    await small.popleft()
                small.append(asyncio.ensure_future(self._write(value, info)))
            while small:
                await small.popleft()
        finally:
            for task in small:
                task.cancel()
            await asyncio.gather(*small, return_exceptions=True)

    async def _write(self, value, info):
        await info.await_path_creation()
        # `local_shape` is what Orbax takes as the chunk shape.
        spec = ocp.type_handlers.get_json_tspec_write(
            info,
            use_ocdbt=info.is_ocdbt_checkpoint,
            global_shape=value.shape,
            local_shape=tuple(max(1, n) for n in value.chunk_shape),
            dtype=value.dtype,
        )
        store = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
        pending: collections.deque[tuple[Any, int]] = collections.deque()
        pending_bytes = written = 0
        for start, piece in value.pieces():
            if self._stopped.is_set():
                raise CheckpointError(f"{info.name}: writing was stopped")
            if piece.dtype != value.dtype:
                raise CheckpointError(
                    f"{info.name}: piece of dtype {piece.dtype}, expected {value.dtype}"
                )
            while pending and pending_bytes + piece.nbytes > MAX_PENDING_BYTES:
                write, nbytes = pending.popleft()
                await write
                pending_bytes -= nbytes
            region = tuple(slice(o, o + n) for o, n in zip(start, piece.shape, strict=True))
            # The piece is never written to again: TensorStore needs no copy.
            write = store[region].write(piece, can_reference_source_data_indefinitely=True)
            pending.append((write, piece.nbytes))
            pending_bytes += piece.nbytes
            written += piece.size
            del piece
        for write, _ in pending:
            await write
        if written != math.prod(value.shape):
            raise CheckpointError(
                f"{info.name}: pieces hold {written} elements, expected {value.shape}"
            )


@contextlib.contextmanager
def new_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `path`, renamed to `path` if the block succeeds, else removed.

    Raises:
      CheckpointError: `path` is a file, or a folder that is not empty and not `overwrite`.
    """
    path = Path(path).absolute()
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: is a file, expected a new or empty folder")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise CheckpointError(f"{path}: is not empty; --overwrite replaces it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        replaced = path.parent / f".{path.name}.replaced-{os.getpid()}"
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        _remove(partial)
        raise


def _remove(folder: Path, tries: int = 20) -> None:
    """Remove a folder that pending writes may still add to for a moment."""
    for _ in range(tries):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def save_streamed(directory: str | os.PathLike, tree: Mapping[str, Any]) -> None:
    """Write a nested dict of `LazyArray` as an Orbax checkpoint, piece by piece.

    Host memory stays within `MAX_PENDING_BYTES` plus two pieces. The folder gets its name only when
    everything is written. Arrays are stored uncompressed, one file a chunk: weights hardly
    compress, and a slice can be read back at disk speed.

    Raises:
      CheckpointError: `directory` exists, or pieces do not tile their array.
    """
    directory = Path(directory).absolute()
    if directory.exists():
        raise CheckpointError(f"{directory}: exists already, expected a new folder")
    writer = _LazyArrayHandler()
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, writer))
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, type_handler_registry=registry
    )
    with ocp.Checkpointer(handler) as checkpointer:
        try:
            checkpointer.save(directory, args=ocp.args.PyTreeSave(dict(tree)))
        except BaseException:
            writer.stop()
            raise


class Reader:
    """Reader of single arrays, or slices of them, of a checkpoint.

    `directory` is an Orbax folder or a folder that `ba_jax.convert` wrote. `arrays` maps each
    path to an opened TensorStore with `.shape`; nothing is read before `read`.

    Raises:
      CheckpointError: not a checkpoint, or one with missing parts.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = orbax_folder(directory)
        try:
            metadata = json.loads((self.directory / METADATA_FILE).read_text())
            keys = [
                tuple(str(k["key"]) for k in entry["key_metadata"])
                for entry in metadata["tree_metadata"].values()
                if not entry["value_metadata"].get("skip_deserialize")
            ]
            use_ocdbt = metadata.get("use_ocdbt", True)
            driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{self.directory / METADATA_FILE}: not Orbax metadata ({error!r})"
            ) from error
        context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        futures = {}
        for key in keys:
            name = ".".join(key)
            if use_ocdbt:
                base = {"driver": "file", "path": f"{self.directory}/"}
                kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
            else:
                kvstore = {"driver": "file", "path": f"{self.directory / name}/"}
            spec = {"driver": driver, "kvstore": kvstore, "fill_missing_data_reads": False}
            futures["/".join(key)] = ts.open(spec, open=True, read=True, context=context)
        self.arrays: dict[str, ts.TensorStore] = {}
        for path, opened in futures.items():
            try:
                self.arrays[path] = opened.result()
            except ValueError as error:
                raise CheckpointError(
                    f"{self.directory}: array {path} cannot be opened: {_reason(error)}"
                ) from error

    def check_chunks(self, paths: Iterable[str]) -> None:
        """Raise `CheckpointError` naming the first chunk file of these arrays that is missing or
        truncated. TensorStore itself checks checkpoints in Orbax's OCDBT format."""
        for path in paths:
            spec = self.arrays[path].spec().to_json()
            if spec["driver"] != "zarr" or spec["kvstore"]["driver"] != "file":
                continue
            metadata, folder = spec["metadata"], Path(spec["kvstore"]["path"])
            grid = [-(-n // c) for n, c in zip(metadata["shape"], metadata["chunks"], strict=True)]
            expected = None
            if metadata["compressor"] is None:
                expected = math.prod(metadata["chunks"]) * self.dtype(path).itemsize
            for index in np.ndindex(*grid):
                file = folder / (metadata["dimension_separator"].join(map(str, index)) or "0")
                size = file.stat().st_size if file.is_file() else None
                if size is None or expected not in (None, size):
                    problem = "missing" if size is None else f"{size} bytes, expected {expected}"
                    raise CheckpointError(f"{self.directory}: chunk {file} of {path}: {problem}")

    def _array(self, path: str) -> ts.TensorStore:
        if path not in self.arrays:
            raise CheckpointError(f"{self.directory}: no array {path}")
        return self.arrays[path]

    def shape(self, path: str) -> tuple[int, ...]:
        return tuple(self._array(path).shape)

    def check_shapes(self, expected: Mapping[str, Any]) -> None:
        """Raise `CheckpointError` unless every path of `expected` is stored with its `.shape`."""
        problems = []
        for path, leaf in expected.items():
            if path not in self.arrays:
                problems.append(f"missing {path} {tuple(leaf.shape)}")
            elif self.shape(path) != tuple(leaf.shape):
                problems.append(
                    f"misshapen {path}: expected {tuple(leaf.shape)}, got {self.shape(path)}"
                )
        if problems:
            raise CheckpointError(
                f"{self.directory}: not the expected variables:\n  " + "\n  ".join(problems)
            )

    def dtype(self, path: str) -> np.dtype:
        return np.dtype(self._array(path).dtype.numpy_dtype)

    def read(self, path: str, index: Any = ()) -> np.ndarray:
        """The part of array `path` that `index` (ints and slices, as in NumPy) selects."""
        try:
            return np.asarray(self._array(path)[index].read().result())
        except (ValueError, IndexError) as error:
            raise CheckpointError(
                f"{self.directory}: {path}[{index}] cannot be read: {_reason(error)}"
            ) from error


def _reason(error: BaseException) -> str:
    """First line of an error, without the settings that TensorStore appends."""
    return first_line(error).partition(" [tensorstore_spec=")[0]


def check_files(folder: str | os.PathLike) -> None:
    """Compare the files of a checkpoint's `weights` with their checksums, if it has them.

    Raises:
      CheckpointError: a damaged file.
    """
    folder = Path(folder).absolute()
    refuse_damage(checksums.damage(folder.parent, folder.name))
    checksums.warn_if_lost(folder.parent)


def refuse_damage(problem: str | None) -> None:
    """Raise `CheckpointError` if there is a problem."""
    if problem is not None:
        raise CheckpointError(f"{problem}: the checkpoint is damaged, expected another of the run")


def checkpoint_shapes(directory: str | os.PathLike) -> dict[str, Any]:
    """Nested dict of `jax.ShapeDtypeStruct` as stored in the checkpoint."""
    reader = Reader(directory)
    return unflatten(
        {p: jax.ShapeDtypeStruct(reader.shape(p), reader.dtype(p)) for p in reader.arrays}
    )


def load_variables(
    directory: str | os.PathLike,
    shapes: Mapping[str, Any] | None = None,
    sharding: jax.sharding.Sharding | Mapping[str, Any] | None = None,
    dtype: Any = None,
    components: Iterable[str] | None = None,
    checked: bool = False,
) -> dict[str, Any]:
    """Restore variables as jax Arrays.

    Args:
      directory: an Orbax folder, or a folder that `ba_jax.convert` wrote.
      shapes: expected variables (nested dict of anything with `.shape`); each must be stored with
        that shape, and only they are read. None: everything stored.
      sharding: one sharding for all arrays, or a nested dict of them. None: the default device.
      dtype: type of floating arrays of `params`; codebooks become float32, buffers stay as stored,
        which tells the model how far they were rounded. None: all as stored.
      components: restrict to these components, the second level of the tree. None: all.
      checked: skip `check_files`, the caller has done it.

    Returns:
      Nested dict `{collection: {component: ...}}` of jax Arrays.

    Raises:
      CheckpointError: no checkpoint, a partial or damaged one, or arrays that differ from `shapes`.
    """
    directory = orbax_folder(directory)
    if not checked:
        check_files(directory)  # first: a damaged index cannot be opened, and names no file
    reader = Reader(directory)
    stored = {p: (reader.shape(p), reader.dtype(p)) for p in reader.arrays}
    if components is not None:
        components = set(components)
        absent = components - {p.split("/")[1] for p in stored if "/" in p}
        if absent:
            raise CheckpointError(f"{reader.directory}: holds no component {sorted(absent)}")
    wanted = {
        path: leaf
        for path, leaf in (stored if shapes is None else flatten(shapes)).items()
        if components is None or ("/" in path and path.split("/")[1] in components)
    }
    if shapes is not None:
        reader.check_shapes(wanted)
    reader.check_chunks(wanted)
    if isinstance(sharding, Mapping):
        shardings = flatten(sharding)
        unplaced = [p for p in wanted if p not in shardings]
        if unplaced:
            raise CheckpointError(f"{reader.directory}: no sharding for {unplaced}")
    else:
        default = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = dict.fromkeys(wanted, default)

    abstract, restore_args = {}, {}
    for path in wanted:
        shape, stored_dtype = stored[path]
        if dtype is not None and jnp.issubdtype(stored_dtype, jnp.floating):
            if path.startswith("params/"):
                stored_dtype = dtype
            elif not path.startswith("buffers/"):
                stored_dtype = jnp.float32
        abstract[path] = jax.ShapeDtypeStruct(shape, stored_dtype, sharding=shardings[path])
        restore_args[path] = ocp.ArrayRestoreArgs(
            restore_type=jax.Array, dtype=stored_dtype, sharding=shardings[path], global_shape=shape
        )
    restore = ocp.args.PyTreeRestore(
        item=unflatten(abstract), restore_args=unflatten(restore_args), partial_restore=True
    )
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return checkpointer.restore(reader.directory, args=restore)
    except Exception as error:  # Orbax raises bare exceptions for unreadable data
        raise CheckpointError(
            f"{reader.directory}: cannot be restored: {first_line(error)}"
        ) from error
