"""The mesh, and the sharding of parameters and batches."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from ba_jax import sharding
from ba_jax.sharding import MeshSettings, ShardingError

HEADS = {"llm": (28, 4)}


def abstract(replica: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1) -> AbstractMesh:
    return AbstractMesh((replica, fsdp, tensor, sequence), sharding.AXES)


@dataclasses.dataclass(frozen=True)
class Chip:
    """The attributes of a device that a mesh needs."""

    id: int
    process_index: int
    slice_index: int | None = None
    platform: str = "gpu"
    device_kind: str = "chip"
    core_on_chip: int = 0

    @property
    def coords(self) -> tuple[int, int, int]:
        return (self.id, 0, 0)


def chips(count: int, a_host: int, a_slice: int = 0, platform: str = "gpu") -> list[Chip]:
    return [Chip(n, n // a_host, n // a_slice if a_slice else None, platform) for n in range(count)]


def test_axis_of_minus_one_takes_the_remaining_devices():
    devices = jax.devices()[:1]
    mesh = sharding.make_mesh(MeshSettings(), devices)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert sharding.batch_shards(mesh) == 1
    mesh = sharding.make_mesh(MeshSettings(2, -1, 2, 2), chips(16, 4))
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "tensor": 2, "sequence": 2}


@pytest.mark.parametrize(
    "sizes", [(2, 1, 1), (-1, 2, 1), (-1, -1, 1), (1, 1, 0), (-1, 0, 1), (-2, 1, 1), (1, 1, 1, 2)]
)
def test_mesh_that_does_not_fit_the_devices(sizes):
    with pytest.raises(ShardingError, match="product is the 1 devices"):
        sharding.make_mesh(MeshSettings(*sizes), jax.devices()[:1])


def test_only_replica_spans_slices():
    """TPUs are grouped by their slice, whatever their order; other devices in order."""
    settings = MeshSettings(replica=4, fsdp=2, tensor=2, slices=2)
    tpus = [dataclasses.replace(chip, platform="tpu") for chip in chips(16, 4, 8)]
    for devices in (chips(16, 4), [*tpus[8:], *tpus[:8]]):
        mesh = sharding.make_mesh(settings, devices)
        assert mesh.devices.shape == (4, 2, 2, 1)
        ids = np.vectorize(lambda chip: chip.id)(mesh.devices)
        assert set(ids[:2].flat) == set(range(8)) and set(ids[2:].flat) == set(range(8, 16))


@pytest.mark.parametrize(
    ("settings", "devices", "message"),
    [
        ({"replica": 3, "fsdp": 2, "slices": 2}, chips(6, 2), "replica = 3 on mesh.slices = 2"),
        ({"fsdp": 6, "replica": 1, "slices": 4}, chips(6, 2), "slices = 4 of 6 devices"),
        ({"slices": 0}, chips(6, 2), "slices = 0 of 6 devices"),
        ({"slices": 1}, chips(8, 4, 4, "tpu"), r"slices of \[4, 4\]: expected their number"),
        ({"slices": 2}, chips(8, 4, 0, "tpu"), r"slices of \[8\]: expected their number"),
        ({"slices": 2}, chips(12, 4, 8, "tpu"), r"slices of \[8, 4\]: .*one size"),
    ],
)
def test_invalid_slices(settings, devices, message):
    with pytest.raises(ShardingError, match=message):
        sharding.make_mesh(MeshSettings(**settings), devices)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("llm/embedding", (2048, 256), ("tensor", "fsdp")),
        ("llm/lm_head", (2048, 256), ("tensor", "fsdp")),
        ("llm/layers/query/kernel", (4, 256, 512), (None, "fsdp", "tensor")),
        ("llm/layers/key/kernel", (4, 256, 512), (None, "fsdp", "tensor")),
        ("llm/layers/out/kernel", (4, 512, 256), (None, "tensor", "fsdp")),
        ("llm/layers/down/kernel", (4, 768, 256), (None, "tensor", "fsdp")),
        ("llm/layers/norm/scale", (4, 256), (None, None)),
        ("llm/layers/query/bias", (4, 512), (None, None)),
        ("llm/layers/lora_up_a", (4, 256, 8), (None, None, None)),
        ("audio_embed/embedding_3", (65, 256), (None, "fsdp")),
        ("text_projection/kernel", (1024, 256), (None, "fsdp")),
        ("vocoder/conv_pre/kernel_v", (7, 80, 512), (None, "fsdp", None)),
        # 18 channels on 4 devices: whole.
        ("vocoder/source/kernel", (6, 18, 128), (None, None, None)),
    ],
)
def test_parameter_specs_by_name(path, shape, spec):
    result = sharding.parameter_spec(path, shape, abstract(1, 4, 2), HEADS)
    assert result == PartitionSpec(*spec)


@pytest.mark.parametrize(
    ("tensor", "spec"), [(4, (None, "fsdp", "tensor")), (28, (None, "fsdp", None))]
)
def test_heads_are_replicated_on_more_devices_than_heads(tensor, spec):
    path, mesh = "llm/layers/key/kernel", abstract(1, 2, tensor)
    assert sharding.parameter_spec(path, (4, 256, 512), mesh, HEADS) == PartitionSpec(*spec)
    path, heads = "audio_head/layers_0/out/kernel", {"audio_head": (1, 1)}
    mesh = abstract(1, 2, 4)
    result = sharding.parameter_spec(path, (128, 128), mesh, heads)
    assert result == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize(
    ("path", "shape", "mesh", "message"),
    [
        ("llm/new_thing", (3,), (1, 1, 1), r"llm/new_thing \(3,\): no sharding rule"),
        ("llm/embedding", (256,), (1, 4, 2), r"llm/embedding \(256,\): expected 2 axes or more"),
        (
            "llm/layers/down/kernel",
            (4, 768, 250),
            (1, 4, 2),
            r"llm/layers/down/kernel \(4, 768, 250\): axis 2 of 250 on mesh.fsdp = 4: expected",
        ),
        ("llm/embedding", (2049, 256), (1, 1, 2), r"axis 0 of 2049 on mesh.tensor = 2"),
        # 3584 columns divide among 8 devices, 28 heads do not.
        ("llm/layers/query/kernel", (3584, 3584), (1, 1, 8), "of 28 heads on mesh.tensor = 8"),
        ("llm/layers/value/kernel", (3584, 512), (1, 1, 14), "of 4 heads on mesh.tensor = 14"),
        ("new/layers/query/kernel", (64, 64), (1, 1, 2), "its heads are not known"),
        # More than 2M values: too many to keep whole.
        ("vocoder/conv_pre/kernel_v", (7, 81, 8192), (1, 2, 1), "of 81 on mesh.fsdp = 2"),
    ],
)
def test_parameter_without_a_spec(path, shape, mesh, message):
    with pytest.raises(ShardingError, match=message):
        sharding.parameter_spec(path, shape, abstract(*mesh), HEADS)


def test_other_collections_are_replicated():
    mesh = sharding.make_mesh(MeshSettings(), jax.devices()[:1])
    for name in ("codebook/vq_bridge/embed_0", "buffers/audio_head/bias", "extra/pool"):
        assert sharding.variable_sharding(name, (8, 4), mesh, HEADS) == sharding.replicated(mesh)
    with pytest.raises(ShardingError, match=r"statistics/x \(8,\): no sharding rule"):
        sharding.variable_sharding("statistics/x", (8,), mesh, HEADS)


def test_batch_is_sharded_over_replica_and_fsdp():
    mesh = sharding.make_mesh(MeshSettings(), jax.devices()[:1])
    values = {"ids_BL": np.arange(6).reshape(3, 2), "audio": ({"mel_BCTM": np.ones(3)},)}
    placed = sharding.to_devices(values, mesh)
    np.testing.assert_array_equal(placed["ids_BL"], np.arange(6).reshape(3, 2))
    assert placed["ids_BL"].sharding.spec == PartitionSpec(("replica", "fsdp"), "sequence")
    assert placed["audio"][0]["mel_BCTM"].sharding.spec == PartitionSpec(("replica", "fsdp"))
    assert sharding.batch_shards(abstract(4, 2, 2)) == 8


def test_hosts_that_hold_the_same_rows_load_the_same_share():
    def shares(settings, a_host):
        mesh = sharding.make_mesh(settings, chips(16, a_host))
        return [sharding.row_share(mesh, host) for host in range(16 // a_host)]

    assert shares(MeshSettings(), 4) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert shares(MeshSettings(2, 2, 4), 4) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert shares(MeshSettings(1, 2, 4, 2), 4) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert shares(MeshSettings(1, 1, 4, 4), 4) == [(0, 1)] * 4
    with pytest.raises(ShardingError, match="the hosts' rows overlap"):
        shares(MeshSettings(1, 2, 8), 12)


@pytest.mark.parametrize("axis", ["sequence", "slices"])
def test_inference_refuses_sequence_and_slices(axis):
    with pytest.raises(ShardingError, match=f"mesh.{axis} = 2"):
        sharding.inference_mesh(MeshSettings(**{axis: 2}), {})


def test_constrain_is_a_no_op_without_a_mesh():
    x = np.ones((2, 3))
    assert sharding.current_mesh() is None
    assert sharding.constrain(x, "batch", None) is x
    mesh = sharding.make_mesh(MeshSettings(), jax.devices()[:1])
    text = jax.jit(sharding.under_mesh(mesh, lambda x: sharding.constrain(x, "batch", None))).lower(
        x
    )
    assert "sharding_constraint" not in text.as_text()


@pytest.mark.parametrize("own", ["", "[1]", "[1, 2, 3]"])
def test_all_processes_get_the_text_of_the_first(monkeypatch, own):
    first = "[1, 2, '字']".encode()
    sent = iter([np.int32(len(first)), np.frombuffer(first, np.uint8)])

    def broadcast(value):
        answer = next(sent)
        assert np.shape(value) == np.shape(answer)  # JAX asks for equal shapes
        return answer

    monkeypatch.setattr(sharding.jax, "process_count", lambda: 2)
    monkeypatch.setattr(sharding.multihost_utils, "broadcast_one_to_all", broadcast)
    assert sharding.text_from_first(own) == "[1, 2, '字']"
