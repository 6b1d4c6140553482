"""Sharding: the device mesh, and the tables that map names of arrays to its axes.

Mesh axes, from the slowest links to the fastest:

  replica    data parallel copies of the model; laid over the slices of a pod first, so that
             nothing else crosses the network between slices
  fsdp       rows of the batch again, and a shard of every large parameter
  tensor     heads, feed-forward width, vocabulary
  sequence   positions of the language model's rows

Parameters, batches, caches and activations have logical axes; `LOGICAL_AXES` maps these to mesh
axes. An array that no rule covers is an error, and so is a parameter that does not divide evenly.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ba_jax.config import ConfigError, expected
from ba_jax.tree import flatten, unflatten


class ShardingError(ValueError):
    """A mesh that does not fit the devices, or an array without a rule or of uneven size."""


AXES = ("replica", "fsdp", "tensor", "sequence")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh axes; one of them may be -1, which takes all remaining devices.

    Attributes:
      replica, fsdp, tensor, sequence: see the module.
      slices: number of TPU slices, or of groups of hosts, that are connected by a slower network;
        replica must be a multiple.
    """

    replica: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: int = 1


def make_mesh(settings: MeshSettings, devices=None) -> Mesh:
    """Mesh over the devices (default: all), with neighbours in it physically near each other.

    TPUs know their slice; other devices are grouped into slices in order.

    Raises:
      ShardingError: sizes whose product is not the number of devices, a wrong number of slices, or
        a replica axis that is not a multiple of it.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {name: getattr(settings, name) for name in AXES}
    free_axes = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free_axes) == 1 and fixed > 0 and len(devices) % fixed == 0:
        sizes[free_axes[0]] = len(devices) // fixed
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise ShardingError(
            f"mesh {dataclasses.asdict(settings)}: expected sizes whose product is the "
            f"{len(devices)} devices, at most one of them -1"
        )
    groups = _group_by_slice(devices, settings.slices)
    if sizes["replica"] % len(groups):
        raise ShardingError(
            f"mesh.replica = {sizes['replica']} on mesh.slices = {len(groups)}: expected a multiple"
        )
    sizes["replica"] //= len(groups)
    blocks = [_arrange(tuple(sizes.values()), group) for group in groups]
    return Mesh(np.concatenate(blocks), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def _group_by_slice(devices: Sequence[Any], count: int) -> list[list[Any]]:
    """Group the devices by slice.

    Raises:
      ShardingError: another number of slices, or slices of different sizes.
    """
    if devices[0].platform == "tpu":
        slices: dict[int, list] = {}
        for device in devices:
            slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
        groups = [slices[index] for index in sorted(slices)]
        if len(groups) != count or len({len(group) for group in groups}) > 1:
            raise ShardingError(
                f"mesh.slices = {count}, but the TPUs are in slices of "
                f"{[len(group) for group in groups]}: expected their number, and one size"
            )
        return groups
    if count < 1 or len(devices) % count:
        raise ShardingError(
            f"mesh.slices = {count} of {len(devices)} devices: expected a number that divides them"
        )
    size = len(devices) // count
    return [devices[start : start + size] for start in range(0, len(devices), size)]


def _arrange(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """Arrange a slice's devices so that neighbours, along the last axes first, are linked."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        # No product of the torus axes equals a size: split a torus axis.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


# Logical axis -> mesh axes.
LOGICAL_AXES: dict[str | None, str | tuple[str, ...] | None] = {
    # parameters: the residual width; widths inside a layer
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "channels": "fsdp",
    # activations, batches and caches: rows; their positions; positions gathered from the rows;
    # rows while the width of a table is sharded
    "batch": ("replica", "fsdp"),
    "length": "sequence",
    "frames": ("replica", "fsdp", "sequence"),
    "copies": "replica",
    # replicated: depths, taps, features of a position, positions that are attended to
    None: None,
}

# Parameter path (without the collection) -> logical axes of its last dimensions; dimensions before
# these (stacked layers, taps of a convolution) are replicated. The first match wins.
#
# `heads` and `kv_heads` are divided by whole heads. If tensor is a larger multiple of their number
# (there are few key and value heads), their kernels are replicated along it instead.
# `channels` belong to everything but transformers. If fsdp does not divide them, a kernel of up to
# MAX_REPLICATED_SIZE values is replicated: 18 channels, 80 mel bins.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # vectors: norms, biases, Snake's alpha, gains of weight norm
    (r".*/(scale|bias|alpha|kernel_g)", ()),
    # LoRA factors are thin
    (r".*/lora_\w+_[ab]", ()),
    (r"llm/(embedding|lm_head)", ("vocab", "embed")),
    (r"audio_embed/embedding_\d+", (None, "embed")),
    # projections from features to mels
    (r"(flow_prenet|flow_unet|audio_decoder/refine_net)/out/kernel", ("channels", None)),
    # attention and feed-forward layers of all transformers and of the audio head
    (r".*/query/kernel", ("embed", "heads")),
    (r".*/(key|value)/kernel", ("embed", "kv_heads")),
    (r".*/out/kernel", ("heads", "embed")),
    (r".*/(gate|up|ffn_in(_\d+)?|mlp_in)/kernel", ("embed", "mlp")),
    (r".*/(down|ffn_out(_\d+)?|mlp_out)/kernel", ("mlp", "embed")),
    (r"text_projection/kernel", (None, "embed")),
    (r"audio_head/classifiers_\d+/kernel", ("embed", None)),
    # all other kernels, such as convolutions: by input channels
    (r".*/kernel(_v)?", ("channels", None)),
)
MAX_REPLICATED_SIZE = 1 << 21

# The other collections and the stage's state, all replicated: every device looks frames up in the
# codebooks, whose statistics are sums over all devices.
COLLECTIONS = (r"codebook/.*", r"buffers/.*", r"extra/.*")

# Arrays of a batch by name; the first dimension of each is rows.
BATCHES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # rows of the language model: (B, L), (B, L, Q)
    (r".*_BL[A-Z]*", ("batch", "length")),
    (r".*", ("batch",)),
)

Heads = Mapping[str, tuple[int, int]]
"""Component -> (query heads, key and value heads)."""


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh, heads: Heads) -> PartitionSpec:
    """Partition spec of a parameter.

    Args:
      path: `component/.../leaf`.
      shape: shape of the parameter.
      mesh: a mesh, or an abstract one.
      heads: heads of the components with attention, see `BaichuanAudioConfig.heads`.

    Raises:
      ShardingError: a path without a rule, or an axis that its mesh axis does not divide.
    """
    matching = [logical for pattern, logical in RULES if re.fullmatch(pattern, path)]
    if not matching:
        raise ShardingError(f"parameter {path} {shape}: no sharding rule covers it")
    logical = matching[0]
    if len(shape) < len(logical):
        raise ShardingError(f"parameter {path} {shape}: expected {len(logical)} axes or more")
    axes: list[str | None] = [None] * len(shape)
    for place, name in zip(range(len(shape) - len(logical), len(shape)), logical, strict=True):
        axis = LOGICAL_AXES[name]
        if axis is None or mesh.shape[axis] == 1:
            axes[place] = axis
            continue
        parts, size, unit = mesh.shape[axis], shape[place], ""
        if name in ("heads", "kv_heads"):
            component = path.split("/")[0]
            if component not in heads:
                raise ShardingError(f"parameter {path} {shape}: its heads are not known")
            size, unit = heads[component][name == "kv_heads"], " heads"
            if size < parts and parts % size == 0:
                continue
        if size % parts == 0:
            axes[place] = axis
        elif name != "channels" or math.prod(shape) > MAX_REPLICATED_SIZE:
            raise ShardingError(
                f"parameter {path} {shape}: axis {place} of {size}{unit} on mesh.{axis} = {parts}: "
                "expected a multiple"
            )
    return PartitionSpec(*axes)


def variable_sharding(name: str, shape: tuple[int, ...], mesh: Mesh, heads: Heads) -> NamedSharding:
    """Sharding of a variable.

    Args:
      name: `collection/component/.../leaf`, where "params" is one of the collections.
      shape, mesh, heads: see `parameter_spec`.

    Raises:
      ShardingError: see `parameter_spec`; also a collection without a rule.
    """
    if name.startswith("params/"):
        spec = parameter_spec(name.removeprefix("params/"), shape, mesh, heads)
        return NamedSharding(mesh, spec)
    if not any(re.fullmatch(pattern, name) for pattern in COLLECTIONS):
        raise ShardingError(f"{name} {shape}: no sharding rule covers it")
    return replicated(mesh)


def variable_shardings(shapes: Any, mesh: Mesh, heads: Heads) -> Any:
    """Shardings of variables, a tree like their shapes.

    Raises:
      ShardingError: see `variable_sharding`.
    """
    return unflatten(
        {
            name: variable_sharding(name, leaf.shape, mesh, heads)
            for name, leaf in flatten(shapes).items()
        }
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, name: str = "") -> NamedSharding:
    """Sharding of a batch's array by its name; by default over rows only."""
    logical = next(logical for pattern, logical in BATCHES if re.fullmatch(pattern, name))
    return NamedSharding(mesh, PartitionSpec(*(LOGICAL_AXES[axis] for axis in logical)))


def batch_shards(mesh: Mesh) -> int:
    """Number of shards of the rows of a batch."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def to_host(arrays: Any) -> Any:
    """Gather arrays as NumPy, whichever devices hold them.

    If the mesh spans hosts, all of them must call this with the same arrays.
    """

    def gather(array: Any) -> Any:
        if not isinstance(array, jax.Array):
            return array
        if array.is_fully_addressable or array.is_fully_replicated:
            return array
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(gather, arrays))


def broadcast_from_first(values: Sequence[bool]) -> list[bool]:
    """Broadcast flags from process 0. All processes must pass the same number."""
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values, bool))).tolist()


def text_from_first(text: str) -> str:
    """Broadcast a text from process 0. All processes must call it."""
    if jax.process_count() == 1:
        return text
    encoded = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(encoded.size)))
    message = np.zeros(size, np.uint8)
    message[: encoded.size] = encoded[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(message)).tobytes().decode()


def row_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(index, number) of the shares of a batch's rows: which share a process loads.

    Processes that hold the same rows, because tensor or sequence spans them, load the same share.

    Args:
      mesh: mesh over the devices of all processes.
      process: index of the process; None: this one.

    Raises:
      ShardingError: processes that have some rows in common, but not all.
    """
    process = jax.process_index() if process is None else process
    rows = mesh.devices.reshape(batch_shards(mesh), -1)
    held: dict[int, set[int]] = {}
    for shard, devices in enumerate(rows):
        for device in devices:
            held.setdefault(device.process_index, set()).add(shard)
    shares = sorted({tuple(sorted(shards)) for shards in held.values()})
    even = len({len(share) for share in shares}) == 1
    if not even or sum(map(len, shares)) != len(rows):
        raise ShardingError(
            f"mesh {dict(mesh.shape)}: the hosts' rows overlap, {shares}: expected tensor x "
            "sequence to fit a host, or to be a multiple of its devices"
        )
    return shares.index(tuple(sorted(held[process]))), len(shares)


def batch_shardings(arrays: Mapping[str, Any], rows: int, mesh: Mesh) -> Any:
    """Sharding of each array of a batch, by its name.

    Args:
      arrays: (B, ...), of any B.
      rows: rows of the global batch.
      mesh: mesh over all hosts.

    Raises:
      ShardingError: rows or positions that do not divide among the devices.
    """
    shards, sequence = batch_shards(mesh), mesh.shape["sequence"]
    if rows % shards:
        raise ShardingError(f"a batch of {rows} rows on {shards} devices: expected a multiple")

    def place(path, array: np.ndarray) -> NamedSharding:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        sharding = batch_sharding(mesh, names[-1])
        if len(sharding.spec) > 1 and array.shape[1] % sequence:
            raise ShardingError(
                f"{names[-1]}: {array.shape[1]} positions on mesh.sequence = {sequence}: "
                "expected a multiple"
            )
        return sharding

    return jax.tree_util.tree_map_with_path(place, arrays)


def to_devices(arrays: Mapping[str, Any], mesh: Mesh) -> Any:
    """Build global arrays from this host's share of the rows, see `row_share`.

    Raises:
      ShardingError: see `batch_shardings`; also arrays with different numbers of rows.
    """
    counts = {array.shape[0] for array in jax.tree.leaves(arrays)}
    if len(counts) > 1:
        raise ShardingError(f"a batch with arrays of {sorted(counts)} rows: expected one number")
    rows = max(counts, default=0) * row_share(mesh)[1]

    def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        shape = (rows, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(place, arrays, batch_shardings(arrays, rows, mesh))


def under_mesh(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function, to be jitted, so that `constrain` inside it follows the mesh."""
    if mesh is None:
        return function

    @functools.wraps(function)
    def run(*arguments, **options):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **options)

    return run


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of a tree of arrays or of shapes with shardings; None without one."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf.sharding.mesh
    return None


def current_mesh() -> Any:
    """The abstract mesh of the current trace; None without a mesh of several devices, or inside a
    `shard_map` over all of them."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(AXES) - set(mesh.axis_names):
        return None
    return mesh if math.prod(mesh.shape[axis] for axis in mesh.auto_axes) > 1 else None


def num_shards(logical: str) -> int:
    """Number of shards of a logical axis in the current trace; 1 without a mesh."""
    mesh = current_mesh()
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in _mesh_axes(logical, mesh))


def _mesh_axes(logical: str, mesh: Any) -> tuple[str, ...]:
    """Mesh axes of a logical axis, without those that a `shard_map` around has divided already."""
    axes = LOGICAL_AXES[logical]
    axes = (axes,) if isinstance(axes, str) else axes
    return tuple(axis for axis in axes if axis in mesh.auto_axes)


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """Constrain the sharding of `x` by its logical axes, one per dimension; a no-op without a mesh.

    A dimension that its mesh axes do not divide is replicated: sizes that may be uneven (rows,
    positions, heads) are checked where they enter.
    """
    mesh = current_mesh()
    if mesh is None:
        return x
    axes = [
        _mesh_axes(name, mesh) if name and size % num_shards(name) == 0 else None
        for size, name in zip(x.shape, logical, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def constrain_parameters(params: Any, heads: Heads) -> Any:
    """Constrain a tree of parameters, `component/.../leaf`, to their shards; see `constrain`."""
    mesh = current_mesh()
    if mesh is None:
        return params
    return unflatten(
        {
            name: jax.lax.with_sharding_constraint(
                leaf, parameter_spec(name, leaf.shape, mesh, heads)
            )
            for name, leaf in flatten(params).items()
        }
    )


def constrain_rows(x: jax.Array) -> jax.Array:
    """`constrain` (B, ...) to sharded rows."""
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


HOSTS = ("apart", "together")
"""Modes of inference on several hosts: a mesh per host with its own items, or one mesh for all."""


def inference_mesh(
    settings: MeshSettings, rows: Mapping[str, int], hosts: str = HOSTS[0]
) -> tuple[Mesh, Callable[[Any], Any]]:
    """(mesh for inference, function that places batches, rows first, on it).

    Hosts that work "apart" share only the folder of results and need not keep pace; each has a mesh
    of its own devices. "together" they form one mesh of all devices, for a model that is larger
    than the memory of one host, and all place the same batches on it.

    Args:
      settings: sizes of the mesh axes.
      rows: name of a setting -> batch size that it sets.
      hosts: one of HOSTS.

    Raises:
      ShardingError: axes that do not fit the devices, rows that do not divide among them, or a
        sequence or slices axis.
    """
    if settings.sequence != 1 or settings.slices != 1:
        raise ShardingError(
            f"mesh.sequence = {settings.sequence}, mesh.slices = {settings.slices}: expected 1 and "
            "1, only training divides positions and reaches over slices"
        )
    mesh = make_mesh(settings, jax.devices() if hosts == "together" else jax.local_devices())
    shards, batches = batch_shards(mesh), batch_sharding(mesh)
    for name, count in rows.items():
        if count % shards:
            raise ShardingError(f"{name} = {count} on {shards} devices: expected a multiple")

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, batches, lambda index: array[index])

    return mesh, lambda arrays: jax.tree.map(place, arrays)


def check_hosts(hosts: str) -> str:
    """Return `hosts` if it is one of HOSTS.

    Raises:
      ConfigError: it is not.
    """
    if hosts not in HOSTS:
        raise ConfigError(f"hosts = {expected(hosts, HOSTS)}")
    return hosts
