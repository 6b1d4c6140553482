"""The mesh, and where parameters and batches lie on it."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from ba_jax import sharding
from ba_jax.sharding import MeshSettings, ShardingError


def abstract(replica: int, fsdp: int, tensor: int) -> AbstractMesh:
    return AbstractMesh((replica, fsdp, tensor), ("replica", "fsdp", "tensor"))


def test_the_open_axis_takes_what_the_devices_leave():
    devices = jax.devices()[:1]
    mesh = sharding.make_mesh(MeshSettings(), devices)
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 1, "tensor": 1}
    assert sharding.batch_shards(mesh) == 1
    assert dict(sharding.make_mesh(MeshSettings(1, -1, 1), devices).shape)["fsdp"] == 1


@pytest.mark.parametrize(
    "sizes", [(2, 1, 1), (-1, 2, 1), (-1, -1, 1), (1, 1, 0), (-1, 0, 1), (-2, 1, 1)]
)
def test_a_mesh_that_the_devices_do_not_fill(sizes):
    with pytest.raises(ShardingError, match="product is the 1 devices"):
        sharding.make_mesh(MeshSettings(*sizes), jax.devices()[:1])


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("llm/embedding", (2048, 256), ("tensor", "fsdp")),
        ("llm/lm_head", (2048, 256), ("tensor", "fsdp")),
        ("llm/layers/attention/query/kernel", (4, 256, 512), (None, "fsdp", "tensor")),
        ("llm/layers/attention/out/kernel", (4, 512, 256), (None, "tensor", "fsdp")),
        ("llm/layers/mlp/down/kernel", (4, 768, 256), (None, "tensor", "fsdp")),
        ("llm/layers/norm/scale", (4, 256), (None, None)),
        ("llm/layers/attention/query/bias", (4, 512), (None, None)),
        ("llm/layers/lora_up_a", (4, 256, 8), (None, None, None)),
        ("audio_embed/embedding_3", (65, 256), (None, "fsdp")),
        ("text_projection/kernel", (1024, 256), (None, "fsdp")),
        ("vocoder/conv_pre/kernel_v", (7, 80, 512), (None, "fsdp", None)),
        # 18 channels on 4 devices: whole.
        ("vocoder/source/kernel", (6, 18, 128), (None, None, None)),
    ],
)
def test_parameters_are_laid_out_by_their_name(path, shape, spec):
    assert sharding.parameter_spec(path, shape, abstract(1, 4, 2)) == PartitionSpec(*spec)


def test_a_parameter_without_a_rule():
    with pytest.raises(ShardingError, match=r"llm/new_thing \(3,\): no sharding rule"):
        sharding.parameter_spec("llm/new_thing", (3,), abstract(1, 1, 1))


def test_a_batch_is_split_over_replica_and_fsdp():
    mesh = sharding.make_mesh(MeshSettings(), jax.devices()[:1])
    placed = sharding.to_devices({"a": np.arange(6).reshape(3, 2), "b": (np.ones(3),)}, mesh)
    np.testing.assert_array_equal(placed["a"], np.arange(6).reshape(3, 2))
    assert placed["a"].sharding.spec == PartitionSpec(("replica", "fsdp"))
    assert sharding.batch_shards(abstract(4, 2, 2)) == 8
