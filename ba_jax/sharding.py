"""Where arrays live: the mesh, and the table from parameter paths to its axes.

Mesh axes: `replica` (copies of the model), `fsdp` (the batch again, and a part of every large
parameter), `tensor` (heads, feed-forward width, vocabulary). A batch is split over the first two.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class ShardingError(ValueError):
    """A mesh that the devices do not fill, or a parameter that no rule places."""


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """Sizes of the mesh's axes; one of them may be -1: what the devices leave."""

    replica: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(settings: MeshSettings, devices=None) -> Mesh:
    """A mesh over the devices (default: all).

    Raises:
      ShardingError: sizes whose product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(settings)
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(open_axes) == 1 and known > 0 and len(devices) % known == 0:
        sizes[open_axes[0]] = len(devices) // known
    if min(sizes.values()) < 1 or np.prod(list(sizes.values())) != len(devices):
        raise ShardingError(
            f"mesh {dataclasses.asdict(settings)}: expected sizes whose product is the "
            f"{len(devices)} devices, at most one of them -1"
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
        devices=devices,
    )


# Logical axes: `embed` is a width that joins layers, `heads`, `mlp` and `vocab` are inside a layer.
LOGICAL_AXES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor", None: None}

# Parameter path (without the collection) -> logical axes from the last one back; axes in front of
# them (stacked layers, taps of a convolution) are whole on every device. First match wins.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # vectors: norms, biases, Snake's alpha, weight norm's gains
    (r".*/(scale|bias|alpha|kernel_g)", ()),
    # LoRA's factors are thin
    (r".*/lora_\w+_[ab]", ()),
    (r"llm/(embedding|lm_head)", ("vocab", "embed")),
    (r"audio_embed/embedding_\d+", (None, "embed")),
    # attention and feed-forward of all transformers and of the audio head
    (r".*/(query|key|value)/kernel", ("embed", "heads")),
    (r".*/out/kernel", ("heads", "embed")),
    (r".*/(gate|up|ffn_in(_\d+)?|mlp_in)/kernel", ("embed", "mlp")),
    (r".*/(down|ffn_out(_\d+)?|mlp_out)/kernel", ("mlp", "embed")),
    (r"text_projection/kernel", (None, "embed")),
    # convolutions, small products, and whatever else is no transformer: split by its input
    (r".*/kernel(_v)?", ("embed", None)),
)


def parameter_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """How a parameter is laid out.

    An axis that its mesh axis does not divide stays whole: only widths of a few channels, such as
    mel bins, are.

    Raises:
      ShardingError: a path without a rule.
    """
    matching = [logical for pattern, logical in RULES if re.fullmatch(pattern, path)]
    if not matching:
        raise ShardingError(f"parameter {path} {shape}: no sharding rule covers it")
    logical = matching[0]
    axes: list[str | None] = [None] * len(shape)
    for place, name in zip(range(len(shape) - len(logical), len(shape)), logical, strict=True):
        axis = LOGICAL_AXES[name]
        if place >= 0 and axis is not None and shape[place] % mesh.shape[axis] == 0:
            axes[place] = axis
    return PartitionSpec(*axes)


def parameter_sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """`parameter_spec` on the mesh."""
    return NamedSharding(mesh, parameter_spec(path, shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices but those of `tensor`."""
    return NamedSharding(mesh, PartitionSpec(("replica", "fsdp")))


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


def of_the_first(values: Sequence[bool]) -> list[bool]:
    """What the first process gives, on all of them; each gives as many."""
    return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values, bool))).tolist()


def to_devices(arrays: Mapping[str, Any], mesh: Mesh) -> Any:
    """A host's rows as global arrays.

    Raises:
      ShardingError: rows that do not divide among the devices.
    """
    sharding = batch_sharding(mesh)
    shards = batch_shards(mesh)

    def place(array: np.ndarray) -> jax.Array:
        rows = array.shape[0] * jax.process_count()
        if rows % shards:
            raise ShardingError(f"a batch of {rows} rows on {shards} devices: expected a multiple")
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(place, arrays)
