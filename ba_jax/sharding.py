"""Where arrays live: the mesh, and the tables from names to its axes.

Mesh axes, from the slowest links to the fastest:

  replica    copies of the model, each with its own rows of the batch; over the slices of a pod
             first, so that nothing else crosses the network between slices
  fsdp       rows of the batch again, and a part of every large parameter
  tensor     heads, feed-forward width, vocabulary
  sequence   positions of the language model's rows

A parameter, a batch, a cache or an activation has logical axes, and `LOGICAL_AXES` says where each
of those goes. What no rule covers is an error, and so is a parameter that does not divide.
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

from ba_jax.config import ConfigError
from ba_jax.tree import flatten, unflatten


class ShardingError(ValueError):
    """A mesh that the devices do not fill, or an array that no rule places or that is uneven."""


AXES = ("replica", "fsdp", "tensor", "sequence")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh's axes; one of them may be -1: what the devices leave.

    Attributes:
      replica, fsdp, tensor, sequence: see the module.
      slices: groups of devices that the slower network joins (TPU slices); replica is a multiple.
    """

    replica: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: int = 1


def make_mesh(settings: MeshSettings, devices=None) -> Mesh:
    """A mesh over the devices (default: all), neighbours in it near each other.

    TPUs say which slice they are of; other devices make slices in their order.

    Raises:
      ShardingError: sizes whose product is not the number of devices, or slices that are not there
        or that replica is no multiple of.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {name: getattr(settings, name) for name in AXES}
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) == 1 and known > 0 and len(devices) % known == 0:
        sizes[open_axes[0]] = len(devices) // known
    if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
        raise ShardingError(
            f"mesh {dataclasses.asdict(settings)}: expected sizes whose product is the "
            f"{len(devices)} devices, at most one of them -1"
        )
    groups = _slices(devices, settings.slices)
    if sizes["replica"] % len(groups):
        raise ShardingError(
            f"mesh.replica = {sizes['replica']} on mesh.slices = {len(groups)}: expected a multiple"
        )
    sizes["replica"] //= len(groups)
    blocks = [_near(tuple(sizes.values()), group) for group in groups]
    return Mesh(np.concatenate(blocks), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[Any], count: int) -> list[list[Any]]:
    """The devices by slice.

    Raises:
      ShardingError: another number of slices, or slices of several sizes.
    """
    if devices[0].platform == "tpu":
        found: dict[int, list] = {}
        for device in devices:
            found.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
        groups = [found[index] for index in sorted(found)]
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


def _near(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """A slice's devices so that those along an axis, later axes first, are linked directly."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        # No product of the torus' axes gives a size: it takes part of one.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


# Logical axis -> mesh axes.
LOGICAL_AXES: dict[str | None, str | tuple[str, ...] | None] = {
    # of parameters: a width that joins layers; widths inside a layer
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "channels": "fsdp",
    # of activations, batches and caches: rows; their positions; positions taken out of the rows;
    # rows while a table's width is divided
    "batch": ("replica", "fsdp"),
    "length": "sequence",
    "frames": ("replica", "fsdp", "sequence"),
    "copies": "replica",
    # whole on every device: depths, taps, features of a position, positions that are looked at
    None: None,
}

# Parameter path (without the collection) -> logical axes from the last one back; axes in front of
# them (stacked layers, taps of a convolution) are whole on every device. First match wins.
#
# `heads` and `kv_heads` are divided head by head. Where tensor is a larger multiple of their number
# (of key and value heads there are few), their kernels are whole along it instead.
# `channels` are of what is no transformer. Where fsdp does not divide them, a kernel of at most
# WHOLE values stays whole: 18 channels, 80 mel bins.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # vectors: norms, biases, Snake's alpha, weight norm's gains
    (r".*/(scale|bias|alpha|kernel_g)", ()),
    # LoRA's factors are thin
    (r".*/lora_\w+_[ab]", ()),
    (r"llm/(embedding|lm_head)", ("vocab", "embed")),
    (r"audio_embed/embedding_\d+", (None, "embed")),
    # what makes mels of features
    (r"(flow_prenet|flow_unet|audio_decoder/refine_net)/out/kernel", ("channels", None)),
    # attention and feed-forward of all transformers and of the audio head
    (r".*/query/kernel", ("embed", "heads")),
    (r".*/(key|value)/kernel", ("embed", "kv_heads")),
    (r".*/out/kernel", ("heads", "embed")),
    (r".*/(gate|up|ffn_in(_\d+)?|mlp_in)/kernel", ("embed", "mlp")),
    (r".*/(down|ffn_out(_\d+)?|mlp_out)/kernel", ("mlp", "embed")),
    (r"text_projection/kernel", (None, "embed")),
    (r"audio_head/classifiers_\d+/kernel", ("embed", None)),
    # convolutions, small products, and whatever else is no transformer: split by its input
    (r".*/kernel(_v)?", ("channels", None)),
)
WHOLE = 1 << 21

# The other collections, and a stage's own state. Codebooks are whole: every device looks every
# frame up, and their statistics are sums over all.
COLLECTIONS = (r"codebook/.*", r"buffers/.*", r"extra/.*")

# Arrays of a batch by their name; rows come first in all.
BATCHES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # the language model's rows: (B, L), (B, L, Q)
    (r".*_BL[A-Z]*", ("batch", "length")),
    (r".*", ("batch",)),
)

Heads = Mapping[str, tuple[int, int]]
"""Component -> (heads of its queries, heads of its keys and values)."""


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh, heads: Heads) -> PartitionSpec:
    """How a parameter is laid out.

    Args:
      path: `component/.../leaf`.
      shape: its shape.
      mesh: a mesh, or an abstract one.
      heads: of the components with attention, see `BaichuanAudioConfig.heads`.

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
        elif name != "channels" or math.prod(shape) > WHOLE:
            raise ShardingError(
                f"parameter {path} {shape}: axis {place} of {size}{unit} on mesh.{axis} = {parts}: "
                "expected a multiple"
            )
    return PartitionSpec(*axes)


def variable_sharding(name: str, shape: tuple[int, ...], mesh: Mesh, heads: Heads) -> NamedSharding:
    """Where a variable lies.

    Args:
      name: `collection/component/.../leaf`, "params" one of the collections.
      shape, mesh, heads: see `parameter_spec`.

    Raises:
      ShardingError: see `parameter_spec`; or a collection without a rule.
    """
    if name.startswith("params/"):
        spec = parameter_spec(name.removeprefix("params/"), shape, mesh, heads)
        return NamedSharding(mesh, spec)
    if not any(re.fullmatch(pattern, name) for pattern in COLLECTIONS):
        raise ShardingError(f"{name} {shape}: no sharding rule covers it")
    return replicated(mesh)


def placement(shapes: Any, mesh: Mesh, heads: Heads) -> Any:
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
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _spec(logical: Sequence[str | None]) -> PartitionSpec:
    return PartitionSpec(*(LOGICAL_AXES[name] for name in logical))


def batch_sharding(mesh: Mesh, name: str = "") -> NamedSharding:
    """Of an array of a batch by its name; the default: rows alone are split."""
    logical = next(logical for pattern, logical in BATCHES if re.fullmatch(pattern, name))
    return NamedSharding(mesh, _spec(logical))


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape["replica"] * mesh.shape["fsdp"]


def to_host(arrays: Any) -> Any:
    """Arrays as NumPy, whole, whichever devices hold them.

    Of a mesh that spans hosts, all of them have to call this alike.
    """

    def gathered(array: Any) -> Any:
        if not isinstance(array, jax.Array):
            return array
        if array.is_fully_addressable or array.is_fully_replicated:
            return array
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.device_get(jax.tree.map(gathered, arrays))


def broadcast_from_first(values: Sequence[bool]) -> list[bool]:
    """What the first process gives, on all of them; each gives as many."""
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values, bool))).tolist()


def row_share(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """(which of how many shares of a batch's rows a process loads).

    Processes whose devices hold the same rows, because tensor or sequence reaches over them, load
    the same share.

    Args:
      mesh: over all processes' devices.
      process: its number; None: this one.

    Raises:
      ShardingError: processes that hold some rows in common, but not all.
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


def batch_placement(arrays: Mapping[str, Any], rows: int, mesh: Mesh) -> Any:
    """Where the arrays of a batch lie: a sharding for each, by its name.

    Args:
      arrays: (B, ...), of any B.
      rows: of all hosts together.
      mesh: of all of them.

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
    """A host's share of the rows as global arrays, see `row_share`.

    Raises:
      ShardingError: see `batch_placement`; or arrays of different numbers of rows.
    """
    counts = {array.shape[0] for array in jax.tree.leaves(arrays)}
    if len(counts) > 1:
        raise ShardingError(f"a batch with arrays of {sorted(counts)} rows: expected one number")
    rows = max(counts, default=0) * row_share(mesh)[1]

    def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        shape = (rows, *array.shape[1:])
        return jax.make_array_from_process_local_data(sharding, array, shape)

    return jax.tree.map(place, arrays, batch_placement(arrays, rows, mesh))


def under_mesh(mesh: Mesh | None, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, to be jitted, for whose activations `constrain` follows the mesh."""
    if mesh is None:
        return function

    @functools.wraps(function)
    def run(*arguments, **options):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **options)

    return run


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays, or their shapes, lie on; None without one."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(getattr(leaf, "sharding", None), NamedSharding):
            return leaf.sharding.mesh
    return None


def current_mesh() -> Any:
    """The abstract mesh that is traced for, of several devices; None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or set(AXES) - set(mesh.axis_names):
        return None
    return mesh


def num_shards(logical: str) -> int:
    """Into how many parts the mesh that is traced for cuts a logical axis; 1 without a mesh."""
    mesh, axes = current_mesh(), LOGICAL_AXES[logical]
    if mesh is None:
        return 1
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def constrain(x: jax.Array, *logical: str | None) -> jax.Array:
    """`x` laid out by its logical axes, one a dimension; without a mesh, `x`.

    An axis that its mesh axes do not divide is whole: what can be uneven (rows, positions, heads)
    is checked where it comes in.
    """
    mesh = current_mesh()
    if mesh is None:
        return x
    axes = [
        LOGICAL_AXES[name] if name and size % num_shards(name) == 0 else None
        for size, name in zip(x.shape, logical, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def constrain_rows(x: jax.Array) -> jax.Array:
    """`constrain` of (B, ...): rows over the devices, each of them whole."""
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


HOSTS = ("apart", "together")
"""How several hosts share a run: each its items on a mesh of its own, or all on one mesh."""


def on_mesh(
    settings: MeshSettings, rows: Mapping[str, int], hosts: str = HOSTS[0]
) -> tuple[Mesh, Callable[[Any], Any]]:
    """(a mesh, what puts batches, rows first, on it).

    Hosts that work "apart" share nothing but the folder of results, so that each may take as long
    as its items take: a mesh is of one host's own devices. "together" they have one mesh of all
    devices, for a model larger than one host's memory, and all put the same batches on it.

    Args:
      settings: how the devices are laid out.
      rows: setting -> its batch size.
      hosts: one of HOSTS.

    Raises:
      ShardingError: axes that the devices do not fill, rows that do not divide among them, or
        positions that are divided.
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
    """How hosts share a run: one of HOSTS.

    Raises:
      ConfigError: anything else.
    """
    if hosts not in HOSTS:
        raise ConfigError(f"hosts {hosts!r}, expected one of {HOSTS}")
    return hosts
