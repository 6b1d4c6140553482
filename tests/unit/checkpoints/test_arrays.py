"""Streamed checkpoints are ordinary Orbax checkpoints, whole or absent."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ba_jax.checkpoints import arrays as checkpoint
from ba_jax.checkpoints.arrays import LazyArray
from ba_jax.checkpoints.layout import CheckpointError
from ba_jax.tree import flatten, unflatten
from tests.unit.checkpoints.small_checkpoint import lazy, save_variables


def stacked(seed=0, shape=(3, 6, 8), dtype=ml_dtypes.bfloat16, rows=4):
    """A random array, and the same as a `LazyArray` in pieces of `rows` rows."""
    array = np.random.default_rng(seed).standard_normal(shape).astype(dtype)

    def pieces():
        for i in range(shape[0]):
            for start in range(0, shape[1], rows):
                yield (i, start, 0), array[i : i + 1, start : start + rows]

    return array, LazyArray(shape, array.dtype, (1, rows, shape[2]), pieces)


def bits(array):
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


@pytest.fixture
def saved(tmp_path):
    """A small streamed checkpoint: its folder and its arrays by path."""
    kernel, lazy_kernel = stacked()
    codebook = np.float32([[1, 2], [3, 4]])
    scale = np.float32(2.5)
    tree = {
        "params": {
            "llm": {"layers": {"kernel": lazy_kernel}},
            "vocoder": {"scale": lazy(scale)},
        },
        "codebook": {"vq_bridge": {"embed": lazy(codebook.astype(ml_dtypes.bfloat16))}},
    }
    checkpoint.save_streamed(tmp_path / "weights", tree)
    return tmp_path / "weights", {
        "params/llm/layers/kernel": kernel,
        "params/vocoder/scale": scale,
        "codebook/vq_bridge/embed": codebook.astype(ml_dtypes.bfloat16),
    }


def test_streamed_arrays_come_back_bit_by_bit(saved):
    folder, arrays = saved
    loaded = flatten(checkpoint.load_variables(folder))
    assert loaded.keys() == arrays.keys()
    for path, array in arrays.items():
        assert isinstance(loaded[path], jax.Array)
        assert loaded[path].dtype == array.dtype
        np.testing.assert_array_equal(bits(loaded[path]), bits(array))
    assert json.loads((folder / "params.llm.layers.kernel" / ".zarray").read_text())["chunks"] == [
        1,
        4,
        8,
    ]


def test_orbax_alone_restores_with_any_sharding(saved, tmp_path):
    folder, arrays = saved
    script = """
import sys
import jax, numpy as np, orbax.checkpoint as ocp
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
spec = {3: jax.P(None, "x", "y")}
place = lambda a: jax.sharding.NamedSharding(mesh, spec.get(len(a.shape), jax.P()))
checkpointer = ocp.StandardCheckpointer()
stored = checkpointer.metadata(sys.argv[1]).item_metadata.tree
abstract = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place(a)), dict(stored)
)
restored = checkpointer.restore(sys.argv[1], abstract)
kernel = restored["params"]["llm"]["layers"]["kernel"]
assert isinstance(kernel, jax.Array) and kernel.dtype == "bfloat16"
assert [s.data.shape for s in kernel.addressable_shards] == [(3, 3, 4)] * 4
np.save(sys.argv[2], np.asarray(kernel).view(np.uint16))
assert not any(name.startswith("ba_jax") for name in sys.modules)
"""
    out = tmp_path / "kernel.npy"
    environment = {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", script, str(folder), str(out)], check=True, env=environment
    )
    np.testing.assert_array_equal(np.load(out), bits(arrays["params/llm/layers/kernel"]))


def test_load_by_component_and_dtype(saved):
    folder, arrays = saved
    loaded = checkpoint.load_variables(folder, components=["llm", "vq_bridge"], dtype=jnp.float16)
    assert loaded.keys() == {"params", "codebook"} and loaded["params"].keys() == {"llm"}
    kernel = loaded["params"]["llm"]["layers"]["kernel"]
    assert kernel.dtype == jnp.float16
    expected = arrays["params/llm/layers/kernel"].astype(np.float16)
    np.testing.assert_array_equal(np.asarray(kernel), expected)
    # Codebooks keep the precision that nearest-row search needs.
    assert loaded["codebook"]["vq_bridge"]["embed"].dtype == jnp.float32


def test_load_with_shardings(saved):
    folder, arrays = saved
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = unflatten(dict.fromkeys(arrays, sharding))
    loaded = flatten(checkpoint.load_variables(folder, sharding=shardings))
    assert all(array.sharding == sharding for array in loaded.values())
    with pytest.raises(CheckpointError, match="no sharding for .*vocoder/scale"):
        checkpoint.load_variables(folder, sharding={"params": {"llm": shardings["params"]["llm"]}})


def test_load_checks_expected_shapes(saved):
    folder, _ = saved
    expected = {
        "params": {
            "llm": {"layers": {"kernel": jax.ShapeDtypeStruct((3, 6, 9), jnp.float32)}},
            "vocoder": {"bias": jax.ShapeDtypeStruct((2,), jnp.float32)},
        }
    }
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_variables(folder, expected)
    message = str(caught.value)
    assert "misshapen params/llm/layers/kernel: expected (3, 6, 9), got (3, 6, 8)" in message
    assert "missing params/vocoder/bias (2,)" in message


def test_reader_reads_a_slice(saved):
    folder, arrays = saved
    kernel = arrays["params/llm/layers/kernel"]
    part = checkpoint.Reader(folder).read("params/llm/layers/kernel", (1, slice(2, 5)))
    np.testing.assert_array_equal(bits(part), bits(kernel[1, 2:5]))
    with pytest.raises(CheckpointError, match="no array params/llm/bias"):
        checkpoint.Reader(folder).read("params/llm/bias")


def test_checkpoint_written_by_orbax_itself(tmp_path):
    kernel, _ = stacked()
    variables = {"params": {"llm": {"kernel": jnp.asarray(kernel)}}}
    save_variables(tmp_path / "plain", variables)
    loaded = checkpoint.load_variables(tmp_path / "plain")
    np.testing.assert_array_equal(bits(loaded["params"]["llm"]["kernel"]), bits(kernel))
    part = checkpoint.Reader(tmp_path / "plain").read("params/llm/kernel", (2,))
    np.testing.assert_array_equal(bits(part), bits(kernel[2]))


def test_missing_and_partial_checkpoints(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        checkpoint.load_variables(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no component .'flow_unet'."):
        checkpoint.load_variables(folder, components=["flow_unet"])

    chunk = folder / "params.llm.layers.kernel" / "1.0.0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="layers/kernel.* cannot be read"):
        checkpoint.Reader(folder).read("params/llm/layers/kernel")
    with pytest.raises(CheckpointError, match="kernel/1.0.0 .*: 63 bytes, expected 64"):
        checkpoint.load_variables(folder)
    chunk.unlink()
    with pytest.raises(CheckpointError, match="kernel/1.0.0 of params/llm/layers/kernel: missing"):
        checkpoint.load_variables(folder)
    checkpoint.load_variables(folder, components=["vocoder"])
    (folder / "params.llm.layers.kernel" / ".zarray").unlink()
    with pytest.raises(CheckpointError, match="array params/llm/layers/kernel cannot be opened"):
        checkpoint.load_variables(folder)
    (folder / "_METADATA").write_text("{}")
    with pytest.raises(CheckpointError, match="_METADATA: not Orbax metadata"):
        checkpoint.load_variables(folder)
    (folder / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match="interrupted"):
        checkpoint.load_variables(folder)


def test_a_failing_piece_leaves_no_checkpoint(tmp_path):
    def pieces():
        yield (0, 0), np.zeros((1, 4), np.float32)
        raise RuntimeError("the source broke")

    tree = {"params": {"llm": {"kernel": LazyArray((2, 4), np.dtype("f4"), (1, 4), pieces)}}}
    with pytest.raises(RuntimeError, match="the source broke"):
        with checkpoint.new_folder(tmp_path / "out") as folder:
            checkpoint.save_streamed(folder / "weights", tree)
    assert list(tmp_path.iterdir()) == []


def test_pieces_must_tile_the_array(tmp_path):
    array = LazyArray(
        (2, 4), np.dtype("f4"), (1, 4), lambda: [((0, 0), np.zeros((1, 4), np.float32))]
    )
    with pytest.raises(CheckpointError, match="pieces hold 4 elements"):
        checkpoint.save_streamed(tmp_path / "weights", {"params": {"llm": {"kernel": array}}})


def test_new_folder_replaces_only_on_request(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with checkpoint.new_folder(out) as folder:
        (folder / "a").write_text("first")
    with pytest.raises(CheckpointError, match="out: is not empty"):
        with checkpoint.new_folder(out):
            pass
    with checkpoint.new_folder(out, overwrite=True) as folder:
        (folder / "b").write_text("second")
    assert [path.name for path in out.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(CheckpointError, match="is a file"):
        with checkpoint.new_folder(out / "b"):
            pass
