"""Reading and writing safetensors one tensor at a time, and every way a folder can be damaged."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ba_jax.convert import safetensors_io
from ba_jax.convert.engine import ConversionError, TensorInfo
from ba_jax.convert.safetensors_io import (
    SafetensorsFile,
    SafetensorsFolder,
    make_header,
    write_file,
)
from tests.unit.convert.helpers import assert_refused

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.standard_normal((5, 3)).astype(np.float32),
    "b.weight": RNG.standard_normal((4, 2, 3)).astype(np.float16),
    "scalar": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.float32),
    "c.bias": np.arange(6, dtype=np.uint8),
}
BF16 = RNG.standard_normal((6, 2)).astype(ml_dtypes.bfloat16)


def write(path, arrays, metadata=None):
    infos = {name: TensorInfo(a.shape, a.dtype) for name, a in arrays.items()}
    write_file(path, make_header(infos, metadata), infos, lambda name: [arrays[name]])


def write_raw(path, header, data=b""):
    """A file with any header: a dict, or bytes."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


@pytest.fixture
def folder(tmp_path):
    """Two shards with an index."""
    write(tmp_path / "model-1.safetensors", {"a": np.ones((2, 2), np.float32)})
    write(tmp_path / "model-2.safetensors", {"b": np.ones(3, np.float32)})
    write_index(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    return tmp_path


def write_index(folder, weight_map):
    (folder / safetensors_io.INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def refused(opened, path, *words, seconds=1.0):
    assert_refused(lambda: opened(path), path, *words, seconds=seconds)


def test_reads_what_the_library_writes(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, {"format": "np"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "np"} and file.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        got = file.read(name)
        assert got.dtype == array.dtype and got.shape == array.shape
        np.testing.assert_array_equal(got, array)
    np.testing.assert_array_equal(file.read("a.weight", 1, 4), ARRAYS["a.weight"][1:4])
    np.testing.assert_array_equal(file.read("b.weight", 3), ARRAYS["b.weight"][3:])


def test_the_library_reads_what_we_write(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {**ARRAYS, "d": BF16}, {"format": "pt"})
    got = safetensors.numpy.load_file(path)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(got[name], array)
    np.testing.assert_array_equal(got["d"].view(np.uint16), BF16.view(np.uint16))
    file = SafetensorsFile(path)
    assert make_header(file.tensors, file.metadata) == file.header
    assert (8 + len(file.header)) % 8 == 0


def test_writer_refuses_pieces_that_do_not_fit(tmp_path):
    infos = {"a": TensorInfo((4,), np.dtype(np.float32))}
    header = make_header(infos)
    with pytest.raises(ConversionError, match="a has 8 bytes, expected 16"):
        write_file(tmp_path / "x", header, infos, lambda _: [np.zeros(2, np.float32)])
    with pytest.raises(ConversionError, match="a is float64, expected float32"):
        write_file(tmp_path / "y", header, infos, lambda _: [np.zeros(4)])


def test_folder_reads_every_shard(folder):
    opened = SafetensorsFolder(folder)
    assert list(opened.files) == ["model-1.safetensors", "model-2.safetensors"]
    np.testing.assert_array_equal(opened.read("a", 1), np.ones((1, 2)))
    np.testing.assert_array_equal(opened.read("b"), np.ones(3))


def test_single_file_without_index_is_legal(tmp_path):
    write(tmp_path / "model.safetensors", {"a": np.ones(2, np.float32)})
    write(tmp_path / "hift.safetensors", {"v": np.ones(2, np.float32)})
    opened = SafetensorsFolder(tmp_path)
    assert opened.index is None and list(opened.tensors) == ["a"]


def test_folder_without_index(folder):
    (folder / safetensors_io.INDEX_FILE).unlink()
    words = ("no model.safetensors.index.json", "model-1.safetensors, model-2.safetensors")
    refused(SafetensorsFolder, folder, *words)


def test_empty_and_missing_folder(tmp_path):
    refused(SafetensorsFolder, tmp_path, "no .safetensors file")
    refused(SafetensorsFolder, tmp_path / "nowhere", "no such folder")


def test_missing_shard(folder):
    (folder / "model-2.safetensors").unlink()
    refused(SafetensorsFolder, folder, "missing shard model-2.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "model-3.safetensors"])
def test_shard_that_the_index_does_not_name(folder, name):
    write(folder / name, {"c": np.ones(1)})
    refused(SafetensorsFolder, folder, f"shard {name} is not named by {safetensors_io.INDEX_FILE}")


def test_index_and_headers_disagree(folder):
    write(folder / "model-1.safetensors.new", {"a": np.ones(2, np.float32), "x": np.ones(1)})
    (folder / "model-1.safetensors.new").rename(folder / "model-1.safetensors")
    write_index(
        folder, {"a": "model-2.safetensors", "b": "model-2.safetensors", "y": "model-1.safetensors"}
    )
    refused(
        SafetensorsFolder,
        folder,
        "unknown tensor x in model-1.safetensors",
        "missing tensor y, expected in model-1.safetensors",
        "a is in model-1.safetensors, but model.safetensors.index.json says model-2.safetensors",
    )


def test_duplicate_tensor_in_two_shards(folder):
    write(folder / "model-3.safetensors", {"a": np.ones((2, 2), np.float32), "c": np.ones(1)})
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    write_index(folder, shards)
    refused(
        SafetensorsFolder,
        folder,
        "duplicate tensor a in model-1.safetensors and model-3.safetensors",
    )


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "not valid JSON"),
        ("[]", "is a list, expected an object"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "weight_map is None"),
        ('{"weight_map": {}}', "weight_map is {}"),
        ('{"weight_map": {"a": "m.safetensors"}, "metadata": [1]}', "metadata is [1]"),
        ('{"weight_map": {"a": 3}}', "weight_map['a'] is 3"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "'../x.safetensors', expected the name"),
        ('{"weight_map": {"a": "m.safetensors", "a": "n.safetensors"}}', "duplicate names ['a']"),
    ],
)
def test_corrupt_index(folder, text, word):
    (folder / safetensors_io.INDEX_FILE).write_text(text)
    refused(SafetensorsFolder, folder, word)


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_shard_cut_short(folder, cut):
    path = folder / "model-2.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    with pytest.raises(ConversionError) as caught:
        SafetensorsFolder(folder)
    assert f"{path}: cut short: {len(data) - cut} bytes, expected {len(data)}" in str(caught.value)


def test_shard_cut_in_its_header(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {"a": np.ones(2, np.float32)})
    data = path.read_bytes()
    path.write_bytes(data[:20])
    refused(SafetensorsFile, path, "cut short: 20 bytes, expected")
    path.write_bytes(data[:5])
    refused(SafetensorsFile, path, "cut short: 5 bytes, expected at least 8")
    path.write_bytes(data + b"x")
    refused(SafetensorsFile, path, "extra bytes", f"{len(data) + 1} bytes, expected {len(data)}")


def test_shard_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, {"a": np.ones(100, np.float32)})
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConversionError, match="cut short while it was read"):
        file.read("a")


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 1 << 40, (1 << 64) - 1])
def test_absurd_header_length(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 10)
    refused(SafetensorsFile, path, f"header length {length}")


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"{not json}", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b'"a string"', "is a str, expected an object"),
        (b'{"a": {"a": 1}, "a": 2}', "duplicate names ['a']"),
        ({"a": 3}, "a: header entry 3"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "expected dtype, shape and data_offsets"),
        ({"a": entry(dtype="F7")}, "dtype 'F7', expected one of F64"),
        ({"a": entry(dtype=[])}, "dtype []"),
        ({"a": entry(shape=(-2,))}, "expected lists of sizes"),
        ({"a": entry(shape=(2.0,))}, "expected lists of sizes"),
        ({"a": entry(shape=(True,))}, "expected lists of sizes"),
        ({"a": entry(offsets=(8, 0))}, "data_offsets [8, 0], expected [start, end]"),
        ({"a": entry(offsets=(0,))}, "data_offsets [0], expected [start, end]"),
        ({"a": entry(shape=(3,))}, "span 8 bytes, expected 12 for F32 [3]"),
        ({"a": entry(shape=(1 << 40, 1 << 40))}, "span 8 bytes, expected"),
        ({"a": entry(shape=[1] * 65)}, "expected at most 64 sizes"),
        ({"a": entry(shape=(0, 2**63), offsets=(0, 0))}, "expected sizes of at most"),
        ({"a": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}, "expected sizes of at most"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "b: data begin at 4, expected 8: overlaps"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, "b: data begin at 12, expected 8: leaves"),
        ({"a": entry(offsets=(1 << 50, (1 << 50) + 8))}, "leaves a hole"),
        ({"__metadata__": ["pt"], "a": entry()}, "__metadata__: ['pt'], expected an object"),
        ({"__metadata__": {"n": 3}, "a": entry()}, "__metadata__: {'n': 3}, expected an object"),
    ],
)
def test_corrupt_header(tmp_path, header, word):
    path = tmp_path / "model.safetensors"
    write_raw(path, header, b"\0" * 8)
    refused(SafetensorsFile, path, word)
